package nomad

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

const (
	// maxFile is more than Nomad itself can carry in one object.
	maxFile = 64 << 20
	// endMark is the zeros that end a tar: without them it was cut between two files.
	endMark = 1024
)

// role is what a file is to a restore.
type role int

const (
	roleObject     role = iota
	roleSubmission      // of a job
	roleHistory         // a version of a job, or its submission: JSON that is not restored
	roleText            // the same as another file says, in another form
	roleUnknown
)

// file is one file of the archive, by what its path says.
type file struct {
	path string
	role role
	kind *kind
	name name // of an object and of a submission
}

// escape is how source/nomad makes one path element of a name.
func escape(s string) string {
	s = url.PathEscape(s)
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return s
}

// unescape is the name that escape makes an element of. Another spelling of the same name is refused: two files could be of one thing.
func unescape(element string) (string, error) {
	s, err := url.PathUnescape(element)
	if err != nil || s == "" || escape(s) != element {
		return "", fmt.Errorf("%q is no name as a backup writes it", element)
	}
	return s, nil
}

// classify says what a file is. It fails for what no backup of any version writes.
func classify(kinds []*kind, p string) (file, error) {
	if !fs.ValidPath(p) || p == "." {
		return file{}, errors.New("it is no path inside an archive")
	}
	f := file{path: p, role: roleUnknown}
	i := slices.IndexFunc(kinds, func(k *kind) bool { return k.owns(p) })
	if i < 0 {
		return f, nil
	}
	f.kind = kinds[i]
	names, ending, err := elements(p)
	if err != nil {
		return file{}, err
	}
	names = names[strings.Count(f.kind.dir, "/"):]
	switch {
	case f.kind.id == kindJob:
		f.job(names, ending)
	case f.kind.id == kindPolicy && len(names) == 1 && ending == ".hcl":
		f.role = roleText
	case ending != ".json":
	case f.kind.spaced && len(names) == 2:
		f.role, f.name = roleObject, name{names[0], names[1]}
	case !f.kind.spaced && len(names) == 1:
		f.role, f.name = roleObject, name{id: names[0]}
	}
	return f, nil
}

// elements are the names that a path is made of, and the ending of the last one, which is no part of a name.
func elements(p string) (names []string, ending string, err error) {
	last := path.Base(p)
	for _, e := range []string{".json", ".hcl"} {
		if strings.HasSuffix(last, e) && last != e {
			ending = e
			break
		}
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(p, ending), "/") {
		n, err := unescape(part)
		if err != nil {
			return nil, "", err
		}
		names = append(names, n)
	}
	return names, ending, nil
}

// job classifies what is below jobs/.
func (f *file) job(names []string, ending string) {
	if len(names) < 3 {
		return
	}
	f.name = name{names[0], names[1]}
	switch rest := strings.Join(names[2:], "/") + ending; {
	case rest == "job.json":
		f.role = roleObject
	case rest == "submission.json":
		f.role = roleSubmission
	case rest == "job.nomad.hcl", rest == "job.nomad.json":
		f.role = roleText
	case len(names) == 4 && names[2] == "versions" && strings.HasSuffix(rest, ".nomad"+ending):
		f.role = roleText
	case len(names) == 4 && names[2] == "versions" && ending == ".json":
		f.role = roleHistory
	}
}

// tail remembers how many zeros the data ended with.
type tail struct {
	r     io.Reader
	zeros int
}

func (t *tail) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	kept := len(bytes.TrimRight(p[:n], "\x00"))
	if kept > 0 {
		t.zeros = 0
	}
	t.zeros += n - kept
	return n, err
}

// pass reads the archive once, to its end. Of the files that want names, each gets the content, which is valid until it returns.
func pass(
	ctx context.Context, open restore.Open, kinds []*kind, want func(file) bool, each func(f file, body []byte) error,
) (err error) {
	rc, err := open(ctx)
	if err != nil {
		return fmt.Errorf("opening the snapshot's data: %w", err)
	}
	defer func() {
		if cerr := rc.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("closing the snapshot's data: %w", cerr)
		}
	}()
	end := &tail{r: rc}
	tr := tar.NewReader(end)
	var body bytes.Buffer
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return damaged(ctx, "the archive", err)
		}
		f, err := examine(kinds, h)
		if err != nil {
			return damaged(ctx, fmt.Sprintf("the archive's file %q", h.Name), err)
		}
		if !want(f) {
			continue
		}
		body.Reset()
		if _, err := body.ReadFrom(tr); err != nil {
			return damaged(ctx, "the archive's file "+f.path, err)
		}
		if err := each(f, body.Bytes()); err != nil {
			return err
		}
	}
	// What comes after the last file is nothing, but the data is whole only once its reader has said so.
	if _, err := io.Copy(io.Discard, end); err != nil {
		return damaged(ctx, "the end of the archive", err)
	}
	if end.zeros < endMark {
		return damaged(ctx, "the archive", errors.New("it was cut: the mark at its end is missing"))
	}
	return nil
}

func examine(kinds []*kind, h *tar.Header) (file, error) {
	switch {
	case h.Typeflag != tar.TypeReg:
		return file{}, errors.New("it is no plain file")
	case h.Size > maxFile:
		return file{}, fmt.Errorf("it has %d bytes, and nothing in Nomad has more than %d", h.Size, maxFile)
	}
	return classify(kinds, h.Name)
}

// damaged is why the data cannot be used. What a reader says of an end that is missing or of a context that ended is said as it is.
func damaged(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("reading %s: %w; the snapshot's data is damaged or did not all come: try another copy of it, "+
		"or another snapshot", what, err)
}

// thing is one object of the snapshot as its file holds it.
type thing struct {
	kind       *kind
	name       name
	label      string // its name for a person
	body       []byte
	submission []byte
}

func (t thing) size() int { return len(t.body) + len(t.submission) }

// object decodes the file and checks that it holds what its path says.
func (t thing) object() (object, error) {
	o, err := t.kind.decode(t.body)
	if err != nil {
		// The decoder's words may hold a piece of what it read.
		return nil, errors.New("it does not hold JSON of its kind")
	}
	if t.kind.identity != nil && !t.kind.identity(t.name, o) {
		return nil, errors.New("it holds another object than its path says")
	}
	return o, nil
}

// assembler makes things of files: a job is two.
type assembler struct {
	emit func(thing) error
	job  *thing
	same map[name]int // how many of the same content there were, for kinds without names
}

func newAssembler(emit func(thing) error) *assembler {
	return &assembler{emit: emit, same: make(map[name]int)}
}

func (a *assembler) add(f file, body []byte) error {
	if a.job != nil && (f.kind != a.job.kind || f.name != a.job.name) {
		if err := a.flush(); err != nil {
			return err
		}
	}
	if f.kind.id != kindJob {
		return a.single(thing{kind: f.kind, name: f.name, body: bytes.Clone(body)}, f.path)
	}
	if a.job == nil {
		a.job = &thing{kind: f.kind, name: f.name, label: f.name.String()}
	}
	if f.role == roleObject && a.job.body != nil || f.role == roleSubmission && a.job.submission != nil {
		return fmt.Errorf("reading the archive: the file %s is in it twice", f.path)
	}
	if f.role == roleSubmission {
		a.job.submission = bytes.Clone(body)
	} else {
		a.job.body = bytes.Clone(body)
	}
	return nil
}

// single passes on what is one file. Of some kinds, the name comes from the content: Nomad makes their ids anew.
func (a *assembler) single(t thing, file string) error {
	o, err := t.object()
	if err != nil {
		return fmt.Errorf("reading the archive's file %s: %w; nothing more is restored from damaged data", file, err)
	}
	t.label = t.name.String()
	if t.kind.naming != nil {
		t.label = t.kind.label(t.name, o)
		t.name = numbered(a.same, t.kind.naming(o))
	}
	return a.emit(t)
}

// flush passes on the job that was gathered.
func (a *assembler) flush() error {
	t := a.job
	if a.job = nil; t == nil {
		return nil
	}
	dir := path.Join("jobs", escape(t.name.space), escape(t.name.id))
	if t.body == nil {
		return fmt.Errorf("reading the archive: %s/job.json is missing, or does not stand by its submission", dir)
	}
	if _, err := t.object(); err != nil {
		return fmt.Errorf("reading the archive's file %s/job.json: %w; nothing more is restored from damaged data", dir, err)
	}
	if t.submission != nil && !json.Valid(t.submission) {
		return fmt.Errorf("reading the archive's file %s/submission.json: it is no JSON", dir)
	}
	return a.emit(*t)
}

// numbered tells the second thing of the same content from the first.
func numbered(seen map[name]int, n name) name {
	seen[n]++
	if seen[n] > 1 {
		n.id += fmt.Sprintf(" (%d)", seen[n])
	}
	return n
}
