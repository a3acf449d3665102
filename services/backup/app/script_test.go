package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

type labKey struct{}

// scripts is where they are. The S3 server changes the process's working folder, so it is found out before.
var scripts, errScripts = filepath.Abs(filepath.Join("testdata", "script"))

// TestCommands runs the scripts under testdata/script, each against its own prefix of one bucket. Besides testscript's own
// words they have these:
//
//	commit VAR [encrypted] [snap] [keys=N] [unchanged=ID]   makes a snapshot and sets VAR to its id
//	drilled ID passed|failed                                adds the report of a drill
//	flip ID                                                 changes a bit of the stored data
//	lose ID                                                 takes the stored data away
//	corrupt ID                                              makes the manifest unreadable
//	copied ID                                               puts the snapshot into the second bucket as well
//	exits CODE lifeboat ARGUMENT...                         runs the command and expects exactly this exit code
func TestCommands(t *testing.T) {
	require.NoError(t, errScripts)
	server := s3test.New(t, s3test.WithBuckets("copies"))
	testscript.Run(t, testscript.Params{
		Dir: scripts, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			l, err := newLab(server, filepath.Base(e.WorkDir), e.WorkDir)
			if err != nil {
				return err
			}
			e.Values[labKey{}] = l
			e.Setenv("RECIPIENT", l.identity.Recipient().String())
			e.Setenv("PREFIX", l.prefix)
			e.Setenv("ENDPOINT", server.Endpoint)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"commit": scriptCommit, "exits": scriptExits,
			"drilled": onSnapshot(func(l *lab, m *lifeboatv1.Manifest, args []string) error {
				return l.drilled(context.Background(), m, args[0] == "passed")
			}),
			"flip": onSnapshot(func(l *lab, m *lifeboatv1.Manifest, _ []string) error { return l.flip(m.Data.Key) }),
			"lose": onSnapshot(func(_ *lab, m *lifeboatv1.Manifest, _ []string) error { return os.Remove(server.Path(m.Data.Key)) }),
			"corrupt": onSnapshot(func(l *lab, m *lifeboatv1.Manifest, _ []string) error {
				return os.WriteFile(server.Path(l.catalog.Layout.Manifest(m.Target, m.Id)), []byte("{"), 0o600)
			}),
			"copied": onSnapshot(func(l *lab, m *lifeboatv1.Manifest, _ []string) error {
				return l.copyTo(context.Background(), m, "copies", "elsewhere")
			}),
		},
	})
}

func scriptLab(ts *testscript.TestScript) *lab {
	l, ok := ts.Value(labKey{}).(*lab)
	if !ok {
		ts.Fatalf("the script has no bucket")
	}
	return l
}

func scriptCommit(ts *testscript.TestScript, _ bool, args []string) {
	l := scriptLab(ts)
	p := plan{raw: fmt.Appendf(nil, "%s %d %0*d", l.prefix, l.made.Load(), 2000, 0), keys: 3}
	for _, a := range args[1:] {
		var id string
		switch _, err := fmt.Sscanf(a, "unchanged=%s", &id); {
		case a == "encrypted":
			p.encrypted = true
		case a == "snap":
			p.snap = []byte("raft snapshot\n")
		case err == nil:
			p.unchanged, err = l.catalog.Manifest(context.Background(), etcdTarget, id)
			ts.Check(err)
		default:
			_, err = fmt.Sscanf(a, "keys=%d", &p.keys)
			ts.Check(err)
		}
	}
	m, err := l.commit(context.Background(), p)
	ts.Check(err)
	ts.Setenv(args[0], m.Id)
}

// onSnapshot is a word whose first argument is a snapshot's id.
func onSnapshot(do func(*lab, *lifeboatv1.Manifest, []string) error) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, args []string) {
		l := scriptLab(ts)
		m, err := l.catalog.Find(context.Background(), etcdTarget, args[0])
		ts.Check(err)
		ts.Check(do(l, m, args[1:]))
	}
}

func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// Every command says by example how it is used, and refuses what it does not know as wrong usage.
func TestEveryCommandHasAnExample(t *testing.T) {
	for _, group := range root().Commands() {
		commands := group.Commands()
		if !group.HasAvailableSubCommands() {
			commands = append(commands, group)
		}
		for _, c := range commands {
			if c.Hidden {
				continue
			}
			assert.NotEmpty(t, c.Example, c.CommandPath())
			assert.NotEmpty(t, c.Short, c.CommandPath())
			if c.Name() != "lifeboat-backup" {
				require.NotNil(t, c.ValidArgsFunction, c.CommandPath())
			}
		}
	}
}
