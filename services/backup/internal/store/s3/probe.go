package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// probeKey is the name of the scratch object. There is one for each prefix: a worker that may write may not delete, and what
// it leaves must not grow with each start. Only a store that keeps versions and ignores conditions too gets a further version
// of a byte. Where uploads cannot be aborted, one that is older than probeReuse is used again.
const (
	probeKey   = ".lifeboat-probe"
	probeReuse = 10 * time.Minute
)

var errNotDetermined = errors.New("the store answered neither that it was written nor that the condition failed")

// Probe implements store.Store.
func (s *Store) Probe(ctx context.Context, prefix string) (store.Capabilities, error) {
	caps := store.Capabilities{Endpoint: s.endpoint, Bucket: s.cfg.Bucket}
	key := strings.TrimPrefix(strings.TrimSuffix(prefix, "/")+"/"+probeKey, "/")
	// First, because a bucket with object lock needs checksums from then on.
	var err error
	if caps.Versioning, err = s.versioning(ctx); err != nil {
		return caps, s.failed("probing", key, err)
	}
	if caps.ObjectLock, err = s.objectLock(ctx); err != nil {
		return caps, s.failed("probing", key, err)
	}
	if caps.ObjectLock == enabled {
		s.lockSeen.Store(true)
	}
	whole, err := s.refusesPut(ctx, key)
	if err != nil {
		return caps, s.failed("probing", key, err)
	}
	inParts, err := s.probeParts(ctx, key, &caps)
	if err != nil {
		return caps, s.failed("probing", key, err)
	}
	caps.ConditionalWrites = whole && inParts
	return caps, nil
}

// probeParts tries what concerns multipart uploads. It says whether completing one of what exists is refused when its
// condition is that it does not.
func (s *Store) probeParts(ctx context.Context, key string, caps *store.Capabilities) (bool, error) {
	u, err := s.probeUpload(ctx, key)
	if err != nil {
		return false, err
	}
	if caps.Checksums, err = s.refusesDamage(ctx, u); err != nil {
		return false, errors.Join(err, s.Abort(ctx, u))
	}
	refuses, err := s.refusesComplete(ctx, u)
	if err != nil {
		return false, errors.Join(err, s.Abort(ctx, u))
	}
	if !refuses { // it was completed, so that another one is needed
		if u, err = s.newProbeUpload(ctx, key); err != nil {
			return false, err
		}
		if err = s.sendPart(ctx, u, &types.CompletedPart{PartNumber: aws.Int32(1)}, []byte("1")); err != nil {
			return false, err
		}
	}
	caps.MultipartAbort, err = s.aborts(ctx, u)
	return refuses, err
}

// vague says whether an error is no answer to what was asked: the store was busy, or a connection broke. A probe that took it for
// one would believe it for ever.
func vague(err error) bool { return err != nil && anyStatus(err)/100 != 4 }

const (
	enabled = "enabled"
	off     = "off"
	unknown = "unknown"
)

func (s *Store) versioning(ctx context.Context) (string, error) {
	out, err := s.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &s.cfg.Bucket})
	switch {
	case unsupported(err):
		return off, nil
	case vague(err):
		return unknown, fmt.Errorf("asking for the bucket's versioning: %w", err)
	case err != nil:
		return unknown, nil //nolint:nilerr // denied, which is an answer
	case out.Status == types.BucketVersioningStatusEnabled:
		return enabled, nil
	case out.Status == types.BucketVersioningStatusSuspended:
		return "suspended", nil
	}
	return off, nil
}

func (s *Store) objectLock(ctx context.Context) (string, error) {
	out, err := s.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &s.cfg.Bucket})
	switch {
	case noLockInBucket(err):
		return off, nil
	case vague(err):
		return unknown, fmt.Errorf("asking for the bucket's object lock: %w", err)
	case err != nil:
		return unknown, nil //nolint:nilerr // denied, which is an answer
	case out.ObjectLockConfiguration != nil && out.ObjectLockConfiguration.ObjectLockEnabled == types.ObjectLockEnabledEnabled:
		return enabled, nil
	}
	return off, nil
}

// refusesPut says whether a put of what exists is refused when its condition is that it does not.
func (s *Store) refusesPut(ctx context.Context, key string) (bool, error) {
	for range 2 { // the first one may be the one that makes it
		_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &s.cfg.Bucket, Key: &key, Body: strings.NewReader("1"), IfNoneMatch: aws.String("*"),
			ContentMD5: contentMD5([]byte("1")),
		})
		if err == nil {
			continue
		}
		return refused(err)
	}
	return false, nil
}

// refused says whether an error is that of a condition.
func refused(err error) (bool, error) {
	if errors.Is(translate(err), store.ErrPrecondition) {
		return true, nil
	}
	switch code(err) {
	case "NotImplemented", "InvalidArgument", "InvalidRequest": // a store that says that it does not know the header
		return false, nil
	}
	return false, fmt.Errorf("%w: %w", errNotDetermined, err)
}

// probeUpload is an unfinished upload of the scratch object: one that an earlier probe could not abort, or a new one. A
// young one may be in the hands of another worker that starts at the same moment.
func (s *Store) probeUpload(ctx context.Context, key string) (store.Upload, error) {
	var left []store.Upload
	// Who may not list them gets a new one.
	_ = s.Uploads(ctx, key, func(u store.Upload) error {
		if u.Key == key && time.Since(u.Begun) >= s.reuseAfter {
			left = append(left, u)
		}
		return nil
	})
	if len(left) > 0 {
		return left[rand.IntN(len(left))], nil //nolint:gosec // only to spread workers
	}
	return s.newProbeUpload(ctx, key)
}

func (s *Store) newProbeUpload(ctx context.Context, key string) (store.Upload, error) {
	out, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil {
		return store.Upload{}, fmt.Errorf("beginning an upload: %w", err)
	}
	return store.Upload{Key: key, ID: aws.ToString(out.UploadId)}, nil
}

// refusesDamage says whether a part is refused whose checksum is that of another one. Nothing is stored for long: the
// upload is never completed with it.
func (s *Store) refusesDamage(ctx context.Context, u store.Upload) (bool, error) {
	_, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
		Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID, PartNumber: aws.Int32(1), Body: strings.NewReader("damaged"),
		ContentMD5: contentMD5([]byte("as it was")),
	}, func(o *s3.Options) {
		o.Retryer = aws.NopRetryer{} // elsewhere damage on the way deserves another attempt; here it is what is asked for
	})
	if vague(err) {
		return false, fmt.Errorf("sending a part with a wrong checksum: %w", err)
	}
	return status(err) == http.StatusBadRequest, nil
}

func (s *Store) refusesComplete(ctx context.Context, u store.Upload) (bool, error) {
	part := types.CompletedPart{PartNumber: aws.Int32(1)}
	if err := s.sendPart(ctx, u, &part, []byte("1")); err != nil {
		return false, err
	}
	_, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID, IfNoneMatch: aws.String("*"),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{part}},
	})
	if err == nil {
		return false, nil
	}
	return refused(err)
}

// aborts says whether an upload with a part is gone after it was aborted.
func (s *Store) aborts(ctx context.Context, u store.Upload) (bool, error) {
	switch err := s.Abort(ctx, u); {
	case vague(err):
		return false, fmt.Errorf("aborting an upload: %w", err)
	case err != nil:
		return false, nil //nolint:nilerr // refused, which is an answer
	}
	_, err := s.client.ListParts(ctx, &s3.ListPartsInput{Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID})
	if err == nil {
		return false, nil
	}
	if status(err) != http.StatusNotFound { // we may not list parts, but a further one must be refused
		_, err = s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID, PartNumber: aws.Int32(2), Body: bytes.NewReader([]byte("1")),
			ContentMD5: contentMD5([]byte("1")),
		})
	}
	if vague(err) {
		return false, fmt.Errorf("looking for an aborted upload: %w", err)
	}
	return status(err) == http.StatusNotFound, nil
}
