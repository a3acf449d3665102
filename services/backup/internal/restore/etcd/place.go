package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// place is where a data directory is built, and where it will be. As it is built beside its destination, it gets its name in one
// step, and nobody ever sees half of it there.
type place struct {
	dir  string
	temp string // holds all there is while it is built
	data string // the data directory, within temp
	// lock is on temp, and ends with the process however that ends: what is there without a lock is a leftover.
	lock *os.File
	// owner is that of what was at dir; nil when nothing was.
	owner *syscall.Stat_t
}

const (
	tempSuffix  = ".restoring"
	asideSuffix = ".before-"
	asideTime   = "20060102T150405Z"
)

// claim looks at the destination and makes an empty place to build in.
func claim(dir string, force bool) (*place, error) {
	dir, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	p := &place{dir: dir, temp: dir + tempSuffix}
	p.data = filepath.Join(p.temp, "data")
	if err = p.inspect(force); err != nil {
		return nil, errors.Join(err, p.sweep())
	}
	if err = os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("making the folder that %s is in: %w", dir, err)
	}
	if err = os.Mkdir(p.temp, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making a folder to restore in: %w", err)
	}
	if err = p.take(); err != nil {
		return nil, err
	}
	return p, p.empty()
}

// resolve follows a link at the destination: what it points to is replaced, and not the link.
func resolve(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("the data directory: %w", err)
	}
	if info, lerr := os.Lstat(dir); lerr != nil || info.Mode()&fs.ModeSymlink == 0 {
		return dir, nil //nolint:nilerr // nothing is there, and whatever else is wrong shows when it is made
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", fmt.Errorf("the data directory is a link: %w", err)
	}
	return dir, nil
}

// inspect says whether the destination may be replaced.
func (p *place) inspect(force bool) error {
	info, err := os.Stat(p.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the data directory: %w", err)
	case !info.IsDir():
		return fmt.Errorf("%s is there and is no folder", p.dir)
	}
	if p.owner, err = stat(info); err != nil {
		return err
	}
	up, err := os.Stat(filepath.Dir(p.dir))
	if err != nil {
		return fmt.Errorf("looking at the folder of the data directory: %w", err)
	}
	if above, serr := stat(up); serr != nil || above.Dev != p.owner.Dev {
		return errors.Join(serr, fmt.Errorf("%s is where a file system is mounted, and cannot be replaced: name a folder within it, "+
			"and let etcd's --data-dir be that one", p.dir))
	}
	if err = inUse(databaseOf(p.dir)); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("looking into the data directory: %w", err)
	}
	if len(entries) > 0 && !force {
		return fmt.Errorf("%s exists and is not empty: name another folder, or force it, which moves that one aside", p.dir)
	}
	return nil
}

func stat(info fs.FileInfo) (*syscall.Stat_t, error) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("the system does not tell whose %s is", info.Name())
	}
	return st, nil
}

// inUse is an error when an etcd runs on a database. etcd keeps a lock on it (flock in bbolt).
func inUse(db string) error {
	f, err := os.Open(db)
	if err != nil {
		return nil // no database, so that nobody runs on it
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("an etcd is running on %s: stop it first", db)
	}
	return nil
}

// errTaken is why a place cannot be had.
var errTaken = errors.New("another restore into the same data directory is running")

// take locks the place. It may be that of another one, which is just about to end and to remove it.
func (p *place) take() error {
	f, err := os.Open(p.temp)
	if err != nil {
		return fmt.Errorf("opening the folder to restore in: %w", err)
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("locking %s: %w", p.temp, cmpErr(err)), f.Close())
	}
	mine, err := f.Stat()
	there, terr := os.Stat(p.temp)
	if err != nil || terr != nil || !os.SameFile(mine, there) {
		return errors.Join(errTaken, err, f.Close())
	}
	p.lock = f
	return nil
}

func cmpErr(err error) error {
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errTaken
	}
	return err
}

// empty removes what an interrupted run left.
func (p *place) empty() error {
	entries, err := os.ReadDir(p.temp)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(p.temp, e.Name())))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("removing what an interrupted restore left: %w", err), p.abandon())
	}
	return nil
}

// sweep removes what an interrupted run left, where no other one is to follow.
func (p *place) sweep() error {
	if _, err := os.Stat(p.temp); err != nil || p.take() != nil {
		return nil //nolint:nilerr // nothing is there, or it is in use
	}
	return p.abandon()
}

// abandon removes the place.
func (p *place) abandon() error {
	err := os.RemoveAll(p.temp)
	if p.lock != nil {
		err = errors.Join(err, p.lock.Close())
		p.lock = nil
	}
	return err
}

// commit gives the data directory its name. What is there is moved aside first; should this be interrupted in between, the next run
// finds nothing there and begins again.
func (p *place) commit(o DataDir) error {
	if err := p.settle(o); err != nil {
		return errors.Join(err, p.abandon())
	}
	err := p.abandon()
	if !o.Volatile {
		err = errors.Join(err, syncDir(filepath.Dir(p.dir)))
	}
	if err != nil {
		return fmt.Errorf("the data directory %s is whole, but: %w", p.dir, err)
	}
	return nil
}

func (p *place) settle(o DataDir) error {
	// Somebody may have put something there meanwhile.
	if err := p.inspect(o.Force); err != nil {
		return err
	}
	if p.owner != nil {
		if err := p.giveTo(p.owner); err != nil {
			return err
		}
	}
	if !o.Volatile {
		for dir := filepath.Dir(databaseOf(p.data)); dir != p.temp; dir = filepath.Dir(dir) {
			if err := syncDir(dir); err != nil {
				return err
			}
		}
	}
	// An empty one is removed and not replaced, as Go's Rename refuses that.
	aside := ""
	err := os.Remove(p.dir)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
		if aside, err = p.moveAside(); err == nil && o.MovedAside != nil {
			o.MovedAside(aside)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clearing the place of the data directory: %w", err)
	}
	if err := os.Rename(p.data, p.dir); err != nil {
		return fmt.Errorf("naming the data directory: %w%s", err, wasAt(aside))
	}
	return nil
}

func wasAt(aside string) string {
	if aside == "" {
		return ""
	}
	return "; what was there is now " + aside
}

// moveAside gives what is at the destination a name that tells when.
func (p *place) moveAside() (string, error) {
	first := p.dir + asideSuffix + time.Now().UTC().Format(asideTime)
	to := first
	for n := 2; ; n++ {
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			return to, os.Rename(p.dir, to)
		} else if err != nil {
			return "", err
		}
		to = fmt.Sprintf("%s-%d", first, n)
	}
}

// giveTo makes the new one belong to whom the one before belonged: a restore is often run by root, and etcd is not.
func (p *place) giveTo(owner *syscall.Stat_t) error {
	if int(owner.Uid) == os.Geteuid() && int(owner.Gid) == os.Getegid() {
		return nil
	}
	// Within a root, so that nobody who owns a folder above can have the owner of something else changed.
	root, err := os.OpenRoot(p.data)
	if err != nil {
		return fmt.Errorf("opening the data directory: %w", err)
	}
	err = fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, werr error) error {
		if werr != nil {
			return werr
		}
		return root.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
	if err = errors.Join(err, root.Close()); err != nil {
		return fmt.Errorf("giving the data directory to whom the one before belonged: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// checkRoom fails early when the disk cannot hold so many bytes.
func checkRoom(dir string, need int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("asking how much room there is at %s: %w", dir, err)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize) //nolint:gosec,unconvert // both fit, and their types differ by platform
	if free < need {
		return fmt.Errorf("the restore needs %d bytes at %s and %d are free", need, filepath.Dir(dir), free)
	}
	return nil
}
