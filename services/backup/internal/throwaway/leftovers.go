package throwaway

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// processList is the file of a scratch folder that lists the processes of its drill, folderList that of further scratch folders,
// which are elsewhere.
const processList, folderList = ".processes", ".folders"

// procID names a process for as long as the machine runs, and never another one: a number alone is given again.
type procID struct {
	pid int
	// started is when, in clock ticks since the boot, as /proc/<pid>/stat has it.
	started uint64
	// space is the namespace that the number is of, and the boot: two containers may share a scratch folder.
	space string
}

// record adds a process to the list, so that a later drill can end it. One that is gone already needs nobody to.
func (s *Scratch) record(pid int) error {
	id, err := identify(pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("noting a process of the drill: %w", err)
	}
	if err := s.note(processList, fmt.Sprintf("%d %d %s\n", id.pid, id.started, id.space)); err != nil {
		return fmt.Errorf("noting a process of the drill: %w", err)
	}
	return nil
}

// recordFolder adds another scratch folder of the same drill to the list, so that a later drill can remove it.
func (s *Scratch) recordFolder(other *Scratch) error {
	if err := s.note(folderList, other.dir+"\n"); err != nil {
		return fmt.Errorf("noting a folder of the drill: %w", err)
	}
	return nil
}

func (s *Scratch) note(list, line string) error {
	f, err := os.OpenFile(filepath.Join(s.dir, list), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line)
	return errors.Join(err, f.Close())
}

// removeFolders removes what is left of the folders on the list. As with any, the lock tells whether it is a leftover.
func (s *Scratch) removeFolders() error {
	b, err := os.ReadFile(filepath.Join(s.dir, folderList))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for line := range strings.Lines(string(b)) {
		if dir, whole := strings.CutSuffix(line, "\n"); whole && strings.HasPrefix(filepath.Base(dir), scratchPrefix) {
			errs = append(errs, removeLeftover(dir))
		}
	}
	return errors.Join(errs...)
}

// endProcesses kills what is left of the processes on the list. The folder's lock must be held: its drill is no more.
func (s *Scratch) endProcesses() error {
	f, err := os.Open(filepath.Join(s.dir, processList))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var id procID
		// A line that is no such line was being written when its writer was killed.
		if n, _ := fmt.Sscanf(lines.Text(), "%d %d %s", &id.pid, &id.started, &id.space); n == 3 {
			errs = append(errs, id.kill())
		}
	}
	return errors.Join(errs...)
}

// kill ends the process and waits until it is gone. Nothing happens when it is gone, or the number is somebody else's.
func (id procID) kill() error {
	// From here on the process is held by a descriptor: what is compared is what is killed.
	p, err := os.FindProcess(id.pid)
	if err != nil {
		return fmt.Errorf("finding process %d: %w", id.pid, err)
	}
	defer p.Release() //nolint:errcheck // nothing was written
	if !id.alive() {
		return nil
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending process %d, which an earlier drill left: %w", id.pid, err)
	}
	return id.wait()
}

// wait waits until the process is gone.
func (id procID) wait() error {
	tick, timeout := time.NewTicker(5*time.Millisecond), time.NewTimer(killTime)
	defer tick.Stop()
	defer timeout.Stop()
	for id.alive() {
		select {
		case <-tick.C:
		case <-timeout.C:
			return fmt.Errorf("process %d was killed and is not gone after %s", id.pid, killTime)
		}
	}
	return nil
}

// alive is whether that very process still runs. A zombie does not.
func (id procID) alive() bool {
	now, err := identify(id.pid)
	return err == nil && now == id
}

// statFields are the fields of a line of /proc/<pid>/stat after the name, which may hold anything: state is the first, field 3
// of proc(5).
func statFields(stat string) []string {
	_, rest, _ := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	return strings.Fields(rest)
}
