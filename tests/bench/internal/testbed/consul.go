package testbed

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/bintest"
)

// consulTxn is how many keys are written at once: Consul's limit.
const consulTxn = 64

// StartConsul starts a Consul with so many keys of 100 random bytes.
func (b *Bed) StartConsul(ctx context.Context, name string, keys int) (*bintest.Consul, error) {
	c, err := bintest.StartConsul(ctx, b.Path(name))
	if err != nil {
		return nil, err
	}
	b.Later(func() { _ = c.Kill() })
	for at := 0; at < keys; at += consulTxn {
		if err = b.putConsul(ctx, c.Address, at, min(consulTxn, keys-at)); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (b *Bed) putConsul(ctx context.Context, address string, at, n int) error {
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
