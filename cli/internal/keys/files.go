package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const folderMode fs.FileMode = 0o700

func mode(secret bool) fs.FileMode {
	if secret {
		return 0o600
	}
	return 0o644
}

// makeFolders makes a folder and some in it, for its owner alone. Those that are there keep their mode.
func makeFolders(dir string, below ...string) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(dir)), 0o755); err != nil { //nolint:gosec // what is above the folder is not ours
		return fmt.Errorf("making the folder for keys: %w", err)
	}
	for _, name := range append([]string{""}, below...) {
		err := os.Mkdir(filepath.Join(dir, name), folderMode)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the folder for keys: %w", err)
		}
	}
	return nil
}

func read(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading what is there: %w", err)
	}
	return b, nil
}

// exposed says whether others than its owner can read a file, and its mode: its own permissions let them, and those of no folder above it
// keep them from getting there. Who keeps a folder to himself, as the one that the keys are made in, may let others read what is in it:
// containers read it there as users of their own.
func exposed(path string) (mode fs.FileMode, open bool, err error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err == nil {
		resolved, err = filepath.Abs(resolved)
	}
	if err != nil {
		return 0, false, fmt.Errorf("looking at who may read %s: %w", path, err)
	}
	permissions := func(name string) (fs.FileMode, error) {
		info, failed := os.Stat(name)
		if failed != nil {
			return 0, fmt.Errorf("looking at who may read %s: %w", path, failed)
		}
		return info.Mode().Perm(), nil
	}
	if mode, err = permissions(resolved); err != nil || mode&0o077 == 0 {
		return mode, false, err
	}
	for dir := filepath.Dir(resolved); ; dir = filepath.Dir(dir) {
		above, failed := permissions(dir)
		if failed != nil || above&0o011 == 0 {
			return mode, false, failed
		}
		if dir == filepath.Dir(dir) {
			return mode, true, nil
		}
	}
}

// ensure returns a file's content, and makes it by generate if it is not there. What is there is never written to, also when it came
// to be meanwhile.
func ensure(path string, mode fs.FileMode, generate func() ([]byte, error)) (content []byte, made bool, err error) {
	content, err = read(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return content, false, err
	}
	if content, err = generate(); err != nil {
		return nil, false, fmt.Errorf("making %s: %w", path, err)
	}
	err = create(path, mode, content)
	if errors.Is(err, fs.ErrExist) {
		content, err = read(path)
		return content, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("making %s: %w", path, err)
	}
	return content, true, nil
}

// create makes a file appear whole, with exactly this mode, or returns fs.ErrExist. A link, as against a rename, replaces nothing.
func create(path string, mode fs.FileMode, content []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncFolder(dir)
}

// syncFolder makes a new name survive a power failure.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
