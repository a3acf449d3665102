package testbed

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Median of what was measured.
func Median[T cmp.Ordered](d []T) T {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}

// PeakRSS is the high-water mark of a process's resident memory, in MiB (proc(5): VmHWM). Pages of files that it has mapped
// count as well.
func PeakRSS(pid int) (float64, error) { return memory(pid, "VmHWM:") }

// RSS is a process's resident memory now, in MiB (proc(5): VmRSS), with the pages of files that it has mapped.
func RSS(pid int) (float64, error) { return memory(pid, "VmRSS:") }

func memory(pid int, field string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("no %s in /proc/%d/status", field, pid)
}

// CPUSeconds is a process's user and system time (proc(5): stat, fields 14 and 15, in ticks of 10 ms); 0 when it is gone.
func CPUSeconds(pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The second field is a name in parentheses and may hold blanks.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks float64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return ticks / 100
}

// ForgetPeakRSS sets the high-water mark to what is resident now (proc(5): clear_refs).
func ForgetPeakRSS(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// RcloneEnv is an environment in which rclone knows the S3 server as "s3:".
func (b *Bed) RcloneEnv() ([]string, error) {
	id, err := b.S3.Config.AccessKeyIDFile.Read()
	if err != nil {
		return nil, err
	}
	secret, err := b.S3.Config.SecretAccessKeyFile.Read()
	if err != nil {
		return nil, err
	}
	conf := b.Path("rclone.conf") // all is in the environment, but rclone misses the file
	if err = os.WriteFile(conf, nil, 0o600); err != nil {
		return nil, err
	}
	// rclone refuses its own HTTP client when AWS_CA_BUNDLE is set, even for plain http.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") })
	return append(env, "RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Other", "RCLONE_CONFIG_S3_ENDPOINT="+b.S3.Endpoint,
		"RCLONE_CONFIG_S3_ACCESS_KEY_ID="+id, "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY="+secret, "RCLONE_CONFIG_S3_REGION=us-east-1",
		"RCLONE_CONFIG="+conf), nil
}
