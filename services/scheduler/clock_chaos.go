//go:build chaos

package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// offsetFileEnv names the file that holds by how many milliseconds this program's clock is wrong.
	offsetFileEnv = "LIFEBOAT_CHAOS_CLOCK_FILE"
	// The file is read again after this.
	offsetFor = 10 * time.Millisecond
)

// clock is a wall clock that a test sets while the program runs. A file that is not there, or does not hold a number, is no
// offset.
func clock() func() time.Time {
	var (
		mu     sync.Mutex
		offset time.Duration
		read   time.Time
	)
	return func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Sub(read) >= offsetFor {
			content, _ := os.ReadFile(os.Getenv(offsetFileEnv)) //nolint:gosec // a file of the test that starts this program
			ms, _ := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64)
			offset, read = time.Duration(ms)*time.Millisecond, now
		}
		// Without the monotonic reading, which a clock that is set does not keep up with.
		return now.Add(offset).Round(0)
	}
}
