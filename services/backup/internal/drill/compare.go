package drill

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// maxNamed is how many differences of one kind are named; the rest is counted.
const maxNamed = 10

// note adds one thing looked at to the report.
func (r *run) note(c *lifeboatv1.Comparison) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.What, c.Want, c.Got = short(c.GetWhat()), short(c.GetWant()), short(c.GetGot())
	c.NotComparable = short(c.GetNotComparable())
	r.report.Comparisons = append(r.report.Comparisons, c)
}

// equal compares two texts.
func (r *run) equal(what, want, got string) {
	r.note(&lifeboatv1.Comparison{What: what, Want: want, Got: got, Ok: want == got})
}

// number compares two numbers.
func (r *run) number(what string, want, got int64) {
	r.equal(what, strconv.FormatInt(want, 10), strconv.FormatInt(got, 10))
}

// incomparable notes what was found and why there is nothing to compare it with.
func (r *run) incomparable(what, got, why string) {
	r.note(&lifeboatv1.Comparison{What: what, Got: got, Ok: true, NotComparable: why})
}

// account notes that something was compared with what the source said of itself.
func (r *run) account() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accounted++
}

// count compares with one of the manifest's counts, and keeps the number for the user's checks.
func (r *run) count(name string, got int64) {
	r.keep(name, got)
	if want, known := r.in.Manifest.GetSource().GetCounts()[name]; known {
		r.account()
		r.number(name, want, got)
		return
	}
	r.incomparable(name, strconv.FormatInt(got, 10), "the manifest does not say"+r.missing(name))
}

// keep notes what was counted in the restored data.
func (r *run) keep(name string, got int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found[name] = got
}

// missing is why the source could not tell something, if the manifest has that.
func (r *run) missing(what string) string {
	for _, m := range r.in.Manifest.GetSource().GetMissing() {
		if strings.HasPrefix(m, what+":") {
			return " (" + m + ")"
		}
	}
	return ""
}

// whatRTO is the name of that comparison.
const whatRTO = "rto"

// rto compares the time that the restore took with what the target allows.
func (r *run) rto() {
	most := r.in.Target.Drill.MaxRTO
	if most == 0 {
		return
	}
	took := r.report.GetRto().AsDuration()
	r.note(&lifeboatv1.Comparison{
		What: whatRTO, Want: "at most " + most.String(), Got: took.Round(time.Millisecond).String(), Ok: took <= most,
	})
}

// errUnproven is why a drill fails that has found nothing wrong.
var errUnproven = errors.New("nothing of the restored data could be compared with what the source said: the manifest does not say anything " +
	"that can be")

// verdict is the error of the comparisons: nil when something could be compared, all of that is equal, and every check holds.
func (r *run) verdict() error {
	compared := differences(r.report.GetComparisons(), false)
	checked := differences(r.report.GetComparisons(), true)
	var text []string
	if len(compared) > 0 {
		text = append(text, "the restored data differs: "+strings.Join(capped(compared), "; "))
	}
	if len(checked) > 0 {
		text = append(text, "what drill.checks asks for is not so: "+strings.Join(capped(checked), "; "))
	}
	switch {
	case len(compared) > 0:
		return &fault{phaseCompare, errors.New(strings.Join(text, "; "))}
	case len(checked) > 0:
		return &fault{phaseCheck, errors.New(text[0])}
	case r.accounted == 0:
		return &fault{phaseCompare, errUnproven}
	}
	return nil
}

// differences are the comparisons that failed, in words: the user's checks or the others.
func differences(all []*lifeboatv1.Comparison, checks bool) []string {
	var differ []string
	for _, c := range all {
		if !c.GetOk() && c.GetCheck() == checks {
			differ = append(differ, fmt.Sprintf("%s is %s and should be %s", c.GetWhat(), c.GetGot(), c.GetWant()))
		}
	}
	return differ
}

// capped keeps a list readable.
func capped(all []string) []string {
	if len(all) <= maxNamed {
		return all
	}
	return append(all[:maxNamed:maxNamed], fmt.Sprintf("and %d more", len(all)-maxNamed))
}

const (
	// maxText bounds what one comparison says, and maxFailure what a drill fails with: a name can have half a megabyte, a report goes
	// into an event and that into a chat.
	maxText    = 300
	maxFailure = 4000
)

func short(s string) string { return cut(s, maxText) }

func bounded(s string) string { return cut(s, maxFailure) }

// cut shortens a text to about so many bytes, between two characters, and makes text of what is none: a report is JSON.
func cut(s string, most int) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= most {
		return s
	}
	return fmt.Sprintf("%s... (%d bytes)", strings.ToValidUTF8(s[:most], ""), len(s))
}
