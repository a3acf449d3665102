// Package s3 keeps objects in a bucket of AWS S3 or a compatible store. It is the only package that speaks to the AWS
// SDK.
package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/s3/transfermanager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

const (
	mib = 1 << 20
	// A part of 8 MiB and three in flight bound the memory of an upload; S3 takes at most 10,000 parts.
	minPart     = 8 * mib
	maxParts    = 10_000
	concurrency = 3
	// A cancelled upload still has to be aborted, or its parts are paid for for ever.
	abortTimeout = 30 * time.Second
	// How long credentials read from files are used before the files are read again.
	credentialsAge = time.Minute
)

// Store is a bucket.
type Store struct {
	client   *s3.Client
	uploads  *transfermanager.Client
	bucket   string
	endpoint string
}

// New prepares a client; it does not talk to the store.
func New(ctx context.Context, cfg config.ObjectStore) (*Store, error) {
	if cfg.Bucket == "" {
		return nil, errors.New("store.bucket is missing")
	}
	// The SDK's own client type: with AWS_CA_BUNDLE set it refuses any other.
	httpClient := awshttp.NewBuildableClient()
	if cfg.CAFile != "" {
		pool, err := config.CertPool(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("store.ca_file: %w", err)
		}
		httpClient = httpClient.WithTransportOptions(func(t *http.Transport) { t.TLSClientConfig.RootCAs = pool })
	}
	opts := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(cfg.Region), awsconfig.WithHTTPClient(httpClient),
		// Many compatible stores refuse the checksum trailers that the SDK adds by default. Reading the object back is
		// our check of what was stored.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	if cfg.AccessKeyIDFile != "" {
		opts = append(opts, awsconfig.WithCredentialsProvider(fileCredentials(cfg)))
	}
	awsCfg, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("preparing the S3 client: %w", err)
	}
	client := s3.NewFromConfig(awsCfg, func(o *s3.Options) {
		o.UsePathStyle = cfg.PathStyle
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
		// Waiting for "100 Continue" costs a second per part with some servers.
		o.ContinueHeaderThresholdBytes = -1
	})
	uploads := transfermanager.New(client, func(o *transfermanager.Options) {
		o.Concurrency = concurrency
		o.MultipartUploadThreshold = minPart
		o.FailTimeout = abortTimeout
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	})
	endpoint := cfg.Endpoint
	if endpoint == "" {
		endpoint = "AWS " + cfg.Region
	}
	return &Store{client: client, uploads: uploads, bucket: cfg.Bucket, endpoint: endpoint}, nil
}

// fileCredentials reads the key files again every minute, so that keys may be rotated under a running service.
func fileCredentials(cfg config.ObjectStore) aws.CredentialsProviderFunc {
	return func(context.Context) (aws.Credentials, error) {
		id, err := cfg.AccessKeyIDFile.Read()
		if err != nil {
			return aws.Credentials{}, fmt.Errorf("store.access_key_id_file: %w", err)
		}
		secret, err := cfg.SecretAccessKeyFile.Read()
		if err != nil {
			return aws.Credentials{}, fmt.Errorf("store.secret_access_key_file: %w", err)
		}
		return aws.Credentials{
			AccessKeyID: id, SecretAccessKey: secret, Source: "files",
			CanExpire: true, Expires: time.Now().Add(credentialsAge),
		}, nil
	}
}

// partSize keeps an object of about size bytes below the limit of parts, with a tenth to spare.
func partSize(size int64) int64 { return max(minPart, size/(maxParts*9/10)+1) }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c store.Condition) (store.Object, error) {
	in := &transfermanager.UploadObjectInput{Bucket: &s.bucket, Key: &key, Body: r}
	if c.Absent {
		in.IfNoneMatch = aws.String("*")
	}
	if c.ETag != "" {
		in.IfMatch = aws.String(c.ETag)
	}
	out, err := s.uploads.UploadObject(ctx, in, func(o *transfermanager.Options) { o.PartSizeBytes = partSize(sizeHint) })
	if err != nil {
		return store.Object{}, fmt.Errorf("storing %s: %w", key, translate(err))
	}
	return store.Object{Key: key, ETag: aws.ToString(out.ETag)}, nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error) {
	out, err := s.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		return nil, store.Object{}, fmt.Errorf("reading %s: %w", key, translate(err))
	}
	return out.Body, store.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified),
	}, nil
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, key string) (store.Object, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		return store.Object{}, fmt.Errorf("looking up %s: %w", key, translate(err))
	}
	return store.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified),
	}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return fmt.Errorf("listing %s: %w", prefix, translate(err))
		}
		for _, o := range page.Contents {
			err := fn(store.Object{
				Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size), ETag: aws.ToString(o.ETag), Modified: aws.ToTime(o.LastModified),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Probe implements store.Store. Its scratch object stays: a worker that may write may not delete.
func (s *Store) Probe(ctx context.Context, prefix string) (store.Capabilities, error) {
	caps := store.Capabilities{Endpoint: s.endpoint, Bucket: s.bucket}
	key := strings.TrimPrefix(prefix+"/.lifeboat-probe", "/")
	absent := store.Condition{Absent: true}
	if _, err := s.Put(ctx, key, strings.NewReader("1"), 1, absent); err != nil && !errors.Is(err, store.ErrPrecondition) {
		return caps, fmt.Errorf("probing the store: %w", err)
	}
	_, err := s.Put(ctx, key, strings.NewReader("2"), 1, absent)
	if err != nil && !errors.Is(err, store.ErrPrecondition) {
		return caps, fmt.Errorf("probing the store: %w", err)
	}
	caps.ConditionalWrites = err != nil
	return caps, nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	if _, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.bucket}); err != nil {
		return fmt.Errorf("bucket %s at %s: %w", s.bucket, s.endpoint, translate(err))
	}
	return nil
}

// translate adds our sentinels to the SDK's errors.
func translate(err error) error {
	if resp, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		switch resp.HTTPStatusCode() {
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", store.ErrNotFound, err)
		case http.StatusPreconditionFailed:
			return fmt.Errorf("%w: %w", store.ErrPrecondition, err)
		}
	}
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "PreconditionFailed" {
		return fmt.Errorf("%w: %w", store.ErrPrecondition, err)
	}
	return err
}
