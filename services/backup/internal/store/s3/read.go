package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// maxBreaks is how often in a row a read may break without a byte in between.
const maxBreaks = 3

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, store.Object, error) {
	return s.GetRange(ctx, key, 0, -1, "")
}

// GetRange implements store.Store. A read that breaks half-way goes on where it was, of the same object only.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, store.Object, error) {
	if offset < 0 {
		return nil, store.Object{}, fmt.Errorf("reading %s: the offset %d is negative", key, offset)
	}
	out, o, err := s.open(ctx, key, offset, length, etag)
	if err != nil {
		return nil, store.Object{}, s.failed("reading", key, err)
	}
	end := o.Size
	if length >= 0 {
		end = min(end, offset+length)
	}
	return &body{ctx: ctx, store: s, object: o, at: offset, end: end, r: out}, o, nil
}

// open begins one GetObject. Its errors are not translated.
func (s *Store) open(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, store.Object, error) {
	if length == 0 { // HTTP has no empty range
		return s.openNothing(ctx, key, etag)
	}
	in := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: &key}
	if etag != "" {
		in.IfMatch = &etag
	}
	switch {
	case length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
	case offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	out, err := s.client.GetObject(ctx, in)
	if status(err) == http.StatusRequestedRangeNotSatisfiable { // the offset is at the end or beyond it
		return s.openNothing(ctx, key, etag)
	}
	if err != nil {
		return nil, store.Object{}, err //nolint:wrapcheck // by the callers
	}
	o := store.Object{Key: key, ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified)}
	if o.Size, err = wholeSize(out, in.Range != nil); err != nil {
		return nil, store.Object{}, errors.Join(err, out.Body.Close())
	}
	if etag != "" && o.ETag != etag { // a store that does not know If-Match
		return nil, store.Object{}, errors.Join(store.ErrPrecondition, out.Body.Close())
	}
	return out.Body, o, nil
}

func (s *Store) openNothing(ctx context.Context, key, etag string) (io.ReadCloser, store.Object, error) {
	o, err := s.Head(ctx, key)
	if err == nil && etag != "" && o.ETag != etag {
		err = store.ErrPrecondition
	}
	return http.NoBody, o, err
}

// wholeSize is the size of the whole object, of which an answer may hold only a range.
func wholeSize(out *s3.GetObjectOutput, ranged bool) (int64, error) {
	if !ranged {
		return aws.ToInt64(out.ContentLength), nil
	}
	// RFC 9110, section 14.4: Content-Range: bytes 0-99/1234. An answer without it is the whole object from its start.
	_, size, _ := strings.Cut(aws.ToString(out.ContentRange), "/")
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the store answered a range with Content-Range %q", aws.ToString(out.ContentRange))
	}
	return n, nil
}

// body is an object's data. A connection that breaks is replaced: an object of gigabytes would rarely be read whole
// otherwise.
type body struct {
	ctx     context.Context //nolint:containedctx // of the one read that this body is
	store   *Store
	object  store.Object
	at, end int64
	r       io.ReadCloser
	breaks  int
}

func (b *body) Read(p []byte) (int, error) {
	if b.at >= b.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := b.r.Read(p[:min(int64(len(p)), b.end-b.at)])
		b.at += int64(n)
		if n > 0 {
			b.breaks = 0
			return n, nil // an error comes again with the next read
		}
		if err == nil {
			continue
		}
		if err = b.reopen(err); err != nil {
			return 0, err
		}
	}
}

// reopen begins a new request where the last one broke.
func (b *body) reopen(broken error) error {
	if errors.Is(broken, io.EOF) {
		broken = io.ErrUnexpectedEOF
	}
	b.breaks++
	if b.ctx.Err() != nil || b.breaks > maxBreaks {
		return b.store.failed("reading", b.object.Key, broken)
	}
	_ = b.r.Close()
	b.r = http.NoBody
	r, _, err := b.store.open(b.ctx, b.object.Key, b.at, b.end-b.at, b.object.ETag)
	if err != nil {
		return b.store.failed("reading on at byte "+strconv.FormatInt(b.at, 10)+" of", b.object.Key, err)
	}
	b.r = r
	return nil
}

func (b *body) Close() error {
	if err := b.r.Close(); err != nil {
		return fmt.Errorf("closing %s: %w", b.object.Key, err)
	}
	return nil
}

// Head implements store.Store.
func (s *Store) Head(ctx context.Context, key string) (store.Object, error) {
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil {
		return store.Object{}, s.failed("looking up", key, err)
	}
	return described(key, out), nil
}

func described(key string, out *s3.HeadObjectOutput) store.Object {
	return store.Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ETag: aws.ToString(out.ETag), Modified: aws.ToTime(out.LastModified),
	}
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Object) error) error {
	pages := s3.NewListObjectsV2Paginator(s.client, &s3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: &prefix})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return s.failed("listing", prefix, err)
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
