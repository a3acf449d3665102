package throwaway

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	scratchPrefix = "lifeboat-drill-"
	// newPrefix is the name of a folder that is not locked yet. Nothing but the folder itself is ever under that name.
	newPrefix = ".lifeboat-drill-new-"
	// lockedWithin is how long whoever makes a folder may take to lock it: an older one without a lock is a leftover.
	lockedWithin = time.Minute
)

// Scratch is a folder that belongs to one drill. Whoever runs holds a lock on it, which ends with the process however
// that ends: a folder without a lock is a leftover. A process id in the name could have been given to another process.
type Scratch struct {
	dir  string
	lock *os.File
}

// NewScratch removes what earlier drills of dead processes of this user left in parent, ends the servers that they left, and makes a
// folder there.
func NewScratch(parent string) (*Scratch, error) {
	if err := sweep(parent); err != nil {
		return nil, err
	}
	// The folder gets its name only once it is locked: under that name nobody ever sees it without a lock.
	fresh, err := os.MkdirTemp(parent, newPrefix)
	if err != nil {
		return nil, fmt.Errorf("making a scratch folder: %w", err)
	}
	s := &Scratch{dir: fresh}
	if s.lock, err = tryLock(fresh); err != nil {
		return nil, errors.Join(fmt.Errorf("locking a scratch folder: %w", err), s.Remove())
	}
	named := filepath.Join(parent, scratchPrefix+strings.TrimPrefix(filepath.Base(fresh), newPrefix))
	if err := os.Rename(fresh, named); err != nil { //nolint:gosec // names of its own making
		return nil, errors.Join(fmt.Errorf("naming a scratch folder: %w", err), s.Remove())
	}
	s.dir = named
	return s, nil
}

// Dir is the folder.
func (s *Scratch) Dir() string { return s.dir }

// Remove deletes the folder and lets go of its lock.
func (s *Scratch) Remove() error {
	err := os.RemoveAll(s.dir)
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("removing a scratch folder: %w", err)
	}
	return nil
}

// sweep ends the processes and removes the scratch folders of drills that are no more.
func sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return fmt.Errorf("looking for leftovers of earlier drills: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !isLeftover(e) {
			continue
		}
		if err := removeLeftover(filepath.Join(parent, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// isLeftover says whether a folder may be what an earlier drill left, by its name and, where it has not been locked yet, its age.
func isLeftover(e os.DirEntry) bool {
	if !strings.HasPrefix(e.Name(), newPrefix) {
		return strings.HasPrefix(e.Name(), scratchPrefix)
	}
	info, err := e.Info()
	return err == nil && time.Since(info.ModTime()) > lockedWithin
}

// own says whether a folder is this user's. A folder of somebody else's in a shared place, as /tmp is, is none of ours: its list of
// processes could name any, and what cannot be opened must not keep drills from running.
func own(dir string) bool {
	info, err := os.Lstat(dir) //nolint:gosec // a folder in the drill worker's
	if err != nil || !info.IsDir() {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// removeLeftover removes a scratch folder, and all that belongs to it, if it is this user's and its drill is no more.
func removeLeftover(dir string) error {
	if !own(dir) {
		return nil
	}
	left := Scratch{dir: dir}
	var err error
	left.lock, err = tryLock(dir)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK), errors.Is(err, os.ErrNotExist):
		return nil // in use, or its drill has just ended
	case err != nil:
		return fmt.Errorf("looking at the leftovers of an earlier drill: %w", err)
	}
	if err := errors.Join(left.endProcesses(), left.removeFolders(), left.Remove()); err != nil {
		return fmt.Errorf("removing what an earlier drill left: %w", err)
	}
	return nil
}

// tryLock locks a folder. syscall.EWOULDBLOCK means that somebody else has.
func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir) //nolint:gosec // a folder of the drill worker's
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(&os.PathError{Op: "flock", Path: dir, Err: err}, f.Close())
	}
	return f, nil
}

// CheckRoom fails early when the disk cannot hold so many bytes: a full disk would hurt others, too.
func (s *Scratch) CheckRoom(need int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("asking how much room there is: %w", err)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize) //nolint:gosec,unconvert // both fit, and their types differ by platform
	if free < need {
		return fmt.Errorf("%d bytes are needed in the scratch folder and %d are free", need, free)
	}
	return nil
}
