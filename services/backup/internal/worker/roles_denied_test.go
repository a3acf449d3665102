package worker_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// Everything that matters in the bucket is tried with the keys of each role, past our own code: what its policy in deploy/s3 lets
// it do, and nothing besides.
func TestEachRoleIsDeniedTheRightsOfTheOthers(t *testing.T) {
	type try struct {
		what string
		may  []config.Work
		do   func(context.Context, *awss3.Client) error
	}
	const folder = "p/" + target + "/snapshots/20261101T000000.000Z-1/"
	bucket := aws.String(s3test.Bucket)
	put := func(key string) func(context.Context, *awss3.Client) error {
		return func(ctx context.Context, c *awss3.Client) error {
			_, err := c.PutObject(ctx, &awss3.PutObjectInput{Bucket: bucket, Key: &key, Body: strings.NewReader("forged")})
			return err
		}
	}
	begin := func(key string) func(context.Context, *awss3.Client) error {
		return func(ctx context.Context, c *awss3.Client) error {
			_, err := c.CreateMultipartUpload(ctx, &awss3.CreateMultipartUploadInput{Bucket: bucket, Key: &key})
			return err
		}
	}
	get := func(key string) func(context.Context, *awss3.Client) error {
		return func(ctx context.Context, c *awss3.Client) error {
			out, err := c.GetObject(ctx, &awss3.GetObjectInput{Bucket: bucket, Key: &key})
			if err != nil {
				return err
			}
			return out.Body.Close()
		}
	}
	var (
		snapshot, verify, drill, prune = config.WorkSnapshot, config.WorkVerify, config.WorkDrill, config.WorkPrune
		operator                       = config.Work("operator") // the person who pins and prunes by hand
		all                            = append(config.Works(), operator)
	)
	tries := []try{
		{"list", all, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{Bucket: bucket})
			return err
		}},
		{"list versions", []config.Work{prune, operator}, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.ListObjectVersions(ctx, &awss3.ListObjectVersionsInput{Bucket: bucket})
			return err
		}},
		{"list uploads", []config.Work{snapshot, prune, operator}, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.ListMultipartUploads(ctx, &awss3.ListMultipartUploadsInput{Bucket: bucket})
			return err
		}},
		{"read data", all, get(folder + "data.db.zst.age")},
		{"read a manifest", all, get(folder + "manifest.json")},
		{"write data", []config.Work{snapshot}, put("p/" + target + "/snapshots/forged/data.db.zst.age")},
		{"write data in parts", []config.Work{snapshot}, begin("p/" + target + "/snapshots/forged/data.db.zst.age")},
		{"write a manifest", []config.Work{snapshot}, put("p/" + target + "/snapshots/forged/manifest.json")},
		{"say that it was verified", []config.Work{snapshot, verify}, put(folder + "marks/verified.json")},
		{"pin", []config.Work{operator}, put(folder + "marks/pin.json")},
		{"confirm that a target shrank", []config.Work{operator}, put(folder + "marks/shrink-confirmed.json")},
		{"say that it was drilled", []config.Work{drill}, put(folder + "drills/forged.json")},
		{"write anything else", nil, put("p/elsewhere")},
		{"write anything else in parts", nil, begin("p/elsewhere")},
		{"delete data", []config.Work{prune}, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: bucket, Key: aws.String(folder + "old")})
			return err
		}},
		{"delete many", []config.Work{prune}, func(ctx context.Context, c *awss3.Client) error {
			out, err := c.DeleteObjects(ctx, &awss3.DeleteObjectsInput{
				Bucket: bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: aws.String(folder + "older")}}},
			})
			if err == nil && len(out.Errors) > 0 {
				return &smithy.GenericAPIError{Code: *out.Errors[0].Code}
			}
			return err
		}},
		{"read the policy", nil, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.GetBucketPolicy(ctx, &awss3.GetBucketPolicyInput{Bucket: bucket})
			return err
		}},
		{"change the policy", nil, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.DeleteBucketPolicy(ctx, &awss3.DeleteBucketPolicyInput{Bucket: bucket})
			return err
		}},
		{"switch versions off", nil, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.PutBucketVersioning(ctx, &awss3.PutBucketVersioningInput{
				Bucket: bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended},
			})
			return err
		}},
		{"take the lock away", nil, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.PutObjectRetention(ctx, &awss3.PutObjectRetentionInput{
				Bucket: bucket, Key: aws.String(folder + "drills/1.json"), BypassGovernanceRetention: aws.Bool(true), Retention: &types.ObjectLockRetention{},
			})
			return err
		}},
		{"delete the bucket", nil, func(ctx context.Context, c *awss3.Client) error {
			_, err := c.DeleteBucket(ctx, &awss3.DeleteBucketInput{Bucket: bucket})
			return err
		}},
	}
	for _, role := range all {
		t.Run(string(role), func(t *testing.T) {
			f := newFleet(t)
			owner := f.owner()
			for _, name := range []string{"data.db.zst.age", "manifest.json", "drills/1.json", "old", "older"} {
				require.NoError(t, put(folder+name)(t.Context(), owner))
			}
			f.roleOnly(role)
			c := f.s3Client(string(role), "the-secret-of-"+string(role))
			for _, try := range tries {
				err := try.do(t.Context(), c)
				if slices.Contains(try.may, role) {
					assert.NoError(t, err, try.what)
					continue
				}
				var answer smithy.APIError
				if assert.ErrorAs(t, err, &answer, "%s is to be denied", try.what) {
					assert.Equal(t, "AccessDenied", answer.ErrorCode(), "%s: %v", try.what, err)
				}
			}
		})
	}
}

// s3Client speaks to the bucket past our own code.
func (f *fleet) s3Client(id, secret string) *awss3.Client {
	return awss3.New(awss3.Options{
		Region: "us-east-1", BaseEndpoint: &f.s3.Endpoint, UsePathStyle: true, Credentials: credentials.NewStaticCredentialsProvider(id, secret, ""),
	})
}

// owner is the bucket's.
func (f *fleet) owner() *awss3.Client {
	f.t.Helper()
	id, err := f.s3.Config.AccessKeyIDFile.Read()
	require.NoError(f.t, err)
	secret, err := f.s3.Config.SecretAccessKeyFile.Read()
	require.NoError(f.t, err)
	return f.s3Client(id, secret)
}
