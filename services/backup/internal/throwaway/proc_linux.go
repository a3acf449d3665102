package throwaway

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bindToParent lets cmd die with the thread that starts it, which must be the calling one.
func bindToParent(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A group of its own: Ctrl-C at the terminal is for this process, which then stops its children in order.
	cmd.SysProcAttr.Setpgid = true
	// The kernel forgets the death signal of a program whose file has capabilities or is set-user-id, unless they have no effect.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forgoing new privileges: %w", err)
	}
	return nil
}

const (
	// fieldState, fieldParent and fieldStart are indexes in statFields.
	fieldState, fieldParent, fieldStart = 0, 1, 19
	zombie                              = "Z"
)

// identify looks at a running process. os.ErrNotExist means that there is none.
func identify(pid int) (procID, error) {
	stat, err := os.ReadFile(procFile(pid, "stat"))
	if errors.Is(err, syscall.ESRCH) {
		return procID{}, os.ErrNotExist
	}
	if err != nil {
		return procID{}, err
	}
	fields := statFields(string(stat))
	if len(fields) <= fieldStart {
		return procID{}, fmt.Errorf("%s has %d fields", procFile(pid, "stat"), len(fields))
	}
	if fields[fieldState] == zombie {
		return procID{}, os.ErrNotExist
	}
	started, err := strconv.ParseUint(fields[fieldStart], 10, 64)
	if err != nil {
		return procID{}, fmt.Errorf("reading the start of process %d: %w", pid, err)
	}
	space, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return procID{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return procID{}, err
	}
	return procID{pid: pid, started: started, space: space + "@" + strings.TrimSpace(string(boot))}, nil
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// family is the processes and their descendants that run now.
func family(roots []int) ([]int, error) {
	if len(roots) == 0 {
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	children := make(map[int][]int)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(procFile(pid, "stat"))
		if err != nil {
			continue // it has just ended
		}
		if f := statFields(string(stat)); len(f) > fieldParent {
			if parent, err := strconv.Atoi(f[fieldParent]); err == nil {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	var all []int
	seen := make(map[int]bool)
	for todo := slices.Clone(roots); len(todo) > 0; todo = todo[1:] {
		if pid := todo[0]; !seen[pid] {
			seen[pid] = true
			all = append(all, pid)
			todo = append(todo, children[pid]...)
		}
	}
	return all, nil
}

// anonMemory is how many bytes of memory a process has that no file stands behind: 0 when it has ended.
func anonMemory(pid int) int64 {
	f, err := os.Open(procFile(pid, "status"))
	if err != nil {
		return 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
