package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
)

// consulKeys is how many keys the unchanged Consul holds.
const consulKeys = 100_000

// unchanged is how many bytes the second snapshot of a Consul writes in which nothing changed.
func (b *bench) unchanged(ctx context.Context) (int64, error) {
	c, err := b.StartConsul(ctx, "consul", consulKeys)
	if err != nil {
		return 0, err
	}
	proxy, err := s3test.StartProxy(b.S3)
	if err != nil {
		return 0, err
	}
	b.Later(proxy.Close)
	w, err := b.worker(ctx, proxy.Endpoint, "consul: {address: "+strconv.Quote(c.Address)+"}")
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	first, err := b.Snapshot(ctx, w)
	if err != nil {
		return 0, err
	}
	wrote := proxy.Sent()
	proxy.Forget()
	second, err := b.Snapshot(ctx, w)
	if err != nil {
		return 0, err
	}
	if second.GetData().GetUnchangedSince() != first.GetId() {
		return 0, errors.New("the second snapshot does not point at the first one's data")
	}
	fmt.Fprintf(b.Out, "Consul KV of %d keys: the first snapshot wrote %d bytes, the second one, unchanged, %d\n", consulKeys, wrote, proxy.Sent())
	return proxy.Sent(), nil
}
