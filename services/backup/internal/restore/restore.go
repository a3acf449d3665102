// Package restore brings a snapshot, or a part of one, into a destination. Its subpackages do it for etcd, Consul KV and Nomad;
// drills restore with the same code into throwaway servers, so that what is rehearsed is what a person would run.
//
// The rules are the same for every kind:
//
//   - What is not there is created, only if it is still absent at that moment.
//   - What is there and equal is left, so that a restore which was interrupted can be run again.
//   - What is there and differs may be newer than the snapshot. It is left and named, unless Force is set; then it is replaced
//     only as it was seen (check-and-set), and read again when somebody else was quicker.
//   - What is only at the destination is never touched.
//   - A whole restore into a destination that holds something else than the snapshot does is refused before anything is
//     written, unless Force is set.
package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Action is what becomes of one thing.
type Action string

// What a restore does, or leaves.
const (
	// Create: it is not at the destination.
	Create Action = "create"
	// Change: it differs there, and Force is set.
	Change Action = "change"
	// Differs: it differs there, and is left.
	Differs Action = "differs"
	// Same: it is there already.
	Same Action = "same"
	// Extra: it is only at the destination, within what is being restored. It is left.
	Extra Action = "extra"
	// Skip: it is left out on purpose, and Detail says why: a key of a lease that nobody holds, a token whose secret no snapshot
	// has. It counts as not restored.
	Skip Action = "skip"
	// Failed: it could not be restored, or not be brought into a form that the destination takes.
	Failed Action = "failed"
)

// Item is one thing of a plan.
type Item struct {
	// Kind is "key", "job", "namespace", "variable", ...
	Kind string
	// Name is its name at the destination; a Nomad job's is "<namespace>/<id>".
	Name   string
	Action Action
	// Detail says what differs, with every value masked: "value 12 B -> 40 B, flags 0 -> 3".
	Detail string
	// Err is why it Failed. It names no value.
	Err error
}

// Open gives the snapshot's data as the source sent it. The reader returns io.EOF only if all of it came and is what the manifest
// says. It may be called several times, one after the other.
type Open func(ctx context.Context) (io.ReadCloser, error)

// Options of a restore of any kind.
type Options struct {
	// Apply writes; otherwise nothing but the plan is made.
	Apply bool
	// Force replaces what differs, and lets a whole restore into a destination that is not empty.
	Force bool
	// Item is told each thing once it is decided (and done, with Apply), one call at a time, in the order of the data; nil when
	// nobody wants to know.
	Item func(Item)
	// Progress is told how many things were gone through so far, and how many there are; total is 0 while that is not known. Calls
	// come one at a time and may be many. It may be nil.
	Progress func(done, total int64)
}

// Summary counts what became of the things.
type Summary struct {
	Created int64 `json:"created"`
	Changed int64 `json:"changed"`
	Same    int64 `json:"same"`
	Differs int64 `json:"differs"`
	Extra   int64 `json:"extra"`
	Skipped int64 `json:"skipped"`
	Failed  int64 `json:"failed"`
	// Bytes is how much of the snapshot's content was gone through.
	Bytes int64 `json:"bytes"`
}

// Restored is how many of the snapshot's things are at the destination as the snapshot has them.
func (s Summary) Restored() int64 { return s.Created + s.Changed + s.Same }

// Left is how many are not.
func (s Summary) Left() int64 { return s.Differs + s.Skipped + s.Failed }

// Add counts one thing.
func (s *Summary) Add(a Action) {
	switch a {
	case Create:
		s.Created++
	case Change:
		s.Changed++
	case Same:
		s.Same++
	case Differs:
		s.Differs++
	case Extra:
		s.Extra++
	case Skip:
		s.Skipped++
	case Failed:
		s.Failed++
	}
}

// Rename puts things under another name: a key that begins with Old gets New instead of it.
type Rename struct{ Old, New string }

// ErrNotEmpty means that a whole restore was refused: the destination holds what the snapshot does not, or holds otherwise. Nothing
// was written. Summary, which is returned with it, says how much.
var ErrNotEmpty = errors.New("the destination is not empty")

// NotEmpty is ErrNotEmpty in words.
func NotEmpty(s Summary) error {
	return fmt.Errorf("%w: %d things there differ from the snapshot and %d are not in it", ErrNotEmpty, s.Differs, s.Extra)
}

// Recorder passes items and progress on, one call at a time, and counts. The zero value with Options set is ready.
type Recorder struct {
	Options Options

	mu      sync.Mutex
	summary Summary
}

// Item counts one thing and passes it on.
func (r *Recorder) Item(i Item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Add(i.Action)
	if r.Options.Item != nil {
		r.Options.Item(i)
	}
}

// Bytes counts content.
func (r *Recorder) Bytes(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.summary.Bytes += n
}

// Progress passes on how far it is.
func (r *Recorder) Progress(done, total int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Options.Progress != nil {
		r.Options.Progress(done, total)
	}
}

// Summary is what was counted so far.
func (r *Recorder) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.summary
}
