package drill

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// summary says in a person's words how a drill ended, what was done and what was not, a line each: the verdict comes first. It goes
// into events, alerts and chats, so it is bounded, and after a failure it says what to do.
func summary(rep *lifeboatv1.DrillReport, failure error) string {
	var s []string
	add := func(format string, args ...any) { s = append(s, fmt.Sprintf(format, args...)) }
	about := fmt.Sprintf("The drill of snapshot %s of %s", rep.GetSnapshotId(), rep.GetTarget())
	restored := reached(rep)
	if rep.GetPassed() {
		add("%s passed: %s.", about, restored)
	} else {
		add("%s failed in the phase %s: %s.", about, cmp.Or(rep.GetFailedPhase(), "unknown"),
			strings.TrimSuffix(strings.TrimPrefix(rep.GetFailure(), rep.GetFailedPhase()+": "), "."))
		add("What to do: %s.", advice(rep, failure))
		add("How far it went: %s.", restored)
	}
	if rep.GetDataAge() != nil {
		add("Age of the data: %s.", rough(rep.GetDataAge().AsDuration()))
	}
	equal, held, skipped := compared(rep)
	if len(equal) > 0 {
		add("Equal to the manifest: %s.", strings.Join(capped(equal), ", "))
	}
	if held > 0 {
		add("Checks of the target that hold: %d.", held)
	}
	if rep.GetIdentity() == IdentityEscrow && rep.GetPassed() {
		add("The escrow identity decrypted it.")
	}
	if len(skipped) > 0 {
		add("Could not be compared: %s.", strings.Join(capped(skipped), "; "))
	}
	return cut(strings.Join(s, "\n"), maxSummary)
}

// reached is how far the restore went.
func reached(rep *lifeboatv1.DrillReport) string {
	switch phase := rep.GetFailedPhase(); {
	case rep.GetLevel() == lifeboatv1.DrillReport_LEVEL_RESTORED:
		return fmt.Sprintf("a throwaway %s server%s ran with the restored data after %s%s", kindName(rep.GetKind()),
			isolated(rep.GetIsolation()), rough(rep.GetRto().AsDuration()), allowed(rep))
	case phase == phaseRestore, phase == phaseStart:
		return "no throwaway server ran with the restored data"
	}
	return "nothing was restored"
}

// maxSummary bounds a summary, of which a failure is a part.
const maxSummary = 2 * maxFailure

func isolated(by string) string {
	switch by {
	case "":
		return ""
	case inProcess:
		return " (in the worker's process)"
	}
	return " (isolated by " + by + ")"
}

func allowed(rep *lifeboatv1.DrillReport) string {
	if rep.GetMaxRto() == nil {
		return ""
	}
	return " (max_rto is " + rep.GetMaxRto().AsDuration().String() + ")"
}

// rough rounds a duration to what a person reads.
func rough(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// compared sorts what was looked at: what is equal, how many checks hold, and what cannot be compared and why.
func compared(rep *lifeboatv1.DrillReport) (equal []string, held int, skipped []string) {
	for _, c := range rep.GetComparisons() {
		switch {
		case c.GetNotComparable() != "":
			skipped = append(skipped, fmt.Sprintf("%s (%s)", c.GetWhat(), c.GetNotComparable()))
		case c.GetOk() && c.GetCheck():
			held++
		case c.GetOk() && c.GetWant() != "0" && c.GetWhat() != whatRTO: // that there was none is no news, and no manifest has an RTO
			equal = append(equal, c.GetWhat())
		}
	}
	return equal, held, skipped
}

// advice is what a person does about a drill that failed.
func advice(rep *lifeboatv1.DrillReport, failure error) string {
	target := rep.GetTarget()
	again := "lifeboat drill run " + target
	fresh := fmt.Sprintf("take a fresh snapshot and drill that: lifeboat snapshot run %s, then %s", target, again)
	if text := adviceOnMeans(failure, again); text != "" {
		return text
	}
	switch rep.GetFailedPhase() {
	case phaseManifest:
		return "leave the snapshot as it is, and see who wrote into the bucket; its earlier versions or the second bucket may have a good " +
			"manifest. Meanwhile " + fresh
	case phaseFetch:
		return "leave the object as it is; the bucket's earlier versions or the second bucket may have a good one, and lifeboat snapshot verify " +
			target + " tells what else is damaged. Meanwhile " + fresh
	case phaseDecrypt:
		return adviceOnKeys(rep, fresh)
	case phasePrepare, phaseStart, phaseStop:
		return "look at the machine that the drill ran on; the snapshot itself was not judged. Then run " + again
	case phaseRestore:
		return "keep the snapshot, and see whether the cause is the machine (its scratch folder) or the data. If it is the data, " + fresh
	case phaseCheck:
		return "see whether the data is wrong or what drill.checks says. If something is gone, look for an older snapshot that has it: " + again +
			" with oldest or an id"
	}
	return "keep the snapshot: what it restores is not what its source said. To have a proven one again, " + fresh
}

// adviceOnMeans is about drills that failed for what they were given, whatever the phase; empty for others.
func adviceOnMeans(failure error, again string) string {
	_, slow := errors.AsType[*timeoutError](failure)
	_, large := errors.AsType[*throwaway.BudgetError](failure)
	switch {
	case slow || large:
		return "a restore would need as much: give it more room (drill.timeout, drill.max_disk_mib, drill.max_memory_mib) or a larger machine, " +
			"then run " + again
	case errors.Is(failure, throwaway.ErrDiskFull), errors.Is(failure, syscall.ENOSPC):
		return "free some disk, or give the worker a larger --scratch-dir, then run " + again
	case errors.Is(failure, errUnproven):
		return "take a fresh snapshot and drill that; if its manifest does not say more, lifeboat snapshot show tells what its source could not tell"
	case errors.Is(failure, errInClear):
		return "see that encryption.recipients holds the escrow recipient, take a fresh snapshot, and drill that one: " + again + " --identity escrow"
	case errors.Is(failure, throwaway.ErrNoBinary):
		return "install the server on every drill worker, then run " + again
	}
	return ""
}

// adviceOnKeys is about snapshots that do not decrypt.
func adviceOnKeys(rep *lifeboatv1.DrillReport, fresh string) string {
	if rep.GetIdentity() == IdentityEscrow {
		return "find the identity that belongs to the escrow recipient and put it where drill.escrow.identity_file says; without it nobody can " +
			"decrypt any snapshot once the worker's identity is lost"
	}
	return "see that encryption.identity_file of the drill worker holds the identity of one of the recipients. If it does, " + fresh
}
