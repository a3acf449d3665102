package consul

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

// reading is what both streams have in common: one answer of the agent, and what ends it.
type reading struct {
	ctx    context.Context //nolint:containedctx // an io.Reader is given none; this one ends the read
	stop   context.CancelFunc
	client *consulkv.Client
	token  consulkv.Token
	resp   *http.Response
	doing  string
	err    error // sticky

	closing sync.Once
	info    *lifeboatv1.SourceInfo // once it was asked
}

func (r *reading) failed(reason source.Reason, err error) error {
	return r.client.Failed(r.ctx, reason, r.doing, err)
}

// Close implements source.Stream.
func (r *reading) Close() error {
	r.closing.Do(func() {
		r.stop()
		if r.resp != nil {
			_ = r.resp.Body.Close() // what was read was checked
		}
		r.client.Close()
	})
	return nil
}

// ended is why nothing more can be asked; nil while it can.
func (r *reading) ended() error {
	if r.ctx.Err() == nil {
		return nil
	}
	return fmt.Errorf("asking about the datacenter: %w", context.Cause(r.ctx))
}

// body is an answer that is read from under a watch for silence.
type body struct {
	r    io.Reader
	idle *source.Idle
}

func (b body) Read(p []byte) (int, error) {
	b.idle.Begin()
	defer b.idle.End()
	return b.r.Read(p)
}

// describe adds which agent answered and under whose rights.
func describe(ctx context.Context, c *consulkv.Client, t consulkv.Token, info *lifeboatv1.SourceInfo) error {
	info.Identity = map[string]string{"endpoint": c.Endpoint()}
	t.Tell(info)
	var self struct {
		Config struct{ Datacenter, NodeName, Version string }
	}
	switch err := c.GetJSON(ctx, "/v1/agent/self", "asking the agent who it is", &self); {
	case ctx.Err() != nil:
		return err
	case err != nil:
		// The data is whole without it: agent:read is a right of its own.
		info.Missing = append(info.Missing, "version, datacenter, node: "+err.Error())
	default:
		info.Version = self.Config.Version
		info.Identity["datacenter"] = self.Config.Datacenter
		info.Identity["node"] = self.Config.NodeName
	}
	if t.Unsure(info.GetVersion()) {
		info.Worries = append(info.Worries, fmt.Sprintf("Consul %s does not tell when a token's rights leave out keys, as "+
			"1.11 and later do; nobody can say whether the list is whole", info.GetVersion()))
	}
	return nil
}
