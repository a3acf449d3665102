package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/pipeline"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
)

// objects is what a download needs of a store. A read that breaks goes on by itself for a while.
type objects interface {
	Head(ctx context.Context, key string) (store.Object, error)
	GetRange(ctx context.Context, key string, offset, length int64, etag string) (io.ReadCloser, store.Object, error)
}

// download brings one stored object into a file, in two steps that a crash may come between:
//
//  1. The object's bytes are appended to a partial file beside the destination. Its name holds the digest that the manifest
//     gives for them, so that another snapshot's bytes are never continued. An interruption leaves it; the next run asks the
//     store only for the rest.
//  2. The whole partial file is decoded into a temporary file, both digests are compared, and only then the temporary file
//     gets the destination's name. It is flushed to the disk before that, and the folder after it.
//
// What is kept in between is the stored form: an encrypted snapshot is in clear only in the destination.
type download struct {
	objects objects
	data    *lifeboatv1.Data
	ids     identities
	file    string
	stored  bool
	force   bool
	// out is where progress is shown.
	out io.Writer
}

// partial is the file that holds what has arrived.
func (d *download) partial() string {
	sum := d.data.GetStored().GetSha256()
	return fmt.Sprintf("%s.%s.partial", d.file, sum[:min(12, len(sum))])
}

// have is how many bytes have arrived.
func (d *download) have() int64 {
	info, err := os.Stat(d.partial())
	if err != nil {
		return 0
	}
	return info.Size()
}

// toFile does all of it.
func (d *download) toFile(ctx context.Context) error {
	if err := d.mayWrite(); err != nil {
		return err
	}
	for {
		resumed, err := d.fetch(ctx)
		if err == nil {
			err = d.finish(ctx)
		}
		if !isDamage(err) {
			return err
		}
		// A partial file that is damaged would only be damaged again.
		if removed := os.Remove(d.partial()); removed != nil && !errors.Is(removed, os.ErrNotExist) {
			return errors.Join(err, removed)
		}
		if !resumed {
			return err
		}
		// What the earlier run left may be what is wrong: after a power failure a file can hold what was never written to it.
		fmt.Fprintf(d.out, "%v; fetching all of it once more\n", err)
	}
}

// mayWrite refuses what cannot end well before anything is downloaded.
func (d *download) mayWrite() error {
	info, err := os.Lstat(d.file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at %s: %w", d.file, err)
	case info.IsDir():
		return console.Usagef("%s is a folder; name a file with -o", d.file)
	case !d.force:
		return console.Usagef("%s exists already; name another file with -o, or replace it with --force", d.file)
	}
	return nil
}

// fetch completes the partial file. resumed says that an earlier run had begun it.
func (d *download) fetch(ctx context.Context) (resumed bool, err error) {
	o, err := d.objects.Head(ctx, d.data.GetKey())
	if err != nil {
		return false, err
	}
	want := d.data.GetStored().GetBytes()
	if o.Size != want {
		return false, fmt.Errorf("%w: %s has %d bytes, the manifest says %d", pipeline.ErrDamaged, o.Key, o.Size, want)
	}
	file, err := os.OpenFile(d.partial(), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("opening the partial file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close(), d.dropEmpty()) }()
	offset, err := file.Seek(0, io.SeekEnd)
	if err == nil && offset > want {
		offset, err = 0, errors.Join(file.Truncate(0), rewind(file))
	}
	if err != nil {
		return false, fmt.Errorf("reading the partial file: %w", err)
	}
	if offset == want {
		return true, nil
	}
	what := "fetching"
	if offset > 0 {
		what = fmt.Sprintf("resuming at %s", size(offset))
	}
	bar := newProgress(d.out, what, want-offset)
	defer bar.end()
	body, _, err := d.objects.GetRange(ctx, o.Key, offset, -1, o.ETag)
	if err != nil {
		return offset > 0, err
	}
	_, err = io.Copy(file, io.TeeReader(body, bar))
	return offset > 0, errors.Join(err, body.Close())
}

func rewind(file *os.File) error {
	_, err := file.Seek(0, io.SeekStart)
	return err
}

// dropEmpty leaves nothing behind when nothing has arrived.
func (d *download) dropEmpty() error {
	info, err := os.Stat(d.partial())
	if err == nil && info.Size() == 0 {
		return os.Remove(d.partial())
	}
	return nil
}

// finish turns the whole partial file into the destination.
func (d *download) finish(ctx context.Context) (err error) {
	partial, err := os.Open(d.partial())
	if err != nil {
		return fmt.Errorf("opening the partial file: %w", err)
	}
	defer func() { err = errors.Join(err, partial.Close()) }()
	bar := newProgress(d.out, "checking", d.data.GetStored().GetBytes())
	defer bar.end()
	bytes := io.TeeReader(&cancelled{ctx, partial}, bar)
	if d.stored {
		if err = pipeline.Check(bytes, d.data.GetStored()); err != nil {
			return err
		}
		if err = partial.Sync(); err != nil {
			return fmt.Errorf("flushing the partial file: %w", err)
		}
		return d.place(d.partial())
	}
	temporary, err := d.decode(bytes)
	if err == nil {
		err = d.place(temporary)
	}
	if err != nil {
		if temporary != "" {
			err = errors.Join(err, os.Remove(temporary))
		}
		return err
	}
	return os.Remove(d.partial())
}

// decode writes the source's bytes to a temporary file in the destination's folder, readable by its owner only. It returns
// the file's name, also with an error once the file exists.
func (d *download) decode(stored io.Reader) (name string, err error) {
	file, err := os.CreateTemp(filepath.Dir(d.file), "."+filepath.Base(d.file)+".*")
	if err != nil {
		return "", fmt.Errorf("making a temporary file: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := decodeTo(file, stored, d.data, d.ids); err != nil {
		return file.Name(), err
	}
	if err := file.Sync(); err != nil {
		return file.Name(), fmt.Errorf("flushing %s: %w", file.Name(), err)
	}
	return file.Name(), nil
}

// place gives a finished file the destination's name.
func (d *download) place(finished string) error {
	if err := d.rename(finished); err != nil {
		return fmt.Errorf("naming the finished file: %w", err)
	}
	return syncFolder(filepath.Dir(d.file))
}

// rename leaves a file that came to be there meanwhile, unless --force: a link fails where a rename would replace it.
func (d *download) rename(finished string) error {
	if d.force {
		return os.Rename(finished, d.file)
	}
	err := os.Link(finished, d.file)
	if err == nil {
		return os.Remove(finished)
	}
	if refused := d.mayWrite(); refused != nil {
		return refused
	}
	return os.Rename(finished, d.file) // a file system without links
}

// syncFolder makes a new name last through a power failure.
func syncFolder(name string) error {
	folder, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("opening the folder: %w", err)
	}
	if err := errors.Join(folder.Sync(), folder.Close()); err != nil {
		return fmt.Errorf("flushing the folder: %w", err)
	}
	return nil
}

// cancelled reads until its context ends: reading a local file knows nothing of Ctrl-C.
type cancelled struct {
	ctx context.Context //nolint:containedctx // lives for one copy
	r   io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// isDamage tells what is wrong with the stored data from what is wrong with reaching it.
func isDamage(err error) bool {
	return errors.Is(err, pipeline.ErrDamaged) || errors.Is(err, store.ErrNotFound)
}

func isUsage(err error) bool {
	_, ok := errors.AsType[*service.UsageError](err)
	return ok
}
