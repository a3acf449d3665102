package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// consulKeys is how many keys the unchanged Consul holds, 64 to a transaction (Consul's limit).
const (
	consulKeys = 100_000
	consulTxn  = 64
)

// unchanged is how many bytes the second snapshot of a Consul writes in which nothing changed.
func (b *bench) unchanged(ctx context.Context) (int64, error) {
	c, err := bintest.StartConsul(ctx, b.path("consul"))
	if err != nil {
		return 0, err
	}
	b.later(func() { _ = c.Kill() })
	for at := 0; at < consulKeys; at += consulTxn {
		if err = b.putConsul(ctx, c.Address, at, min(consulTxn, consulKeys-at)); err != nil {
			return 0, err
		}
	}
	proxy, err := s3test.StartProxy(b.s3)
	if err != nil {
		return 0, err
	}
	b.later(proxy.Close)
	w, err := b.startWorker(ctx, proxy.Endpoint, "consul: {address: "+strconv.Quote(c.Address)+"}")
	if err != nil {
		return 0, err
	}
	defer w.stop()
	first, err := b.commit(ctx, w)
	if err != nil {
		return 0, err
	}
	wrote := proxy.Sent()
	proxy.Forget()
	second, err := b.commit(ctx, w)
	if err != nil {
		return 0, err
	}
	if second.GetData().GetUnchangedSince() != first.GetId() {
		return 0, errors.New("the second snapshot does not point at the first one's data")
	}
	fmt.Fprintf(b.out, "Consul KV of %d keys: the first snapshot wrote %d bytes, the second one, unchanged, %d\n", consulKeys, wrote, proxy.Sent())
	return proxy.Sent(), nil
}

func (b *bench) putConsul(ctx context.Context, address string, at, n int) error {
	type set struct {
		Verb, Key, Value string
	}
	ops := make([]map[string]set, n)
	for i := range ops {
		v := make([]byte, 100)
		for j := range v {
			v[j] = byte(b.rand.UintN(256)) //nolint:gosec // below 256
		}
		ops[i] = map[string]set{"KV": {"set", fmt.Sprintf("config/service-%03d/key-%06d", (at+i)%500, at+i), base64.StdEncoding.EncodeToString(v)}}
	}
	body, err := json.Marshal(ops)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, address+"/v1/txn", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("filling Consul: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("filling Consul: it answered %s", resp.Status)
	}
	return nil
}
