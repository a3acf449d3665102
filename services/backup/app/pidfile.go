package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// pidFile says which process a worker is, for those who send it signals. The process holds a lock on it (flock) while it lives, so that
// a number that is left there, and may be another process's by now, is not taken for it. What it does is in a second file beside it
// while it drains. The zero value is no file.
type pidFile struct {
	path string
	file *os.File
}

// drainState is what a draining worker says of itself in that second file.
type drainState struct {
	PID      int              `json:"pid"`
	Draining bool             `json:"draining"`
	Jobs     []worker.Running `json:"jobs"`
	// Pulling: a job may still come, which was on its way when the drain began.
	Pulling bool `json:"pulling,omitempty"`
	// HandedBack are jobs that another worker does, because this one was stopped before they had ended.
	HandedBack int `json:"handed_back"`
}

// idle says whether nothing runs, and nothing more will.
func (s drainState) idle() bool { return len(s.Jobs) == 0 && !s.Pulling }

const (
	// lockPatience is how long a lock that somebody holds is tried: whoever asks whether it is held has it for a moment.
	lockPatience = time.Second
	lockEvery    = 20 * time.Millisecond
)

// errLocked says that a process holds the file.
var errLocked = errors.New("held by a process")

// statePath is the file beside a pid file.
func statePath(path string) string { return path + ".state" }

// holdPIDFile writes the process's number into the file and holds it until release. An empty path is no file.
func holdPIDFile(path string) (p *pidFile, err error) {
	if path == "" {
		return &pidFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // a pid is no secret
	if err != nil {
		return nil, fmt.Errorf("opening the pid file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	deadline := time.Now().Add(lockPatience)
	for try := time.NewTicker(lockEvery); ; <-try.C {
		if err = flock(f, syscall.LOCK_EX); err == nil {
			try.Stop()
			break
		}
		if !errors.Is(err, errLocked) || time.Now().After(deadline) {
			try.Stop()
			return nil, fmt.Errorf("another worker has %s: give each a --pid-file of its own: %w", path, err)
		}
	}
	if err = os.Remove(statePath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) { // an earlier process's
		return nil, fmt.Errorf("removing what an earlier worker left: %w", err)
	}
	number := strconv.Itoa(os.Getpid()) + "\n"
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(number), 0)
	}
	if err != nil {
		return nil, fmt.Errorf("writing the pid file %s: %w", path, err)
	}
	return &pidFile{path: path, file: f}, nil
}

// flock takes a lock, or returns errLocked at once.
func flock(f *os.File, how int) error {
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

// tell writes what the worker does.
func (p *pidFile) tell(s drainState) error {
	if p.file == nil {
		return nil
	}
	s.PID = os.Getpid()
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// By a rename, so that whoever reads it finds one or the other.
	f, err := os.CreateTemp(filepath.Dir(p.path), "."+filepath.Base(p.path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), statePath(p.path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// release lets go of the file. It stays, because another process may be waiting for its lock; and so does what was told last.
func (p *pidFile) release() error {
	if p.file == nil {
		return nil
	}
	return errors.Join(p.file.Truncate(0), p.file.Close())
}

// peekPIDFile is the number of the process that holds a pid file; 0 when none does.
func peekPIDFile(path string) (pid int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	switch err = flock(f, syscall.LOCK_SH); {
	case err == nil:
		return 0, nil // closing it lets go of the lock
	case !errors.Is(err, errLocked):
		return 0, fmt.Errorf("looking whether a process holds %s: %w", path, err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid < 1 {
		return 0, fmt.Errorf("%s holds no number of a process (yet)", path)
	}
	return pid, nil
}

// peekState is what the worker of a pid file says of itself, if it is that process.
func peekState(path string, pid int) (drainState, bool) {
	var s drainState
	b, err := os.ReadFile(statePath(path))
	if err != nil || json.Unmarshal(b, &s) != nil || s.PID != pid {
		return drainState{}, false
	}
	return s, s.Draining
}
