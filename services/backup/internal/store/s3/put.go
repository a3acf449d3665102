package s3

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5" //nolint:gosec // Content-MD5 of the S3 API, against damage on the way; not a security measure
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"golang.org/x/sync/errgroup"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

const (
	// Three parts on their way and one being filled use partMemory.
	concurrency = 3
	// A cancelled upload still has to be aborted, or its parts are paid for until somebody does.
	abortTimeout = 30 * time.Second
	abortPause   = 100 * time.Millisecond
	// What is on its way when a Put is canceled may still arrive: an upload whose id nobody knows, or a part that is stored
	// after the abort. So it is given this long to end by itself.
	grace = 3 * time.Second
	// markKey is the name of the metadata by which a write knows itself again.
	markKey = "lifeboat-write"
)

// write is one Put.
type write struct {
	key  string
	cond store.Condition
	mark string
	// Set for what object lock protects.
	lockMode  types.ObjectLockMode
	lockUntil *time.Time
	class     types.StorageClass
	sse       types.ServerSideEncryption
	kmsKey    *string
}

// newWrite applies the configuration by the key's name: data is "data.*", and what is locked is data and manifests. Marks,
// reports and probes are written again or are worth nothing alone.
func (s *Store) newWrite(key string, c store.Condition) write {
	w := write{key: key, cond: c, mark: rand.Text()}
	base := path.Base(key)
	data := strings.HasPrefix(base, "data.")
	if data {
		w.class = types.StorageClass(s.cfg.StorageClass)
	}
	if lock := s.cfg.ObjectLock; lock.Mode != "" && (data || base == "manifest.json") {
		w.lockMode = types.ObjectLockMode(lock.Mode)
		w.lockUntil = aws.Time(time.Now().AddDate(0, 0, lock.Days))
	}
	switch s.cfg.SSE.Type {
	case "s3":
		w.sse = types.ServerSideEncryptionAes256
	case "kms":
		w.sse = types.ServerSideEncryptionAwsKms
		if s.cfg.SSE.KMSKeyID != "" {
			w.kmsKey = &s.cfg.SSE.KMSKeyID
		}
	}
	return w
}

func (w write) metadata() map[string]string { return map[string]string{markKey: w.mark} }

func (w write) ifNoneMatch() *string {
	if w.cond.Absent {
		return aws.String("*")
	}
	return nil
}

func (w write) ifMatch() *string {
	if w.cond.ETag != "" {
		return &w.cond.ETag
	}
	return nil
}

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c store.Condition) (store.Object, error) {
	o, err := s.put(ctx, s.newWrite(key, c), r, sizeHint)
	if err != nil {
		return store.Object{}, s.failed("storing", key, err)
	}
	return o, nil
}

func (s *Store) put(ctx context.Context, w write, r io.Reader, sizeHint int64) (store.Object, error) {
	head := make([]byte, smallObject)
	n, whole, err := fill(head, r)
	if err != nil {
		return store.Object{}, err
	}
	if whole {
		return s.putWhole(ctx, w, head[:n])
	}
	first, err := s.parts.take(ctx, partSize(sizeHint))
	if err != nil {
		return store.Object{}, err
	}
	copy(first, head)
	n, whole, err = fill(first[len(head):], r)
	n += len(head)
	if err == nil && !whole {
		return s.putParts(ctx, w, first, r)
	}
	defer s.parts.give(first)
	if err != nil {
		return store.Object{}, err
	}
	return s.putWhole(ctx, w, first[:n])
}

// fill reads until p is full; whole says that r ended.
func fill(p []byte, r io.Reader) (n int, whole bool, err error) {
	n, err = io.ReadFull(r, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, true, nil
	}
	return n, false, err //nolint:wrapcheck // the reader's own error, of which the caller knows more
}

func contentMD5(p []byte) *string {
	sum := md5.Sum(p) //nolint:gosec // see the import
	return aws.String(base64.StdEncoding.EncodeToString(sum[:]))
}

func (s *Store) putWhole(ctx context.Context, w write, p []byte) (store.Object, error) {
	in := &s3.PutObjectInput{
		Bucket: &s.cfg.Bucket, Key: &w.key, Body: bytes.NewReader(p), Metadata: w.metadata(),
		IfNoneMatch: w.ifNoneMatch(), IfMatch: w.ifMatch(), StorageClass: w.class,
		ServerSideEncryption: w.sse, SSEKMSKeyId: w.kmsKey, ObjectLockMode: w.lockMode, ObjectLockRetainUntilDate: w.lockUntil,
		// Object lock demands it, and of a small object it costs nothing.
		ContentMD5: contentMD5(p),
	}
	out, err := s.client.PutObject(ctx, in)
	if err != nil {
		return s.ours(ctx, w, err)
	}
	return store.Object{Key: w.key, Size: int64(len(p)), ETag: aws.ToString(out.ETag), Modified: time.Now()}, nil
}

// ours tells whether a write that failed is there after all: the answer was lost, and its repetition was refused by what
// the first attempt had written. Otherwise it returns the error that it got.
func (s *Store) ours(ctx context.Context, w write, failed error) (store.Object, error) {
	switch {
	case ctx.Err() != nil:
		return store.Object{}, failed
	case status(failed) == 0, status(failed) >= http.StatusInternalServerError:
	case code(failed) == codeNoSuchUpload, status(failed) == http.StatusPreconditionFailed, code(failed) == codePrecondition:
	default:
		return store.Object{}, failed
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &w.key})
	if err != nil || out.Metadata[markKey] != w.mark {
		return store.Object{}, failed
	}
	return described(w.key, out), nil
}

// putParts uploads what first holds and what r still gives. It takes over first.
func (s *Store) putParts(ctx context.Context, w write, first []byte, r io.Reader) (store.Object, error) {
	creating, done := lasting(ctx)
	defer done()
	created, err := s.client.CreateMultipartUpload(creating, &s3.CreateMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &w.key, Metadata: w.metadata(), StorageClass: w.class,
		ServerSideEncryption: w.sse, SSEKMSKeyId: w.kmsKey, ObjectLockMode: w.lockMode, ObjectLockRetainUntilDate: w.lockUntil,
	})
	if err != nil {
		s.parts.give(first)
		return store.Object{}, fmt.Errorf("beginning an upload: %w", err)
	}
	upload := store.Upload{Key: w.key, ID: aws.ToString(created.UploadId)}
	parts, size, err := s.sendParts(ctx, upload, first, r)
	var o store.Object
	if err == nil {
		o, err = s.complete(ctx, w, upload, parts, size)
	}
	if err != nil {
		// The context may be the reason. It gets its own time.
		abort, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
		defer cancel()
		if abortErr := s.abortUntilGone(abort, upload); abortErr != nil {
			err = fmt.Errorf("%w (and its upload %s could not be aborted: %w)", err, upload.ID, abortErr)
		}
		return store.Object{}, err
	}
	return o, nil
}

// lasting is a context that ends a while after its parent.
func lasting(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	timer := time.AfterFunc(time.Hour, func() { cancel(context.Cause(parent)) })
	timer.Stop()
	stop := context.AfterFunc(parent, func() { timer.Reset(grace) })
	return ctx, func() {
		stop()
		timer.Stop()
		cancel(nil)
	}
}

func (s *Store) complete(
	ctx context.Context, w write, u store.Upload, parts []types.CompletedPart, size int64,
) (store.Object, error) {
	out, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID, IfNoneMatch: w.ifNoneMatch(), IfMatch: w.ifMatch(),
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		return s.ours(ctx, w, err)
	}
	return store.Object{Key: u.Key, Size: size, ETag: aws.ToString(out.ETag), Modified: time.Now()}, nil
}

// sendParts sends what first holds and then what r gives, some parts at a time. A part is sent again by the SDK when that
// fails; it is still in memory.
func (s *Store) sendParts(ctx context.Context, u store.Upload, first []byte, r io.Reader) ([]types.CompletedPart, int64, error) {
	g, going := errgroup.WithContext(ctx) // ends with ctx and with the first part that fails
	g.SetLimit(concurrency)
	sending, done := lasting(going)
	defer done()
	var (
		parts   []*types.CompletedPart
		size    int64
		readErr error
		n       = len(first)
	)
	for buf, last := first, false; ; {
		part := &types.CompletedPart{PartNumber: aws.Int32(int32(len(parts) + 1))} //nolint:gosec // at most maxParts, see below
		parts, size = append(parts, part), size+int64(n)
		data := buf
		sent := n
		g.Go(func() error {
			defer s.parts.give(data)
			return s.sendPart(sending, u, part, data[:sent])
		})
		if last {
			break
		}
		if len(parts) == maxParts {
			readErr = fmt.Errorf("it is larger than %d parts of %d bytes", maxParts, len(first))
			break
		}
		if buf, readErr = s.parts.take(going, int64(len(first))); readErr != nil {
			break
		}
		if n, last, readErr = fill(buf, r); going.Err() != nil {
			readErr = cmp.Or(readErr, going.Err())
		}
		if readErr != nil || n == 0 {
			s.parts.give(buf)
			break
		}
	}
	// A failed part ends the wait for memory too, and is then the reason.
	if err := g.Wait(); err != nil {
		return nil, 0, err //nolint:wrapcheck // by sendPart
	}
	if err := cmp.Or(readErr, ctx.Err()); err != nil {
		return nil, 0, err
	}
	completed := make([]types.CompletedPart, len(parts))
	for i, p := range parts {
		completed[i] = *p
	}
	return completed, size, nil
}

func (s *Store) sendPart(ctx context.Context, u store.Upload, part *types.CompletedPart, data []byte) error {
	in := &s3.UploadPartInput{
		Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID, PartNumber: part.PartNumber, Body: bytes.NewReader(data),
	}
	if s.lockSeen.Load() {
		in.ContentMD5 = contentMD5(data)
	}
	out, err := s.client.UploadPart(ctx, in)
	if err != nil {
		return fmt.Errorf("part %d: %w", *part.PartNumber, err)
	}
	part.ETag = out.ETag
	return nil
}

// abortUntilGone aborts an upload. A part that was on its way may be stored after the first abort, and then only a further
// one frees it (S3 API reference, AbortMultipartUpload).
func (s *Store) abortUntilGone(ctx context.Context, u store.Upload) error {
	for {
		if err := s.Abort(ctx, u); err != nil {
			return err
		}
		left, err := s.client.ListParts(ctx, &s3.ListPartsInput{Bucket: &s.cfg.Bucket, Key: &u.Key, UploadId: &u.ID})
		if err != nil || len(left.Parts) == 0 {
			return nil //nolint:nilerr // it is gone, or we may not know; an old one is found by Uploads
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d parts stayed: %w", len(left.Parts), ctx.Err())
		case <-time.After(abortPause):
		}
	}
}
