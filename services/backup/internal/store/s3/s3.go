// Package s3 keeps objects in a bucket of AWS S3 or a compatible store. It is the only package that speaks to the AWS
// SDK.
//
// A store can fail in more ways than by saying so. A request that hangs is ended by watch; a read that breaks goes on
// where it was (body); a conditional write whose answer was lost, and whose repetition is then refused by what it wrote
// itself, is known by a mark in the object's metadata (ours); parts of a failed upload are aborted until they are gone.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

const (
	mib = 1 << 20
	// The transport's default of 4 KiB costs a system call for each of them.
	socketBuffer = 128 << 10
	// The SDK's calls for credentials are small; the store's own have limits of their own, see limits.
	credentialsTimeout = 30 * time.Second
)

// Store is a bucket.
type Store struct {
	client   *s3.Client
	cfg      config.ObjectStore
	endpoint string
	parts    *buffers
	// lockSeen: the bucket has object lock, perhaps with a default of its own, so every put needs a checksum.
	lockSeen atomic.Bool
	// reuseAfter is probeReuse, but for tests.
	reuseAfter time.Duration
}

type settings struct {
	limits  limits
	retried func(reason string)
	backoff time.Duration
	reuse   time.Duration
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Option changes how a Store is made.
type Option func(*settings)

// OnRetry is called, from many goroutines, each time that a request is about to be tried again. The reason is the store's
// own error code, or "connection" or "stalled".
func OnRetry(fn func(reason string)) Option { return func(s *settings) { s.retried = fn } }

// New prepares a client; it does not talk to the store.
func New(ctx context.Context, cfg config.ObjectStore, opts ...Option) (*Store, error) {
	if cfg.Bucket == "" {
		return nil, errors.New("store.bucket is missing")
	}
	set := settings{limits: defaultLimits(), backoff: maxBackoff, reuse: probeReuse}
	for _, opt := range opts {
		opt(&set)
	}
	httpClient, err := newHTTPClient(cfg, set)
	if err != nil {
		return nil, err
	}
	loading := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRegion(cfg.Region), awsconfig.WithHTTPClient(httpClient),
		// Many compatible stores refuse the checksum trailers that the SDK adds by default. Reading the object back is
		// our check of what was stored.
		awsconfig.WithRequestChecksumCalculation(aws.RequestChecksumCalculationWhenRequired),
		awsconfig.WithResponseChecksumValidation(aws.ResponseChecksumValidationWhenRequired),
	}
	var files *fileCredentials
	if cfg.AccessKeyIDFile != "" {
		files = &fileCredentials{id: cfg.AccessKeyIDFile, secret: cfg.SecretAccessKeyFile}
		loading = append(loading, awsconfig.WithCredentialsProvider(files))
	}
	awsCfg, err := awsconfig.LoadDefaultConfig(ctx, loading...)
	if err != nil {
		return nil, fmt.Errorf("preparing the S3 client: %w", err)
	}
	bundles := caBundles(awsCfg.ConfigSources)
	client := s3.NewFromConfig(awsCfg, func(o *s3.Options) {
		o.UsePathStyle = cfg.PathStyle
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
		}
		// Waiting for "100 Continue" costs a second per part with some servers.
		o.ContinueHeaderThresholdBytes = -1
		o.Retryer = newRetryer(set, files)
		if b, ok := o.HTTPClient.(*awshttp.BuildableClient); ok { // the limits of watch take the place of this one
			o.HTTPClient = renewing(b.WithReadTimeout(0), cfg.TLS(), bundles)
		}
		o.HTTPClient = &watch{next: o.HTTPClient, limits: set.limits}
	})
	endpoint := cfg.Endpoint
	if endpoint == "" {
		endpoint = "AWS " + cfg.Region
	}
	s := &Store{client: client, cfg: cfg, endpoint: endpoint, parts: newBuffers(), reuseAfter: set.reuse}
	s.lockSeen.Store(cfg.ObjectLock.Mode != "")
	return s, nil
}

// newHTTPClient is the SDK's own client type: with AWS_CA_BUNDLE set it refuses any other.
func newHTTPClient(cfg config.ObjectStore, set settings) (*awshttp.BuildableClient, error) {
	client := awshttp.NewBuildableClient().WithReadTimeout(credentialsTimeout).WithTransportOptions(func(t *http.Transport) {
		t.ReadBufferSize, t.WriteBufferSize = socketBuffer, socketBuffer
		// Parts go over several connections, so that one that stalls or is slow holds up only its own part.
		t.ForceAttemptHTTP2 = false
		if set.dial != nil {
			t.DialContext = set.dial
		}
	})
	if cfg.CAFile != "" {
		if _, err := config.CertPool(cfg.CAFile); err != nil {
			return nil, fmt.Errorf("store.ca_file: %w", err)
		}
	}
	settings, err := cfg.TLS().Client()
	if err != nil {
		return nil, fmt.Errorf("store.cert_file and key_file: %w", err)
	}
	return client.WithTransportOptions(func(t *http.Transport) { secure(t, settings) }), nil
}

// Ping implements store.Store.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket})
	if status(err) == http.StatusNotFound { // an answer to HEAD has no body, and so no code
		err = fmt.Errorf("%w: %w", store.ErrNoBucket, err)
	}
	if err != nil {
		return s.failed("reaching", "it", err)
	}
	return nil
}

// failed says what was being done where. The SDK's errors name neither bucket nor endpoint.
func (s *Store) failed(doing, key string, err error) error {
	return fmt.Errorf("%s %s (bucket %s at %s): %w", doing, key, s.cfg.Bucket, s.endpoint, translate(err))
}
