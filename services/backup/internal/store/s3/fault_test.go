package s3_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

// reasons collects what OnRetry is told.
type reasons struct {
	mu  sync.Mutex
	all []string
}

func (r *reasons) add(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, reason)
}

func (r *reasons) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

func proxied(t *testing.T, opts ...s3.Option) (*s3test.Server, *s3test.Proxy, *s3.Store) {
	t.Helper()
	server := s3test.New(t)
	proxy := s3test.NewProxy(t, server)
	return server, proxy, open(t, proxy.Config, opts...)
}

func TestShortFailuresAreTriedAgain(t *testing.T) {
	why := &reasons{}
	_, proxy, s := proxied(t, s3.OnRetry(why.add))
	big := random(t, 9*mib)
	for _, c := range []struct {
		name  string
		fault s3test.Fault
		why   string
	}{
		{"503", s3test.SlowDown(), "SlowDown"},
		{"500", s3test.Answer(500, "InternalError"), "InternalError"},
		{"reset before", s3test.ResetBefore(), "connection"},
		{"reset after", s3test.ResetAfter(), "connection"},
	} {
		for _, op := range []string{
			"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "GetObject", "HeadObject", "ListObjectsV2",
			"HeadBucket",
		} {
			t.Run(c.name+" "+op, func(t *testing.T) {
				proxy.Handle(nil)
				for _, key := range []string{"k/small", "k/big"} {
					require.NoError(t, s.Remove(t.Context(), store.Version{Object: store.Object{Key: key}}))
				}
				proxy.Forget()
				before := len(why.seen())
				proxy.Handle(s3test.First(2, op, c.fault))
				require.NoError(t, put(t, s, "k/small", []byte("small"), store.Condition{Absent: true}))
				require.NoError(t, put(t, s, "k/big", big, store.Condition{Absent: true}))
				head, err := s.Head(t.Context(), "k/big")
				require.NoError(t, err)
				assert.Equal(t, int64(len(big)), head.Size)
				got, err := read(t.Context(), s, "k/big")
				require.NoError(t, err)
				assert.True(t, bytes.Equal(big, got))
				var keys []string
				require.NoError(t, s.List(t.Context(), "k/", func(o store.Object) error {
					keys = append(keys, o.Key)
					return nil
				}))
				assert.Equal(t, []string{"k/big", "k/small"}, keys)
				require.NoError(t, s.Ping(t.Context()))
				assert.GreaterOrEqual(t, proxy.Count(op), 3)
				if r := proxy.Requests()[0]; op != "HeadBucket" && op != "HeadObject" && r.Op == op {
					assert.Contains(t, why.seen()[before:], c.why) // an answer to HEAD has no code; net/http itself repeats a GET
				}
				for _, u := range uploadsOf(t, s) { // begun by a request whose answer was lost: prune finds it here
					assert.Equal(t, "CreateMultipartUpload reset after", op+" "+c.name)
					require.NoError(t, s.Abort(t.Context(), u))
				}
				assert.Empty(t, uploadsOf(t, s))
			})
		}
	}
}

func TestAFailureThatLastsIsAnError(t *testing.T) {
	server, proxy, s := proxied(t)
	for _, op := range []string{"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"} {
		proxy.Handle(s3test.Always(op, s3test.SlowDown()))
		err := put(t, s, "k", random(t, 20*mib), store.Condition{Absent: true})
		require.ErrorContains(t, err, "SlowDown", op)
		require.ErrorContains(t, err, "bucket lifeboat at "+proxy.Endpoint)
		assert.Empty(t, uploadsOf(t, s), op)
		_, err = s.Head(t.Context(), "k")
		require.ErrorIs(t, err, store.ErrNotFound)
	}
	assert.Zero(t, used(t, server), "nothing is left")
}

// The store did what was asked, and each answer was lost: no repetition will ever be told so. The object says it.
func TestAWriteWhoseAnswersAreAllLostIsKnownByItsMark(t *testing.T) {
	_, proxy, s := proxied(t)
	for op, size := range map[string]int{"PutObject": 100, "CompleteMultipartUpload": 9 * mib} {
		proxy.Handle(s3test.Always(op, s3test.ResetAfter()))
		o, err := s.Put(t.Context(), op, bytes.NewReader(make([]byte, size)), 0, store.Condition{Absent: true})
		require.NoError(t, err)
		proxy.Handle(nil)
		head, err := s.Head(t.Context(), op)
		require.NoError(t, err)
		assert.Equal(t, head.ETag, o.ETag)
		assert.Equal(t, int64(size), head.Size)
		// Somebody else's is not taken for one's own.
		proxy.Handle(s3test.First(1, op, s3test.ResetBefore()))
		require.ErrorIs(t, put(t, s, op, make([]byte, size), store.Condition{Absent: true}), store.ErrPrecondition)
	}
}

func TestTwoWritersAtTheSameMomentAreAskedToTryAgain(t *testing.T) {
	_, proxy, s := proxied(t)
	for op, size := range map[string]int{"PutObject": 100, "CompleteMultipartUpload": 9 * mib} {
		proxy.Handle(s3test.First(1, op, s3test.Answer(409, "ConditionalRequestConflict")))
		require.NoError(t, put(t, s, op, make([]byte, size), store.Condition{Absent: true}))
		proxy.Handle(s3test.Always(op, s3test.Answer(409, "ConditionalRequestConflict")))
		err := put(t, s, op+" again", make([]byte, size), store.Condition{Absent: true})
		require.ErrorContains(t, err, "try again")
		require.NotErrorIs(t, err, store.ErrPrecondition, "nobody is known to have written it")
	}
}

// hasty gives up within a second what takes minutes outside of tests.
func hasty() s3.Option {
	return s3.WithLimits(300*time.Millisecond, 300*time.Millisecond, 600*time.Millisecond)
}

func TestAStoreThatHangsHoldsNobodyForEver(t *testing.T) {
	why := &reasons{}
	_, proxy, s := proxied(t, hasty(), s3.OnRetry(why.add))
	data := random(t, 20*mib)
	require.NoError(t, put(t, s, "there", data, store.Condition{}))
	for name, call := range map[string]func(context.Context) error{
		"HeadBucket":    s.Ping,
		"ListObjectsV2": func(ctx context.Context) error { return s.List(ctx, "", func(store.Object) error { return nil }) },
		"GetObject": func(ctx context.Context) error {
			_, err := read(ctx, s, "there")
			return err
		},
		"PutObject": func(ctx context.Context) error {
			_, err := s.Put(ctx, "new", strings.NewReader("x"), 0, store.Condition{})
			return err
		},
		// The socket takes only a piece of it.
		"UploadPart": func(ctx context.Context) error {
			_, err := s.Put(ctx, "new", bytes.NewReader(data), 0, store.Condition{})
			return err
		},
		"CompleteMultipartUpload": func(ctx context.Context) error {
			_, err := s.Put(ctx, "new", bytes.NewReader(data), 0, store.Condition{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			proxy.Handle(s3test.Always(name, s3test.Hang()))
			before := len(why.seen())
			begun := time.Now()
			err := call(t.Context())
			require.ErrorContains(t, err, "the store stalled: no progress for ")
			require.ErrorContains(t, err, proxy.Endpoint)
			require.NotErrorIs(t, err, context.Canceled, "nobody canceled it")
			assert.Less(t, time.Since(begun), 15*time.Second)
			assert.Contains(t, why.seen()[before:], "stalled")
			_, err = s.Head(t.Context(), "new")
			require.ErrorIs(t, err, store.ErrNotFound)
			assert.Empty(t, uploadsOf(t, s))
		})
	}
	t.Run("once", func(t *testing.T) {
		proxy.Handle(s3test.First(1, "UploadPart", s3test.Hang()))
		require.NoError(t, put(t, s, "new", data, store.Condition{}))
	})
}

// An answer may take its time when the store has something to do, and a slow reader is not the store's fault.
func TestWhatIsSlowIsNotStalled(t *testing.T) {
	_, proxy, s := proxied(t, s3.WithLimits(300*time.Millisecond, 300*time.Millisecond, time.Minute))
	data := random(t, 9*mib)
	completing := make(chan struct{}, 1)
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Op(r) != "CompleteMultipartUpload" {
			return s3test.Pass()
		}
		completing <- struct{}{}
		return s3test.HangAfter()
	})
	stored := make(chan error, 1)
	go func() {
		_, err := s.Put(t.Context(), "k", bytes.NewReader(data), 0, store.Condition{})
		stored <- err
	}()
	<-completing
	select {
	case err := <-stored:
		require.NoError(t, err, "it ended before the answer came")
	case <-time.After(time.Second):
	}
	proxy.Release()
	require.NoError(t, <-stored)
	assert.Empty(t, completing, "there was one attempt")

	proxy.Forget()
	r, _, err := s.Get(t.Context(), "k")
	require.NoError(t, err)
	first := make([]byte, mib)
	_, err = io.ReadFull(r, first)
	require.NoError(t, err)
	<-time.After(time.Second)
	rest, err := io.ReadAll(r)
	require.NoError(t, err)
	require.NoError(t, r.Close())
	assert.True(t, bytes.Equal(data, slices.Concat(first, rest)))
	assert.Equal(t, 1, proxy.Count("GetObject"))
}

func TestABrokenReadGoesOnWhereItWas(t *testing.T) {
	_, proxy, s := proxied(t, hasty())
	data := random(t, 20*mib)
	require.NoError(t, put(t, s, "k", data, store.Condition{}))
	for name, fault := range map[string]s3test.Fault{"reset": s3test.Truncate(), "stalled": s3test.Stall()} {
		t.Run(name, func(t *testing.T) {
			proxy.Forget()
			proxy.Handle(s3test.First(3, "GetObject", fault))
			got, err := read(t.Context(), s, "k")
			require.NoError(t, err)
			assert.True(t, bytes.Equal(data, got))
			assert.Equal(t, 4, proxy.Count("GetObject"))
			last := proxy.Requests()[3]
			assert.NotEmpty(t, last.Header.Get("Range"))
			assert.NotEmpty(t, last.Header.Get("If-Match"))

			proxy.Handle(s3test.First(1, "GetObject", fault))
			r, _, err := s.GetRange(t.Context(), "k", 5*mib, 10*mib, "")
			require.NoError(t, err)
			got, err = io.ReadAll(r)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			assert.True(t, bytes.Equal(data[5*mib:15*mib], got))
		})
	}
	t.Run("another object by then", func(t *testing.T) {
		proxy.Handle(func(r *http.Request) s3test.Fault {
			if s3test.Op(r) == "GetObject" && r.Header.Get("Range") == "" {
				return s3test.Truncate()
			}
			return s3test.Pass()
		})
		r, _, err := s.Get(t.Context(), "k")
		require.NoError(t, err)
		require.NoError(t, put(t, s, "k", random(t, 20*mib), store.Condition{}))
		_, err = io.ReadAll(r)
		require.ErrorIs(t, err, store.ErrPrecondition, "half of one and half of another would be worse than an error")
		require.NoError(t, r.Close())
	})
	t.Run("gone by then", func(t *testing.T) {
		proxy.Handle(s3test.Always("GetObject", s3test.Truncate()))
		r, _, err := s.Get(t.Context(), "k")
		require.NoError(t, err)
		proxy.Handle(s3test.Always("GetObject", s3test.ResetBefore()))
		_, err = io.ReadAll(r)
		require.ErrorContains(t, err, "reading on at byte ")
		require.NoError(t, r.Close())
	})
}

func TestAFullStore(t *testing.T) {
	server, proxy, s := proxied(t)
	data := random(t, 60*mib)
	server.SetSpace(20 * mib)
	err := put(t, s, "big", data, store.Condition{Absent: true})
	require.ErrorContains(t, err, "InsufficientStorage")
	require.ErrorContains(t, err, "bucket lifeboat at "+proxy.Endpoint)
	parts := map[string]int{}
	for _, r := range proxy.Requests() {
		if r.Op == "UploadPart" {
			parts[r.Query]++
		}
	}
	for query, n := range parts {
		assert.Equal(t, 1, n, "a full disk is not full for a second: %s", query)
	}
	assert.Empty(t, uploadsOf(t, s))
	assert.Zero(t, used(t, server), "what did fit is freed")

	server.SetSpace(0)
	require.ErrorContains(t, put(t, s, "small", []byte("x"), store.Condition{}), "InsufficientStorage")
	server.SetSpace(-1)
	require.NoError(t, put(t, s, "big", data, store.Condition{Absent: true}))
}

func TestABucketThatVanished(t *testing.T) {
	server := s3test.New(t)
	s := open(t, server.Config)
	_, err := s.Client().DeleteBucket(t.Context(), &awss3.DeleteBucketInput{Bucket: aws.String(s3test.Bucket)})
	require.NoError(t, err)
	v := store.Version{Object: store.Object{Key: "k"}}
	for name, call := range map[string]func() error{
		"ping":     func() error { return s.Ping(t.Context()) },
		"put":      func() error { return put(t, s, "k", []byte("x"), store.Condition{}) },
		"put big":  func() error { return put(t, s, "k", make([]byte, 9*mib), store.Condition{}) },
		"list":     func() error { return s.List(t.Context(), "", func(store.Object) error { return nil }) },
		"versions": func() error { return s.Versions(t.Context(), "", func(store.Version) error { return nil }) },
		"uploads":  func() error { return s.Uploads(t.Context(), "", func(store.Upload) error { return nil }) },
		"remove":   func() error { return s.Remove(t.Context(), v) },
		"get": func() error {
			_, _, err := s.Get(t.Context(), "k")
			return err
		},
		"lock": func() error {
			_, err := s.Lock(t.Context(), v)
			return err
		},
		"probe": func() error {
			_, err := s.Probe(t.Context(), "")
			return err
		},
	} {
		err := call()
		require.ErrorIs(t, err, store.ErrNoBucket, name)
		require.NotErrorIs(t, err, store.ErrNotFound, "%s: nothing is known about any object", name)
		require.ErrorContains(t, err, "bucket lifeboat at "+server.Endpoint, name)
	}
}

func TestWrongCredentials(t *testing.T) {
	server := s3test.New(t)
	const secret = "not-the-right-secret"
	dir := t.TempDir()
	wrong, stranger := filepath.Join(dir, "secret"), filepath.Join(dir, "id")
	require.NoError(t, os.WriteFile(wrong, []byte(secret), 0o600))
	require.NoError(t, os.WriteFile(stranger, []byte("AKIASTRANGER"), 0o600))
	cfg := server.Config
	cfg.SecretAccessKeyFile = config.SecretFile(wrong)
	unknown := cfg
	unknown.AccessKeyIDFile = config.SecretFile(stranger)
	for _, c := range []config.ObjectStore{cfg, unknown} {
		s := open(t, c)
		_, probed := s.Probe(t.Context(), "")
		_, _, got := s.Get(t.Context(), "k")
		for _, err := range []error{s.Ping(t.Context()), put(t, s, "k", []byte("x"), store.Condition{}), got, probed} {
			require.ErrorIs(t, err, store.ErrDenied)
			require.NotErrorIs(t, err, store.ErrNotFound)
			require.NotContains(t, err.Error(), secret)
		}
	}
}

func TestACanceledPutLeavesNoUpload(t *testing.T) {
	for _, stage := range []string{"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"} {
		t.Run(stage, func(t *testing.T) {
			server, proxy, s := proxied(t)
			ctx, cancel := context.WithCancel(t.Context())
			proxy.Handle(func(r *http.Request) s3test.Fault {
				if s3test.Op(r) == stage {
					cancel()
				}
				return s3test.Pass()
			})
			_, err := s.Put(ctx, "k", bytes.NewReader(make([]byte, 20*mib)), 0, store.Condition{})
			if stage == "CompleteMultipartUpload" { // S3 may be done before it hears of it, or not begin
				if err == nil {
					return
				}
			}
			require.ErrorIs(t, err, context.Canceled)
			require.Eventually(t, func() bool { return len(uploadsOf(t, s)) == 0 }, time.Minute, 50*time.Millisecond)
			if stage != "CompleteMultipartUpload" {
				assert.Zero(t, used(t, server), "parts that were on their way are freed too")
			}
		})
	}
}

// Damage on the way is refused by the store, and sent again.
func TestDamageOnTheWay(t *testing.T) {
	_, proxy, s := proxied(t)
	data := random(t, 20*mib)
	for _, op := range []string{"UploadPart", "PutObject"} {
		proxy.Handle(s3test.First(1, op, s3test.FlipRequest()))
		size := len(data)
		if op == "PutObject" {
			size = 1000
		}
		proxy.Forget()
		require.NoError(t, put(t, s, op, data[:size], store.Condition{}))
		assert.GreaterOrEqual(t, proxy.Count(op), 2)
		got, err := read(t.Context(), s, op)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(data[:size], got), "damaged data was stored")
	}
	proxy.Handle(s3test.Always("UploadPart", s3test.FlipRequest()))
	require.Error(t, put(t, s, "damaged", data, store.Condition{}))
	_, err := s.Head(t.Context(), "damaged")
	require.ErrorIs(t, err, store.ErrNotFound)
	assert.Empty(t, uploadsOf(t, s))
}
