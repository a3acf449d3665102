package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/worker"
)

// drainLook is how often the command looks what a worker still does. The worker writes a small file when that changes.
const drainLook = 100 * time.Millisecond

// drainCommand is `lifeboat-backup drain`.
func drainCommand() *cobra.Command {
	var file string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "drain", Short: "Let a worker on this machine end what it does and take no more jobs, and wait until nothing runs",
		Long: "drain sends SIGUSR1 to the worker that was started with the same --pid-file, and waits until nothing runs there any more. Unlike\n" +
			"SIGTERM it hands nothing back: jobs at hand go on for as long as they need, also those that wait for one of the fleet's places.\n" +
			"The worker then stays up and ready, without taking jobs, until it is stopped; only another start makes it take jobs again.\n" +
			"When --timeout is over, or with Ctrl-C, the waiting ends, and the draining does not. Run it where the worker runs (in its container).",
		Example: "  lifeboat-backup drain --pid-file /run/lifeboat/backup.pid\n" +
			"  lifeboat-backup drain --pid-file /run/lifeboat/backup.pid --timeout 30m && systemctl stop lifeboat-backup\n" +
			"  kill -USR1 \"$(cat /run/lifeboat/backup.pid)\"    # the same, without waiting",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file == "" {
				return console.Usagef("--pid-file: name the file that the worker was started with")
			}
			if timeout < 0 {
				return console.Usagef("--timeout: %s is less than nothing", timeout)
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("--timeout %s is over", timeout))
				defer cancel()
			}
			return drain(ctx, file, cmd.OutOrStdout())
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&file, "pid-file", "", "`file` that the worker was started with")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait until nothing runs (default: until Ctrl-C)")
	return cmd
}

// drain tells the worker of a pid file to drain, and waits until nothing runs there.
func drain(ctx context.Context, file string, out io.Writer) error {
	pid, err := find(file)
	if err != nil {
		return err
	}
	if err = syscall.Kill(pid, syscall.SIGUSR1); err != nil {
		return fmt.Errorf("telling the worker of %s (process %d) to drain: %w", file, pid, err)
	}
	fmt.Fprintf(out, "told the worker (process %d) to drain\n", pid)
	look := time.NewTicker(drainLook)
	defer look.Stop()
	var told []worker.Running
	for known := false; ; {
		s, draining := peekState(file, pid)
		switch {
		case draining && s.idle():
			return concluded(s, file, out)
		case draining && len(s.Jobs) > 0 && !slices.Equal(told, s.Jobs):
			fmt.Fprintln(out, "waiting for "+naming(s.Jobs))
			told, known = s.Jobs, true
		}
		if holder, err := peekPIDFile(file); err == nil && holder != pid {
			return vanished(file, pid, known, told, out)
		}
		select {
		case <-ctx.Done():
			what := "the worker has not said yet what it does"
			if known {
				what = "it still does " + naming(told)
			}
			return fmt.Errorf("stopped waiting (%w): %s; it goes on draining", context.Cause(ctx), what)
		case <-look.C:
		}
	}
}

// concluded is what is to be said when nothing runs any more.
func concluded(s drainState, file string, out io.Writer) error {
	if s.HandedBack > 0 {
		return fmt.Errorf("the worker of %s was stopped meanwhile, and handed back %d jobs: other workers do them", file, s.HandedBack)
	}
	_, err := fmt.Fprintln(out, "drained: nothing runs any more, and the worker takes no jobs until it is started anew")
	return err
}

// vanished is what is to be said of a worker that has ended. It may have said that nothing runs right before that.
func vanished(file string, pid int, known bool, jobs []worker.Running, out io.Writer) error {
	s, draining := peekState(file, pid)
	switch {
	case draining && s.idle():
		return concluded(s, file, out)
	case !known:
		return fmt.Errorf("the worker of %s (process %d) has ended: what it did goes to another worker", file, pid)
	}
	return fmt.Errorf("the worker of %s (process %d) has ended while it did %s: that goes to another worker", file, pid, naming(jobs))
}

// find is the process of a pid file.
func find(file string) (pid int, err error) {
	pid, err = peekPIDFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("no worker has made %s: start it with --pid-file %[1]s, and run this where it runs", file)
	}
	if err != nil {
		return 0, err
	}
	if pid == 0 {
		return 0, fmt.Errorf("no worker holds %s any more: it has ended, and nothing is to be drained", file)
	}
	if err := opens(pid, file); err != nil {
		return 0, err
	}
	return pid, nil
}

// opens checks that a process has a file open, where that can be seen. The number may mean another process here than where the worker
// runs, as in a container, and most processes end at a signal that they do not know.
func opens(pid int, file string) error {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return nil //nolint:nilerr // not Linux; the lock has to do
	}
	want, err := os.Stat(file)
	if err != nil {
		return err
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	open, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("process %d of %s is another user's: run this as the worker's user: %w", pid, file, err)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("looking whether process %d holds %s: %w", pid, file, err)
	}
	for _, e := range open {
		if have, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && os.SameFile(have, want) {
			return nil
		}
	}
	return fmt.Errorf("%s is held by a process that is not process %d here: run this where the worker runs (in its container)", file, pid)
}

// naming is a list of jobs in a sentence.
func naming(jobs []worker.Running) string {
	texts := make([]string, len(jobs))
	for i, j := range jobs {
		texts[i] = fmt.Sprintf("%s %s (job %s, since %s)", j.Work, j.Target, j.JobID, j.Since.Format(time.TimeOnly))
	}
	return fmt.Sprintf("%d jobs: %s", len(jobs), strings.Join(texts, ", "))
}
