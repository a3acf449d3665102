//go:build e2e

package nomad

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// ask asks an API of Nomad or Consul.
func (s *site) ask(method, url string, into any) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 10*time.Second) // also when the test has ended
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, body)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s %s: %w", method, url, err)
	}
	return nil
}

// allocation is what the tests look at of one.
type allocation struct {
	ID, Name, TaskGroup         string
	DesiredStatus, ClientStatus string
	JobVersion                  uint64
	TaskStates                  map[string]struct{ Restarts uint64 }
}

func (s *site) allocations(job string) (all []allocation, err error) {
	err = s.ask(http.MethodGet, s.nomad.Address+"/v1/job/"+job+"/allocations", &all)
	return all, err
}

// running are the allocations of a job's group that run; of all groups for "".
func (s *site) running(job, group string) []allocation {
	s.t.Helper()
	all, err := s.allocations("lifeboat-" + job)
	require.NoError(s.t, err)
	return slices.DeleteFunc(all, func(a allocation) bool {
		return a.ClientStatus != "running" || a.DesiredStatus != "run" || (group != "" && a.TaskGroup != group)
	})
}

// secretOf is a file of an allocation's secrets, as its task sees it.
func (s *site) secretOf(a allocation, task, name string) string {
	return s.path("nomad/data/alloc/" + a.ID + "/" + task + "/secrets/" + name)
}

// trouble is what a job's allocations say, for whoever looks for a cause.
func (s *site) trouble(job string) string {
	all, err := s.allocations(job)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, a := range all {
		for task := range a.TaskStates {
			out, _ := s.try("nomad", "alloc", "logs", "-stderr", "-tail", "-n", "30", "-task", task, a.ID)
			status, _ := s.try("nomad", "alloc", "status", a.ID)
			fmt.Fprintf(&b, "== %s %s %s %s\n%s\n%s\n", a.ID, a.TaskGroup, a.DesiredStatus, a.ClientStatus, status, out)
		}
	}
	return b.String()
}

// stopJobs stops what was deployed and waits until no task is left. A Nomad that does not answer, or does not say that nothing is left, is a
// failure: its tasks would go on after the test.
func (s *site) stopJobs() {
	var failed error
	for _, job := range slices.Backward(all()) {
		name := "lifeboat-" + job
		if s.t.Failed() {
			s.t.Log(s.trouble(name))
		}
		failed = errors.Join(failed, s.purge(name))
	}
	var left string
	assert.Eventually(s.t, func() bool { left = s.left(); return left == "" }, time.Minute, 200*time.Millisecond, "tasks are left behind")
	assert.Empty(s.t, left)
	// Secrets are in file systems of their own, which go with the allocations.
	failed = errors.Join(failed, s.ask(http.MethodPut, s.nomad.Address+"/v1/system/gc", nil))
	assert.Eventually(s.t, func() bool {
		mounts, err := os.ReadFile("/proc/mounts")
		return err == nil && !strings.Contains(string(mounts), s.dir)
	}, time.Minute, 200*time.Millisecond, "secrets are left behind")
	assert.NoError(s.t, failed)
}

// purge stops a job and forgets it. One that was never there is no error.
func (s *site) purge(name string) error {
	return s.ask(http.MethodDelete, s.nomad.Address+"/v1/job/"+name+"?purge=true", nil)
}

// left says what still runs, or why that is not known.
func (s *site) left() string {
	var b strings.Builder
	for _, job := range all() {
		of, err := s.allocations("lifeboat-" + job)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
		for _, a := range of {
			if a.ClientStatus == "running" || a.ClientStatus == "pending" {
				fmt.Fprintf(&b, "%s %s is %s\n", a.Name, a.ID, a.ClientStatus)
			}
		}
	}
	return b.String()
}
