package s3

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// ErrOtherPolicy is returned when the bucket has a policy already that somebody else made.
var ErrOtherPolicy = errors.New("the bucket has another policy")

// Create makes the bucket where there is none, with versions, and with object lock when the configuration has it. It reports whether
// it made one; what is there stays as it is.
func (s *Store) Create(ctx context.Context) (bool, error) {
	err := s.Ping(ctx)
	if err == nil || !errors.Is(err, store.ErrNoBucket) {
		return false, err
	}
	in := &s3.CreateBucketInput{Bucket: &s.cfg.Bucket}
	if s.cfg.ObjectLock.Mode != "" {
		in.ObjectLockEnabledForBucket = new(true)
	}
	// AWS takes no constraint for us-east-1: https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html
	if s.cfg.Region != "" && s.cfg.Region != "us-east-1" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(s.cfg.Region)}
	}
	if _, err = s.client.CreateBucket(ctx, in); err != nil {
		return false, s.failed("making", "it", err)
	}
	if in.ObjectLockEnabledForBucket != nil { // which versions come with
		return true, nil
	}
	_, err = s.client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{
		Bucket:                  &s.cfg.Bucket,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled},
	})
	if err != nil && !unsupported(err) {
		return true, s.failed("switching on the versions of", "it", err)
	}
	return true, nil
}

// KeepsVersions is what the bucket says of that: "enabled", "suspended", "off", or "unknown" when it does not tell.
func (s *Store) KeepsVersions(ctx context.Context) (string, error) { return s.versioning(ctx) }

// SetPolicy gives the bucket a policy, a JSON document of AWS's policy language. One that is there already and says something else is
// replaced only when replace is set; ErrOtherPolicy otherwise. It reports whether there was anything to do.
func (s *Store) SetPolicy(ctx context.Context, policy string, replace bool) (bool, error) {
	out, err := s.client.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: &s.cfg.Bucket})
	switch {
	case err == nil && out.Policy != nil:
		same, failed := sameJSON(*out.Policy, policy)
		if failed != nil {
			return false, fmt.Errorf("reading the policy of bucket %s: %w", s.cfg.Bucket, failed)
		}
		if same {
			return false, nil
		}
		if !replace {
			return false, fmt.Errorf("%w (bucket %s at %s)", ErrOtherPolicy, s.cfg.Bucket, s.endpoint)
		}
	case err != nil && status(err) != http.StatusNotFound: // NoSuchBucketPolicy
		return false, s.failed("asking for the policy of", "it", err)
	}
	if _, err = s.client.PutBucketPolicy(ctx, &s3.PutBucketPolicyInput{Bucket: &s.cfg.Bucket, Policy: &policy}); err != nil {
		return false, s.failed("setting the policy of", "it", err)
	}
	return true, nil
}

func sameJSON(a, b string) (bool, error) {
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		return false, err
	}
	return reflect.DeepEqual(x, y), nil
}
