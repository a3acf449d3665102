package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// Versions implements store.Store.
func (s *Store) Versions(ctx context.Context, prefix string, fn func(store.Version) error) error {
	pages := s3.NewListObjectVersionsPaginator(s.client, &s3.ListObjectVersionsInput{Bucket: &s.cfg.Bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if unsupported(err) { // a store without versions at all
			return s.List(ctx, prefix, func(o store.Object) error { return fn(store.Version{Object: o, Latest: true}) })
		}
		if err != nil {
			return s.failed("listing the versions of", prefix, err)
		}
		for _, v := range versions(page) {
			if err := fn(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// versions merges what S3 answers as two lists. A page never begins before what the page before it ended with.
func versions(page *s3.ListObjectVersionsOutput) []store.Version {
	all := make([]store.Version, 0, len(page.Versions)+len(page.DeleteMarkers))
	for _, v := range page.Versions {
		all = append(all, store.Version{
			Object: store.Object{
				Key: aws.ToString(v.Key), Size: aws.ToInt64(v.Size), ETag: aws.ToString(v.ETag), Modified: aws.ToTime(v.LastModified),
			},
			ID: aws.ToString(v.VersionId), Latest: aws.ToBool(v.IsLatest),
		})
	}
	for _, m := range page.DeleteMarkers {
		all = append(all, store.Version{
			Object: store.Object{Key: aws.ToString(m.Key), Modified: aws.ToTime(m.LastModified)},
			ID:     aws.ToString(m.VersionId), Latest: aws.ToBool(m.IsLatest), Marker: true,
		})
	}
	slices.SortStableFunc(all, func(a, b store.Version) int {
		if c := cmp.Compare(a.Key, b.Key); c != 0 {
			return c
		}
		if a.Latest != b.Latest {
			if a.Latest {
				return -1
			}
			return 1
		}
		return b.Modified.Compare(a.Modified)
	})
	return all
}

// versionID is how a request names a version; nil for a store that has none.
func versionID(v store.Version) *string {
	if v.ID == "" {
		return nil
	}
	return &v.ID
}

// Lock implements store.Store. It asks for retention and legal hold by name: HeadObject leaves them out, without an error,
// for somebody who may not read them, and a protected version would look free.
func (s *Store) Lock(ctx context.Context, v store.Version) (store.Lock, error) {
	if v.Marker {
		return store.Lock{}, nil // S3 does not lock markers
	}
	var lock store.Lock
	retention, err := s.client.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{
		Bucket: &s.cfg.Bucket, Key: &v.Key, VersionId: versionID(v),
	})
	switch {
	case noLockInBucket(err):
		return store.Lock{}, nil
	case code(err) == codeNoLockOnObject:
	case err != nil:
		return store.Lock{}, s.failed("reading the retention of", v.Key, err)
	case retention.Retention != nil:
		if until := aws.ToTime(retention.Retention.RetainUntilDate); until.After(time.Now()) {
			lock = store.Lock{Mode: string(retention.Retention.Mode), Until: until}
		}
	}
	hold, err := s.client.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{
		Bucket: &s.cfg.Bucket, Key: &v.Key, VersionId: versionID(v),
	})
	switch {
	case code(err) == codeNoLockOnObject, noLockInBucket(err):
	case err != nil:
		return store.Lock{}, s.failed("reading the legal hold of", v.Key, err)
	case hold.LegalHold != nil:
		lock.LegalHold = hold.LegalHold.Status == types.ObjectLockLegalHoldStatusOn
	}
	return lock, nil
}

// Remove implements store.Store. It never sends x-amz-bypass-governance-retention.
func (s *Store) Remove(ctx context.Context, v store.Version) error {
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: &v.Key, VersionId: versionID(v)})
	if err == nil {
		return nil
	}
	switch kind := translate(err); {
	case errors.Is(kind, store.ErrNoBucket):
	case errors.Is(kind, store.ErrNotFound):
		return nil
	case errors.Is(kind, store.ErrDenied):
		// S3 answers AccessDenied both for a locked version and for a missing right. Who may not ask is told the latter.
		if lock, lockErr := s.Lock(ctx, v); lockErr == nil && lock.Held(time.Now()) {
			err = fmt.Errorf("%w: %w", store.ErrLocked, err)
		}
	case s.gone(ctx, v):
		return nil
	}
	return s.failed("removing", v.Key, err)
}

// gone says that a version does not exist. To some stores a delete is an internal error, or names an invalid version, when
// it is repeated because its first answer was lost.
func (s *Store) gone(ctx context.Context, v store.Version) bool {
	_, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &v.Key, VersionId: versionID(v)})
	return status(err) == http.StatusNotFound
}

// Uploads implements store.Store.
func (s *Store) Uploads(ctx context.Context, prefix string, fn func(store.Upload) error) error {
	pages := s3.NewListMultipartUploadsPaginator(s.client, &s3.ListMultipartUploadsInput{Bucket: &s.cfg.Bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return s.failed("listing the unfinished uploads of", prefix, err)
		}
		for _, u := range page.Uploads {
			err := fn(store.Upload{Key: aws.ToString(u.Key), ID: aws.ToString(u.UploadId), Begun: aws.ToTime(u.Initiated)})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Abort implements store.Store.
func (s *Store) Abort(ctx context.Context, u store.Upload) error {
	_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID})
	if err != nil && code(err) != codeNoSuchUpload {
		return s.failed("aborting an upload of", u.Key, err)
	}
	return nil
}
