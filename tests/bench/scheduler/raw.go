package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

// inFlight is how many batches are on their way at once, as in the scheduler.
const inFlight = 16

// pair is what one tick stored.
type pair struct {
	state, job stored
	// anchor is the sequence of the state that the batch replaces.
	anchor uint64
}

// raw stores the same messages with nothing around it, into a stream that is made with the same settings, and gives the rate of the
// jobs' timestamps.
func (b *bench) raw(ctx context.Context, all []stored) (float64, error) {
	pairs, err := pairsOf(all)
	if err != nil {
		return 0, err
	}
	s, err := b.JetStream.Stream(ctx, bus.StreamJobs)
	if err != nil {
		return 0, err
	}
	settings := s.CachedInfo().Config
	if err = b.reset(ctx); err != nil {
		return 0, err
	}
	if _, err = b.JetStream.CreateStream(ctx, settings); err != nil {
		return 0, fmt.Errorf("making the stream again: %w", err)
	}
	nc, err := nats.Connect(b.NATS.URL)
	if err != nil {
		return 0, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	err = parallel(pairs, func(p *pair) error {
		ack, failed := js.PublishMsg(ctx, message(p.state, map[string]string{"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": "0"}))
		if failed == nil {
			p.anchor = ack.Sequence
		}
		return failed
	})
	if err != nil {
		return 0, fmt.Errorf("storing the first states: %w", err)
	}
	spent := b.cpu(nil)
	if err = parallel(pairs, func(p *pair) error { return batch(ctx, nc, p) }); err != nil {
		return 0, fmt.Errorf("storing a batch: %w", err)
	}
	spent("raw batches")
	again, err := b.read(ctx, snapshotJobs)
	if err != nil {
		return 0, err
	}
	if len(again) != len(pairs) {
		return 0, fmt.Errorf("%d of %d raw batches are in the stream", len(again), len(pairs))
	}
	return rate(again)
}

// pairsOf finds each job's state.
func pairsOf(all []stored) ([]*pair, error) {
	byTarget := map[string]*pair{}
	var pairs []*pair
	for _, m := range all {
		tokens := strings.Split(m.subject, ".")
		target := tokens[3]
		p := byTarget[target]
		if p == nil {
			p = &pair{}
			byTarget[target], pairs = p, append(pairs, p)
		}
		if tokens[1] == "job" {
			p.job = m
		} else {
			p.state = m
		}
	}
	for target, p := range byTarget {
		if p.job.subject == "" || p.state.subject == "" {
			return nil, fmt.Errorf("the job or the state of %s is missing", target)
		}
	}
	return pairs, nil
}

// parallel does something for every pair, inFlight at once, and gives the first error.
func parallel(pairs []*pair, do func(*pair) error) error {
	var wg sync.WaitGroup
	var at atomic.Int64
	errs := make(chan error, inFlight)
	for range inFlight {
		wg.Go(func() {
			for {
				i := at.Add(1) - 1
				if i >= int64(len(pairs)) {
					return
				}
				if err := do(pairs[i]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// message is a stored one as it was published: without what the server adds or takes, and with the headers given.
func message(m stored, headers map[string]string) *nats.Msg {
	out := &nats.Msg{Subject: m.subject, Data: m.data, Header: nats.Header{}}
	for name, values := range m.header {
		if !strings.HasPrefix(name, "Nats-") {
			out.Header[name] = values
		}
	}
	for name, value := range headers {
		out.Header.Set(name, value)
	}
	return out
}

// batch stores a state and a job in one transaction (NATS ADR-50).
func batch(ctx context.Context, nc *nats.Conn, p *pair) error {
	id := rand.Text()
	err := nc.PublishMsg(message(p.state, map[string]string{
		"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": strconv.FormatUint(p.anchor, 10),
		"Nats-Batch-Id": id, "Nats-Batch-Sequence": "1",
	}))
	if err != nil {
		return err
	}
	reply, err := nc.RequestMsgWithContext(ctx, message(p.job, map[string]string{
		"Nats-Batch-Id": id, "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1",
	}))
	if err != nil {
		return err
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return err
	}
	if ack.Error != nil {
		return ack.Error
	}
	return nil
}
