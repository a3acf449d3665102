package ingest_test

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/natstest"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/ingest"
)

func payload(alerts, run int) []byte { return ingest.Payload(alerts, run) }

// BenchmarkAccept is webhooks accepted and persisted over 16 connections, divided by the raw limit: synchronous JetStream publishes of the
// same payload, 16 in flight. Client, notifier and NATS share the processors. The two take turns, so that what else the machine does
// meets both. The ratio is that of the sums of time; cpu-ratio is that of the processors' time, which is the same on a machine that does
// nothing else, and right on a busy one.
func BenchmarkAccept(b *testing.B) {
	for _, alerts := range []int{1, 5, 20} {
		b.Run(fmt.Sprintf("alerts=%d", alerts), func(b *testing.B) {
			r := newRig(b, payload(alerts, 0))
			var raw, accepted spent
			const turn = 2000
			for b.Loop() {
				raw.add(r.turn(turn, r.publishers))
				accepted.add(r.turn(turn, r.posters))
			}
			n := float64(b.N * turn)
			b.ReportMetric(n/raw.wall.Seconds(), "publishes/s")
			b.ReportMetric(n/accepted.wall.Seconds(), "webhooks/s")
			b.ReportMetric(raw.wall.Seconds()/accepted.wall.Seconds(), "ratio")
			b.ReportMetric(raw.cpu.Seconds()/accepted.cpu.Seconds(), "cpu-ratio")
			b.ReportMetric(float64(accepted.cpu.Microseconds())/n, "cpu-us/webhook")
		})
	}
}

// spent is time on the clock and on the processors.
type spent struct{ wall, cpu time.Duration }

func (s *spent) add(more spent) { s.wall, s.cpu = s.wall+more.wall, s.cpu+more.cpu }

func processors() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const inFlight = 16

// rig is 16 clients of either kind.
type rig struct {
	b                   *testing.B
	template            []byte
	place               int // of a fingerprint in it
	run                 atomic.Int64
	publishers, posters []func(data []byte) error
}

func newRig(b *testing.B, template []byte) *rig {
	b.Helper()
	s, err := natstest.Start(b.TempDir(), -1)
	require.NoError(b, err)
	b.Cleanup(s.Stop)
	log := slog.New(slog.DiscardHandler)
	c, err := bus.Connect(bus.Options{Config: config.NATS{URL: s.URL()}, Actor: "bench", Logger: log, Registerer: prometheus.NewRegistry()})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, c.Close()) })
	require.NoError(b, c.EnsureStreams(b.Context()))
	h := ingest.New(ingest.Options{Store: c, Logger: log, Registerer: prometheus.NewRegistry(), Now: time.Now})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	srv := &http.Server{Handler: h.Webhook(), ReadTimeout: 30 * time.Second}
	go func() { _ = srv.Serve(ln) }()
	b.Cleanup(func() { require.NoError(b, srv.Close()) })
	nc, err := nats.Connect(s.URL())
	require.NoError(b, err)
	b.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	require.NoError(b, err)
	const key = `"fingerprint":"`
	r := &rig{b: b, template: template, place: bytes.Index(template, []byte(key)) + len(key)}
	for range inFlight {
		r.publishers = append(r.publishers, func(data []byte) error {
			_, err := js.Publish(b.Context(), bus.SubjectReceived, data, jetstream.WithMsgID(fmt.Sprintf("raw-%d", r.run.Add(1))))
			return err
		})
		r.posters = append(r.posters, poster(b, ln.Addr().String()))
	}
	return r
}

// poster posts over one connection. It is not net/http's client, which takes as much of the processors as the server does.
func poster(b *testing.B, addr string) func([]byte) error {
	b.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(b, err)
	b.Cleanup(func() { _ = conn.Close() }) // the server closes it first
	in := bufio.NewReader(conn)
	return func(data []byte) error {
		head := fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", ingest.Path, len(data))
		if _, err := conn.Write(append(head, data...)); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	}
}

// turn sends so many, each another one, and says how long that took.
func (r *rig) turn(count int64, clients []func([]byte) error) spent {
	r.b.Helper()
	var left atomic.Int64
	left.Store(count)
	var wg sync.WaitGroup
	begin, used := time.Now(), processors()
	for _, send := range clients {
		wg.Go(func() {
			fresh := bytes.Clone(r.template)
			for left.Add(-1) >= 0 {
				// Each is another one, at no cost that is worth measuring: one of the fingerprints differs.
				copy(fresh[r.place:], fmt.Sprintf("%08x", r.run.Add(1)))
				if err := send(fresh); err != nil {
					r.b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return spent{time.Since(begin), processors() - used}
}
