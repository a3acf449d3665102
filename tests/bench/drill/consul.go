package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/tests/bench/internal/testbed"
)

// consul measures a restore and an import of the same snapshot in turn.
func (b *bench) consul(ctx context.Context, rounds, keys int, f *figures) error {
	source, err := b.StartConsul(ctx, "consul-source", keys)
	if err != nil {
		return err
	}
	t, err := b.NewTarget(b.S3.Endpoint, "consul: {address: "+strconv.Quote(source.Address)+"}")
	if err != nil {
		return err
	}
	if _, err = b.snapshot(ctx, t); err != nil {
		return err
	}
	want, err := digest(ctx, source.Address)
	if err != nil {
		return err
	}
	file := b.Path("consul.json")
	if err = command(ctx, nil, b.Binary, "snapshot", "fetch", t.Name, "-c", t.Keyed, "-o", file); err != nil {
		return err
	}
	stock, err := bintest.Find("consul")
	if err != nil {
		return err
	}
	var mine, imports []time.Duration
	for i := range rounds {
		restored, err := b.fresh(ctx, want, func(address string) error {
			return command(ctx, nil, b.Binary, "restore", t.Name, "-c", t.Keyed, "--to", address, "--apply")
		})
		if err != nil {
			return err
		}
		imported, err := b.fresh(ctx, want, func(address string) error {
			return command(ctx, []string{"CONSUL_HTTP_ADDR=" + address}, stock, "kv", "import", "@"+file)
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(b.Out, "round %d: restore of %d keys %.2f s, consul kv import %.2f s\n", i+1, keys, restored.Seconds(), imported.Seconds())
		mine, imports = append(mine, restored), append(imports, imported)
	}
	f.ConsulVsStock = testbed.Median(mine).Seconds() / testbed.Median(imports).Seconds()
	return nil
}

// fresh times a restore into an empty server, and compares what is then in it.
func (b *bench) fresh(ctx context.Context, want string, restore func(address string) error) (time.Duration, error) {
	dir, err := os.MkdirTemp(b.Path("."), "consul-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	c, err := bintest.StartConsul(ctx, dir)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Kill() }()
	start := time.Now()
	if err = restore(c.Address); err != nil {
		return 0, err
	}
	took := time.Since(start)
	got, err := digest(ctx, c.Address)
	if err == nil && got != want {
		err = fmt.Errorf("what was restored is %s, and the source is %s", got, want)
	}
	return took, err
}

// command runs one to its end; what it says is told only when it fails.
func command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var said tail
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, said)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail []byte

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	*t = append(*t, p...)
	*t = (*t)[max(0, len(*t)-4096):]
	return len(p), nil
}

// digest is of every key's name, flags and value.
func digest(ctx context.Context, address string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address+"/v1/kv/?recurse", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", fmt.Errorf("reading all keys: %w", err)
	}
	defer resp.Body.Close()
	var keys []struct {
		Key, Value string
		Flags      uint64
	}
	if err := json.NewDecoder(resp.Body).Decode(&keys); err != nil {
		return "", fmt.Errorf("reading all keys: %w", err)
	}
	sum := sha256.New()
	for _, k := range keys {
		fmt.Fprintf(sum, "%q %d %q\n", k.Key, k.Flags, k.Value)
	}
	return fmt.Sprintf("%d keys of %x", len(keys), sum.Sum(nil)), nil
}
