package drill

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// starter starts a throwaway server: throwaway.StartConsul or throwaway.StartNomad.
type starter func(context.Context, *throwaway.Scratch, throwaway.Options) (*throwaway.Server, error)

// serve fetches an object into a file and starts a server meanwhile.
func (s *scratch) serve(
	ctx context.Context, data *lifeboatv1.Data, file string, start starter, o throwaway.Options,
) (srv *throwaway.Server, err error) {
	r := s.run
	o.Confine, o.RequireIsolation = r.in.Servers.Confine, r.in.Servers.RequireIsolation
	err = s.together(
		func() error { return failed(phaseFetch, r.receive(ctx, data, file)) },
		func() error {
			return r.phase(ctx, phaseStart, func() error {
				var serr error
				if srv, serr = start(ctx, s.Scratch, o); serr != nil {
					return serr
				}
				s.watch.Follow(srv.PID())
				return nil
			})
		},
	)
	if srv == nil {
		return nil, err
	}
	r.report.Isolation = srv.Isolation
	if err != nil {
		return nil, s.with(ctx, srv, func() error { return err })
	}
	return srv, nil
}

// with does something with a server and stops it whatever comes of that. A server that ended by itself is why the rest failed.
func (s *scratch) with(ctx context.Context, srv *throwaway.Server, do func() error) error {
	err := throwaway.Guard(do)
	select {
	case <-srv.Done():
		if err != nil {
			err = fmt.Errorf("%w; the throwaway server ended: %w", err, srv.Err())
		}
	default:
	}
	return errors.Join(err, s.run.phase(context.WithoutCancel(ctx), phaseStop, srv.Stop))
}

// rehearse restores into a server that runs, compares what is there then, and looks for what the user knows.
func (r *run) rehearse(ctx context.Context, restored, compared func() error, data any) error {
	if err := r.phase(ctx, phaseRestore, restored); err != nil {
		return err
	}
	r.answers()
	if err := r.phase(ctx, phaseCompare, compared); err != nil {
		return err
	}
	return r.checks(ctx, data)
}

// fromFile gives restores the fetched file, whose digests were compared when it was written.
func fromFile(file string) restore.Open {
	return func(context.Context) (io.ReadCloser, error) { return os.Open(file) }
}

// failures collects what a restore could not bring back: the first few by name, and how many there are.
type failures struct {
	named []string
	n     int
}

func (f *failures) item(i restore.Item) {
	switch i.Action {
	case restore.Failed:
		f.add(fmt.Sprintf("%s %q: %v", i.Kind, i.Name, i.Err))
	case restore.Differs:
		// A throwaway server is empty: two things of the snapshot have one name.
		f.add(fmt.Sprintf("%s %q is there already and differs: %s", i.Kind, i.Name, i.Detail))
	case restore.Create, restore.Change, restore.Same, restore.Extra, restore.Skip:
	}
}

func (f *failures) add(text string) {
	if f.n++; f.n <= maxNamed {
		f.named = append(f.named, short(text))
	}
}

// err is nil when nothing failed.
func (f *failures) err() error {
	if f.n == 0 {
		return nil
	}
	more := ""
	if f.n > maxNamed {
		more = fmt.Sprintf("; and %d more", f.n-maxNamed)
	}
	return fmt.Errorf("%d things could not be restored: %s%s", f.n, strings.Join(f.named, "; "), more)
}

// secretFile is a token's file, as the configuration has it.
func secretFile(path string) config.SecretFile { return config.SecretFile(path) }
