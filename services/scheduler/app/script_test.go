package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/scheduler/app"
)

func root() *cobra.Command {
	cmd := &cobra.Command{Use: "lifeboat"}
	cmd.AddCommand(app.ScheduleCommand())
	return cmd
}

// lab is a NATS server with the streams, and a person who looks into them.
type lab struct {
	server *natstest.Server
	bus    *bus.Bus
}

type labKey struct{}

// TestScheduleCommands runs the scripts under testdata/script, each with a NATS server of its own and a lifeboat.yaml whose path
// is in $CONFIG. Besides testscript's own words they have these:
//
//	exits CODE lifeboat ARGUMENT...  runs the command in this process and expects exactly this exit code
//	put TARGET SCHEDULE FILE         writes a schedule's state as a scheduler would
//	state TARGET SCHEDULE            prints a schedule's state
//	event VERB TARGET                prints the newest event schedule.VERB of a target
//	envsubst FILE                    puts the environment's variables into a file
//	nats stop|start                  stops the server and starts it again
func TestScheduleCommands(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"), RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			l, err := newLab(e.WorkDir)
			if err != nil {
				return err
			}
			e.Defer(func() {
				l.server.Stop()
				l.bus.Close() // fails to flush to a server that is gone
			})
			e.Values[labKey{}] = l
			e.Setenv("URL", l.server.URL())
			e.Setenv("CONFIG", filepath.Join(e.WorkDir, "lifeboat.yaml"))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": scriptExits,
			"put": func(ts *testscript.TestScript, _ bool, args []string) {
				state := &lifeboatv1.ScheduleState{}
				ts.Check(protojson.Unmarshal([]byte(ts.ReadFile(args[2])), state))
				_, err := scriptLab(ts).bus.PutState(context.Background(), bus.State{
					Outgoing: bus.Outgoing{Subject: bus.ScheduleSubject(args[0], args[1]), Message: state},
				})
				ts.Check(err)
			},
			"state": func(ts *testscript.TestScript, _ bool, args []string) {
				printLast(ts, bus.StreamJobs, bus.ScheduleSubject(args[0], args[1]), &lifeboatv1.ScheduleState{})
			},
			"event": func(ts *testscript.TestScript, _ bool, args []string) {
				printLast(ts, bus.StreamEvents, bus.EventSubject("schedule", args[0], args[1]), &lifeboatv1.Event{})
			},
			"envsubst": func(ts *testscript.TestScript, _ bool, args []string) {
				path := ts.MkAbs(args[0])
				ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(path), ts.Getenv)), 0o600))
			},
			"nats": func(ts *testscript.TestScript, _ bool, args []string) {
				if args[0] == "stop" {
					scriptLab(ts).server.Stop()
					return
				}
				ts.Check(scriptLab(ts).server.Restart())
			},
		},
	})
}

func newLab(dir string) (*lab, error) {
	server, err := natstest.Start(filepath.Join(dir, ".nats"), -1)
	if err != nil {
		return nil, err
	}
	b, err := bus.Connect(bus.Options{
		Config: config.NATS{URL: server.URL()}, Actor: "test", Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return &lab{server: server, bus: b}, b.EnsureStreams(ctx)
}

func scriptLab(ts *testscript.TestScript) *lab {
	l, ok := ts.Value(labKey{}).(*lab)
	if !ok {
		ts.Fatalf("the script has no server")
	}
	return l
}

func scriptExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := root()
	// A script knows its own folder and the server's address only.
	cmd.SetArgs(args[2:])
	cmd.SetOut(ts.Stdout())
	cmd.SetErr(ts.Stderr())
	if got := service.Main(cmd); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// printLast prints the newest message of a subject as one line, or "none".
func printLast(ts *testscript.TestScript, stream, subject string, into proto.Message) {
	seq, _, err := scriptLab(ts).bus.Last(context.Background(), stream, subject, into)
	ts.Check(err)
	if seq == 0 {
		_, err = fmt.Fprintln(ts.Stdout(), "none")
		ts.Check(err)
		return
	}
	data, err := protojson.Marshal(into)
	ts.Check(err)
	var line bytes.Buffer
	ts.Check(json.Compact(&line, data)) // the library's own spaces differ from build to build
	_, err = fmt.Fprintln(ts.Stdout(), line.String())
	ts.Check(err)
}

// Every command says by example how it is used, and completes its arguments.
func TestEveryScheduleCommandHasAnExample(t *testing.T) {
	group := app.ScheduleCommand()
	assert.NotEmpty(t, group.Example)
	for _, c := range group.Commands() {
		assert.NotEmpty(t, c.Example, c.CommandPath())
		assert.NotEmpty(t, c.Long, c.CommandPath())
		require.NotNil(t, c.ValidArgsFunction, c.CommandPath())
		for line := range strings.SplitSeq(c.Example, "\n") {
			assert.Contains(t, line, "lifeboat schedule "+c.Name())
		}
	}
}

// Before any scheduler has made the streams nothing can be paused, and that is said; the ticks are shown all the same.
func TestScheduleCommandsBeforeAnyScheduler(t *testing.T) {
	path := writeConfig(t, natstest.New(t).URL(), 1, "@hourly")
	run := func(args ...string) (code int, out, errs string) {
		var stdout, stderr bytes.Buffer
		cmd := root()
		cmd.SetArgs(slices.Concat([]string{"schedule"}, args, []string{"-c", path}))
		cmd.SetOut(&stdout)
		cmd.SetErr(&stderr)
		code = service.Main(cmd)
		return code, stdout.String(), stderr.String()
	}
	code, out, errs := run("pause", "t-0", "--reason", "x")
	assert.Equal(t, service.ExitFailed, code)
	assert.Empty(t, out)
	assert.Contains(t, errs, "pausing snapshot of t-0: ")
	assert.Contains(t, errs, "is a scheduler running that has made the streams?")
	code, out, errs = run("next", "--limit", "1")
	assert.Equal(t, service.ExitDone, code)
	assert.Contains(t, out, "t-0")
	assert.Contains(t, errs, "pauses and waiting ticks are not known: ")
}
