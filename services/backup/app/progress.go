package app

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
)

// progress shows how far long work is, with its rate and the time left: on a terminal only, and never on the stream that
// carries the result.
type progress struct{ bar *progressbar.ProgressBar }

// newProgress shows bytes out of total.
func newProgress(out io.Writer, what string, total int64) *progress {
	return &progress{progressbar.NewOptions64(max(total, 1),
		progressbar.OptionSetVisibility(console.IsTerminal(out)),
		progressbar.OptionSetWriter(out),
		progressbar.OptionSetDescription(what),
		progressbar.OptionSetWidth(20),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionShowCount(),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// newThings shows how many things out of total were gone through; a spinner while total is 0, which is not known yet.
func newThings(out io.Writer, what string, total int64) *progress {
	if total == 0 {
		total = -1
	}
	return &progress{progressbar.NewOptions64(total,
		progressbar.OptionSetVisibility(console.IsTerminal(out)),
		progressbar.OptionSetWriter(out),
		progressbar.OptionSetDescription(what),
		progressbar.OptionSetWidth(20),
		progressbar.OptionShowCount(),
		progressbar.OptionShowIts(),
		progressbar.OptionSetElapsedTime(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)}
}

// set says how many things were gone through.
func (p *progress) set(n int64) { _ = p.bar.Set64(n) }

// add counts n more bytes. A bar that cannot be drawn is no reason to stop.
func (p *progress) add(n int64) { _ = p.bar.Add64(n) }

// Write counts what passes, for an io.TeeReader.
func (p *progress) Write(b []byte) (int, error) {
	p.add(int64(len(b)))
	return len(b), nil
}

// describe says what is being worked on now.
func (p *progress) describe(what string) { p.bar.Describe(what) }

// end takes the bar away.
func (p *progress) end() { _ = p.bar.Clear() }
