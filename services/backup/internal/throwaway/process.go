package throwaway

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// graceTime is how long a process may take to end by itself. Nothing that it holds is needed afterwards.
	graceTime = 3 * time.Second
	// killTime is how long a killed one may take to be gone.
	killTime = 10 * time.Second
	// maxLog is how much of the end of a log is looked at, maxTail how many of its lines are shown, and maxLine how much of each.
	maxLog, maxTail, maxLine = 16 << 10, 5, 300
)

// process is a child that ends with this process, even when that is killed.
type process struct {
	cmd *exec.Cmd
	// log is the file that holds what it says.
	log     string
	done    chan struct{}
	err     error // why it ended; only after done
	stopped atomic.Bool
}

// startProcess starts cmd with its output in the file log. cmd.SysProcAttr may ask for namespaces.
func startProcess(cmd *exec.Cmd, log string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a log: %w", err)
	}
	cmd.Stdout, cmd.Stderr = out, out
	p := &process{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal is sent when the thread that started the process ends, so this one is kept for the process's life. It
		// is not given back, and ends with this goroutine, because no_new_privs cannot be taken back.
		runtime.LockOSThread()
		defer close(p.done)
		defer out.Close()
		serr := bindToParent(cmd)
		if serr == nil {
			serr = cmd.Start()
		}
		started <- serr
		if serr == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, err
	}
	return p, nil
}

// stop asks the process to end, kills it and all of its process group when it does not, and waits.
func (p *process) stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.stopped.Store(true)
	// A process that has ended is no error.
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("asking it to end: %w", err)
	}
	grace := time.NewTimer(graceTime)
	defer grace.Stop()
	select {
	case <-p.done:
		return nil
	case <-grace.C:
	}
	// Its group has its number, and nobody else can get that number before Wait has returned.
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("killing it: %w", err)
	}
	<-p.done
	return nil
}

// ended is why it ended by itself, with what it said last.
func (p *process) ended() error {
	why := "exit status 0"
	if p.err != nil {
		why = p.err.Error()
	}
	return fmt.Errorf("it ended by itself: %s%s", why, quoteTail(p.log, 0, true))
}

// quoteTail is what the end of a log tells of errors, in brackets, and with last its last line whatever that tells.
// Before the offset from nothing counts.
func quoteTail(log string, from int64, last bool) string {
	lines := tail(log, from)
	var telling []string
	for i, l := range lines {
		low := strings.ToLower(l)
		if strings.Contains(low, "error") || strings.Contains(low, "panic") || strings.Contains(low, "fail") ||
			last && i == len(lines)-1 {
			telling = append(telling, l)
		}
	}
	if len(telling) == 0 {
		return ""
	}
	return " (it said: " + strings.Join(telling[max(0, len(telling)-maxTail):], "; ") + ")"
}

// secretLike finds what a server might log of a token (a UUID) or of a key (a long run of base64 or hex).
const secretLike = `[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|[A-Za-z0-9+_-]{40,}={0,2}` //nolint:gosec // a pattern

// tail is the last lines of a log that stand after an offset, without what may be a secret.
func tail(log string, after int64) []string {
	f, err := os.Open(log)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	from := max(after, info.Size()-maxLog)
	b := make([]byte, max(0, info.Size()-from))
	n, _ := f.ReadAt(b, from) // what can be read is shown
	lines := strings.Split(string(b[:n]), "\n")
	if from > after {
		lines = lines[1:] // a part of one
	}
	mask := regexp.MustCompile(secretLike)
	for i, l := range lines {
		l = mask.ReplaceAllString(strings.ToValidUTF8(strings.TrimSpace(l), "?"), "***")
		if len(l) > maxLine {
			l = strings.ToValidUTF8(l[:maxLine], "") + "..."
		}
		lines[i] = l
	}
	return slices.DeleteFunc(lines, func(l string) bool { return l == "" })
}
