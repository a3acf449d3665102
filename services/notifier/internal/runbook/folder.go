package runbook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

const (
	pageExt = ".md"
	// maxPage bounds what is read of a page. A runbook is a few kilobytes.
	maxPage = 1 << 20
	// maxKnown bounds the pages and links that are remembered.
	maxKnown = 1000
	// complainEvery is how often the log says again that the folder cannot be read.
	complainEvery = time.Minute
)

// folder reads pages_dir. What was read of a page is kept until its file is another one, so a new version of a page counts at once.
type folder struct {
	log *slog.Logger
	now func() time.Time

	mu         sync.Mutex
	known      map[knownPage]readPage
	complained time.Time
}

// knownPage is the same text for the same addresses: links in a page are relative to its own.
type knownPage struct{ dir, path, fragment, link string }

type readPage struct {
	info  fs.FileInfo
	steps []notice.Step
}

func newFolder(log *slog.Logger, now func() time.Time) *folder {
	return &folder{log: log, now: now, known: map[knownPage]readPage{}}
}

// find returns the first of some pages that exists. looked is false when there is no folder to look into. One that cannot be read
// is treated so as well: a volume that is not mounted must not make every alert one without a runbook.
func (f *folder) find(ctx context.Context, dir string, files []pageFile) (found *pageFile, looked bool) {
	if dir == "" {
		return nil, false
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		f.complain(ctx, err)
		return nil, false
	}
	defer root.Close()
	for _, file := range files {
		// Through the root, so that neither a path nor a symbolic link leads out of the folder.
		if info, err := root.Stat(file.path); err == nil && info.Mode().IsRegular() {
			return &file, true
		}
	}
	return nil, true
}

func (f *folder) complain(ctx context.Context, err error) {
	f.mu.Lock()
	now := f.now()
	quiet := !f.complained.IsZero() && now.Sub(f.complained) < complainEvery
	if !quiet {
		f.complained = now
	}
	f.mu.Unlock()
	if !quiet {
		f.log.WarnContext(ctx, "notifier.runbooks.pages_dir cannot be read, messages come without first steps", slog.Any("error", err))
	}
}

// steps reads a page's first steps; none when it has no heading for them or cannot be read.
func (f *folder) steps(ctx context.Context, dir string, file pageFile, link string) []notice.Step {
	key := knownPage{dir, file.path, file.fragment, link}
	f.mu.Lock()
	before, known := f.known[key]
	f.mu.Unlock()
	src, info, err := readFile(dir, file.path, before.info)
	if known && err == nil && src == nil {
		return before.steps
	}
	read := readPage{info: info}
	if err != nil {
		f.log.WarnContext(ctx, "a runbook page was left out", slog.String("page", file.path), slog.Any("error", err))
	} else {
		read.steps, _ = steps(src, file.fragment, link)
	}
	if info == nil {
		return nil // it may be there again the next time
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.known) >= maxKnown {
		clear(f.known) // fewer alerts than that have names
	}
	f.known[key] = read
	return read.steps
}

// readFile reads a page of the folder; nothing, without an error, when the file is the one that was read before. info is nil when the
// file could not be opened.
func readFile(dir, path string, before fs.FileInfo) (src []byte, info fs.FileInfo, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the folder of runbooks: %w", err)
	}
	defer root.Close()
	// Without waiting: somebody may have put a pipe there.
	file, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a runbook: %w", err)
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return nil, nil, fmt.Errorf("opening a runbook: %w", err)
	}
	if before != nil && os.SameFile(before, info) && before.Size() == info.Size() && before.ModTime().Equal(info.ModTime()) {
		return nil, info, nil
	}
	if !info.Mode().IsRegular() {
		return nil, info, errors.New("it is not a file")
	}
	src, err = io.ReadAll(io.LimitReader(file, maxPage+1))
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("reading a runbook: %w", err)
	case len(src) > maxPage:
		return nil, info, fmt.Errorf("it is larger than %d bytes", maxPage)
	case !utf8.Valid(src):
		return nil, info, errors.New("it is not in UTF-8")
	case intricate(src):
		return nil, info, errors.New("a line or a paragraph of it has thousands of brackets, stars or quote marks")
	}
	return src, info, nil
}
