package throwaway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"
)

const (
	// lookEvery is how often a drill's use of disk and memory is measured.
	lookEvery = 200 * time.Millisecond
	// fullDisk is how little room is as good as none.
	fullDisk = 1 << 20
	// blockSize is the unit of st_blocks, whatever the file system's own is; stat(2).
	blockSize = 512
)

// Budget is what a drill may use, in bytes. Zero is no limit.
type Budget struct {
	// DiskBytes is what the scratch folder takes on disk.
	DiskBytes int64
	// MemoryBytes is memory that no file stands behind: what this process grew by, and what the followed processes have.
	MemoryBytes int64
}

// BudgetError is the cause with which a drill ends that used too much.
type BudgetError struct {
	// What is "disk" or "memory".
	What        string
	Used, Limit int64
}

// Error names both figures.
func (e *BudgetError) Error() string {
	return fmt.Sprintf("the drill used %s of %s, its budget is %s",
		humanize.IBytes(uint64(max(0, e.Used))), e.What, humanize.IBytes(uint64(max(0, e.Limit))))
}

// ErrDiskFull is the cause with which a drill ends when the file system of its scratch folder is full.
var ErrDiskFull = errors.New("the disk of the drill's scratch folder is full")

// Watch measures what a drill uses.
type Watch struct {
	dir    string
	budget Budget
	cancel context.CancelCauseFunc
	base   int64 // this process's memory at the beginning
	ended  chan struct{}
	done   chan struct{}
	stop   sync.Once

	mu                   sync.Mutex
	roots                []int
	peakDisk, peakMemory int64
}

// Watch measures the folder and this process until Stop. The context that it returns ends with a *BudgetError, or ErrDiskFull, as
// its cause when either is used up.
func (s *Scratch) Watch(ctx context.Context, b Budget) (context.Context, *Watch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &Watch{
		dir: s.dir, budget: b, cancel: cancel, base: anonMemory(os.Getpid()),
		ended: make(chan struct{}), done: make(chan struct{}),
	}
	go w.run()
	return ctx, w
}

// Follow adds a process and its descendants to what is measured. It may have ended.
func (w *Watch) Follow(pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.roots = append(w.roots, pid)
}

// Stop ends the measuring, after a last look, and the context. It may be called again.
func (w *Watch) Stop() {
	w.stop.Do(func() { close(w.ended) })
	<-w.done
}

// Peak is the most that was used at any look, in bytes.
func (w *Watch) Peak() (disk, memory int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.peakDisk, w.peakMemory
}

func (w *Watch) run() {
	defer close(w.done)
	defer w.cancel(nil)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		w.look()
		select {
		case <-tick.C:
		case <-w.ended:
			w.look()
			return
		}
	}
}

// look measures once.
func (w *Watch) look() {
	disk := diskUse(w.dir)
	w.mu.Lock()
	defer w.mu.Unlock()
	memory := anonMemory(os.Getpid()) - w.base
	pids, err := family(w.roots)
	if err != nil {
		pids = w.roots
	}
	for _, pid := range pids {
		memory += anonMemory(pid)
	}
	w.peakDisk, w.peakMemory = max(w.peakDisk, disk), max(w.peakMemory, memory)
	switch {
	case w.budget.DiskBytes > 0 && disk > w.budget.DiskBytes:
		w.cancel(&BudgetError{What: "disk", Used: disk, Limit: w.budget.DiskBytes})
	case w.budget.MemoryBytes > 0 && memory > w.budget.MemoryBytes:
		w.cancel(&BudgetError{What: "memory", Used: memory, Limit: w.budget.MemoryBytes})
	case isFull(w.dir):
		w.cancel(ErrDiskFull)
	}
}

// diskUse is how many bytes are allocated to what is in a folder, as du counts. Files that go while it counts are no error.
func diskUse(dir string) int64 {
	var sum int64
	//nolint:errcheck,gosec // the function has no error to give
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it has just been removed
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it has just been removed
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += int64(st.Blocks) * blockSize //nolint:unconvert // its type differs by platform
		}
		return nil
	})
	return sum
}

// isFull is whether next to nothing can be written.
func isFull(dir string) bool {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return false
	}
	return int64(st.Bavail)*int64(st.Bsize) < fullDisk //nolint:gosec,unconvert // both fit, and their types differ by platform
}
