package config

import (
	"fmt"
	"regexp"
	"strings"
)

// What Drill.Snapshot may say, besides nothing.
const (
	SnapshotLatest = "latest"
	SnapshotOldest = "oldest"
	SnapshotRandom = "random"
)

// maxChecks keeps a report, which has each check, within what is read of one (maxDocument of the catalog).
const maxChecks = 1000

// drill checks what a target says about its drills. Its schedules are checked with the others.
func (c *checker) drill(key string, t Target) {
	d := t.Drill
	c.oneOf(key+".snapshot", d.Snapshot, SnapshotLatest, SnapshotOldest, SnapshotRandom)
	if d.MaxRTO < 0 {
		c.add(key+".max_rto", "must not be negative")
	}
	if d.Timeout < 0 {
		c.add(key+".timeout", "must not be negative")
	}
	limit := d.Timeout
	if limit == 0 {
		limit = defaultDrillLimit
	}
	if d.MaxRTO > limit && d.Timeout >= 0 {
		c.add(key+".max_rto", "is %s, and a drill ends after drill.timeout, %s: such an RTO is never seen", d.MaxRTO, limit)
	}
	if d.MaxDiskMiB < 0 {
		c.add(key+".max_disk_mib", "must not be negative; 0 is no limit")
	}
	if d.MaxMemoryMiB < 0 {
		c.add(key+".max_memory_mib", "must not be negative; 0 is no limit")
	}
	if d.Escrow.Schedule != "" && d.Escrow.IdentityFile == "" {
		c.add(key+".escrow", "has a schedule and no identity_file to decrypt with")
	}
	if len(d.Checks) > maxChecks {
		c.add(key+".checks", "has %d checks, and a report has room for %d", len(d.Checks), maxChecks)
		return
	}
	for i, k := range d.Checks {
		c.drillCheck(fmt.Sprintf("%s.checks[%d]", key, i), t, k)
	}
}

// drillCheck checks one of drill.checks.
func (c *checker) drillCheck(key string, t Target, k Check) {
	var about []string
	for _, f := range []struct{ name, value string }{
		{"key", k.Key}, {"prefix", k.Prefix}, {"count", k.Count}, {"job", k.Job},
	} {
		if f.value != "" {
			about = append(about, f.name)
		}
	}
	if len(about) != 1 {
		found := "none"
		if len(about) > 1 {
			found = strings.Join(about, " and ")
		}
		c.add(key, "needs exactly one of key, prefix, count and job; it has %s", found)
		return
	}
	c.checkFits(key, about[0], t)
	c.checkValue(key, k)
	if k.Min < 0 {
		c.add(key+".min", "must not be negative")
	}
	switch about[0] {
	case "key", "job":
		if k.Min != 0 {
			c.add(key+".min", "goes with prefix or count")
		}
	case "count":
		if k.Min == 0 {
			c.add(key, "count needs a min of at least 1: everything has at least none")
		}
	}
	if k.Namespace != "" && k.Job == "" {
		c.add(key+".namespace", "goes with job")
	}
}

// checkFits says when the target's kind has no such thing.
func (c *checker) checkFits(key, about string, t Target) {
	kind := t.Kind()
	switch {
	case kind == "": // said already
	case about == "job" && kind != "nomad":
		c.add(key+".job", "a target of kind %s has no jobs; use key, prefix or count", kind)
	case (about == "key" || about == "prefix") && kind == "nomad":
		c.add(key+"."+about, "a target of kind nomad has no keys; use job or count")
	}
}

// checkValue checks what is said about a key's value.
func (c *checker) checkValue(key string, k Check) {
	var said []string
	if k.Value != nil {
		said = append(said, "value")
	}
	if k.ValueFile != "" {
		said = append(said, "value_file")
	}
	if k.Matches != "" {
		said = append(said, "matches")
	}
	switch {
	case len(said) > 0 && k.Key == "":
		c.add(key+"."+said[0], "goes with key")
	case len(said) > 1:
		c.add(key, "%s exclude each other", strings.Join(said, " and "))
	}
	if _, err := regexp.Compile(k.Matches); err != nil {
		c.add(key+".matches", "%v", err)
	}
}
