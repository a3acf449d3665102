// Package store is the contract of the place where snapshots are kept: an object store with conditional writes. Its
// implementations are store/s3 and, for tests, store/memstore; both pass store/storetest.
package store

import (
	"context"
	"errors"
	"io"
	"time"
)

// ErrNotFound means that no object has the key.
var ErrNotFound = errors.New("no such object")

// ErrPrecondition means that the object is not as the condition requires it; nothing was written.
var ErrPrecondition = errors.New("the object exists or was changed by somebody else")

// ErrNoBucket means that the bucket itself does not exist. It is not ErrNotFound: nothing is known about any object.
var ErrNoBucket = errors.New("the bucket does not exist")

// ErrDenied means that the credentials are wrong or do not suffice.
var ErrDenied = errors.New("the store denied it")

// ErrLocked means that object lock protects the version.
var ErrLocked = errors.New("object lock protects it")

// Object describes a stored object.
type Object struct {
	Key      string
	Size     int64
	ETag     string
	Modified time.Time
}

// Version is one version of an object, or a delete marker. In a bucket without versioning every object is one version.
type Version struct {
	Object
	// ID is the store's name for it; "" where the store has none.
	ID string
	// Latest: it is what Get returns, or the marker that hides the object.
	Latest bool
	// Marker: it holds no data, and marks the object as deleted.
	Marker bool
}

// Upload is a multipart upload that was begun and neither completed nor aborted.
type Upload struct {
	Key   string
	ID    string
	Begun time.Time
}

// Lock is what object lock says about one version. The zero value is not locked.
type Lock struct {
	// Mode is "GOVERNANCE" or "COMPLIANCE" while Until is in the future.
	Mode  string
	Until time.Time
	// LegalHold has no date.
	LegalHold bool
}

// Held says whether the version is protected at a time.
func (l Lock) Held(now time.Time) bool { return l.LegalHold || now.Before(l.Until) }

// Condition limits a write. The zero value always writes.
type Condition struct {
	// Absent: write only if no object has the key (If-None-Match: *).
	Absent bool
	// ETag: write only if the object has this ETag (If-Match).
	ETag string
}

// As is the condition that an object is still as Head saw it, or still absent when Head returned ErrNotFound.
func As(o Object, err error) (Condition, error) {
	switch {
	case errors.Is(err, ErrNotFound):
		return Condition{Absent: true}, nil
	case err != nil:
		return Condition{}, err
	}
	return Condition{ETag: o.ETag}, nil
}

// Capabilities is what the store was seen to do, not what it claims.
type Capabilities struct {
	Endpoint string
	Bucket   string
	// ConditionalWrites: a second put with If-None-Match: * was refused, and so was the completion of a multipart upload.
	ConditionalWrites bool
	// Versioning is "enabled", "suspended", "off", or "unknown" when the store would not tell.
	Versioning string
	// ObjectLock is "enabled", "off" or "unknown".
	ObjectLock string
	// Checksums: a put with a wrong checksum was refused.
	Checksums bool
	// MultipartAbort: an aborted multipart upload was gone afterwards.
	MultipartAbort bool
}

// Store keeps objects. It is safe for concurrent use. Errors wrap the sentinels above where they apply; any other error
// may be tried again. Calls retry short failures by themselves and end when the context ends.
type Store interface {
	// Put stores what r gives until io.EOF. Nothing is visible under the key before all of it is stored; when r fails or
	// the context ends, nothing is left behind. sizeHint is about how many bytes will come, 0 if unknown. Memory does
	// not grow with the object.
	Put(ctx context.Context, key string, r io.Reader, sizeHint int64, c Condition) (Object, error)
	// Get opens an object. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, Object, error)
	// GetRange opens length bytes of an object from an offset, or all from there when length is negative. With an ETag it
	// returns ErrPrecondition when the object is another one by now. The Object's Size is that of the whole object.
	GetRange(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, Object, error)
	// Head describes an object without reading it.
	Head(ctx context.Context, key string) (Object, error)
	// List calls fn for each object whose key starts with prefix, in the order of keys, until fn returns an error.
	List(ctx context.Context, prefix string, fn func(Object) error) error
	// Probe says what the store does, by trying it with a scratch key below prefix. It needs no right to delete.
	Probe(ctx context.Context, prefix string) (Capabilities, error)
	// Ping says whether the bucket answers.
	Ping(ctx context.Context) error
	Remover
}

// Remover is the part of a store that needs the right to delete. Only prune workers use it.
type Remover interface {
	// Versions calls fn for each version and delete marker whose key starts with prefix, in the order of keys and of one key
	// the newest first, until fn returns an error.
	Versions(ctx context.Context, prefix string, fn func(Version) error) error
	// Lock says how a version is protected.
	Lock(ctx context.Context, v Version) (Lock, error)
	// Remove deletes one version for good, so that its space is freed: a plain delete in a versioned bucket only hides
	// it. It returns ErrLocked for a protected one, and never bypasses a lock. Removing what is gone is no error.
	Remove(ctx context.Context, v Version) error
	// Uploads calls fn for each unfinished multipart upload whose key starts with prefix, until fn returns an error.
	Uploads(ctx context.Context, prefix string, fn func(Upload) error) error
	// Abort frees an upload's parts. Aborting what is gone is no error.
	Abort(ctx context.Context, u Upload) error
}
