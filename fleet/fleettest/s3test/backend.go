package s3test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/s3"       //nolint:depguard // the types of the server's own interfaces
	"github.com/aws/aws-sdk-go-v2/service/s3/types" //nolint:depguard // the types of the server's own interfaces
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// backend opens the folders and makes the buckets.
func (s *Server) backend(ctx context.Context, o options) (backend.Backend, error) {
	var dirs []string
	for _, b := range o.buckets {
		dirs = append(dirs, filepath.Join(s.Dir, b))
	}
	if o.versioning {
		s.VersionsDir = filepath.Join(s.dir, "versions")
		dirs = append(dirs, s.VersionsDir)
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return nil, fmt.Errorf("making the S3 server's folder: %w", err)
		}
	}
	opts := posix.PosixOpts{Concurrency: 256, VersioningDir: s.VersionsDir}
	metadata, err := s.metadata(o, &opts)
	if err != nil {
		return nil, err
	}
	be, err := posix.New(s.Dir, metadata, opts)
	if err != nil {
		return nil, fmt.Errorf("opening the S3 server's folder: %w", err)
	}
	for _, b := range o.buckets {
		if o.versioning {
			if err := be.PutBucketVersioning(ctx, b, types.BucketVersioningStatusEnabled); err != nil {
				return nil, fmt.Errorf("switching on the versioning of bucket %s: %w", b, err)
			}
		}
		if o.lock {
			lock, err := json.Marshal(auth.BucketLockConfig{Enabled: true})
			if err != nil {
				return nil, fmt.Errorf("switching on the object lock of bucket %s: %w", b, err)
			}
			if err := be.PutObjectLockConfiguration(ctx, b, lock); err != nil {
				return nil, fmt.Errorf("switching on the object lock of bucket %s: %w", b, err)
			}
		}
	}
	s.space = &space{Backend: be, left: -1}
	return s.space, nil
}

// metadata is where ETags and the like are kept: in a sidecar, because extended attributes are missing on some file
// systems and are lost when a test replaces a file. With versions the attributes are needed where there are any: a sidecar
// keeps the attributes of what was removed, so that an object that is put where a delete marker was becomes a marker too.
func (s *Server) metadata(o options, opts *posix.PosixOpts) (meta.MetadataStorer, error) {
	if o.versioning && (meta.XattrMeta{}).Test(s.Dir) == nil {
		return meta.XattrMeta{}, nil
	}
	opts.SideCarDir = filepath.Join(s.dir, "metadata")
	if err := os.MkdirAll(opts.SideCarDir, 0o750); err != nil {
		return nil, fmt.Errorf("making the S3 server's folder: %w", err)
	}
	sidecar, err := meta.NewSideCar(opts.SideCarDir)
	if err != nil {
		return nil, fmt.Errorf("opening the S3 server's metadata: %w", err)
	}
	return sidecar, nil
}

// space is a backend that can be full. It answers as the posix backend does for ENOSPC.
type space struct {
	backend.Backend
	mu   sync.Mutex
	left int64
}

// SetSpace says how many bytes may still be written; a negative number lifts the limit. Beyond it the server answers as
// it does when its disk is full.
func (s *Server) SetSpace(bytes int64) {
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	s.space.left = bytes
}

// take reads what does not fit, as a disk does that is full only after a while.
func (s *space) take(n int64, body io.Reader) error {
	s.mu.Lock()
	fits := s.left < 0 || n <= s.left
	if fits && s.left >= 0 {
		s.left -= n
	}
	s.mu.Unlock()
	if fits {
		return nil
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return fmt.Errorf("reading what does not fit: %w", err)
	}
	return s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice)
}

// PutObject implements backend.Backend.
func (s *space) PutObject(ctx context.Context, in s3response.PutObjectInput) (s3response.PutObjectOutput, error) {
	if err := s.take(length(in.ContentLength), in.Body); err != nil {
		return s3response.PutObjectOutput{}, err
	}
	return s.Backend.PutObject(ctx, in) //nolint:wrapcheck // the server tells its errors apart by type
}

// UploadPart implements backend.Backend.
func (s *space) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	if err := s.take(length(in.ContentLength), in.Body); err != nil {
		return nil, err
	}
	return s.Backend.UploadPart(ctx, in) //nolint:wrapcheck // the server tells its errors apart by type
}

func length(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}
