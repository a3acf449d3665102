package drill

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	consulrestore "github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore/consul"
	consulsource "github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consul"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// consul imports a snapshot into a throwaway server and reads it back with the code that took it. With a raft snapshot beside it, that
// is restored too, into a server of its own.
func (r *run) consul(ctx context.Context, s *scratch) error {
	d := &consulDrill{run: r, file: filepath.Join(s.Dir(), "snapshot.json")}
	srv, err := s.serve(ctx, r.in.Manifest.GetData(), d.file, throwaway.StartConsul, throwaway.Options{Binary: r.in.Servers.ConsulBinary})
	if err != nil {
		return err
	}
	dest := consulOf(srv)
	err = s.with(ctx, srv, func() error {
		return r.rehearse(ctx, func() error { return d.restore(ctx, dest) }, func() error { return d.compare(ctx, dest) }, consulData{dest})
	})
	for i, part := range r.in.Manifest.GetParts() {
		if err == nil {
			err = d.raft(ctx, s, part, i)
		}
	}
	return err
}

func consulOf(srv *throwaway.Server) config.Consul {
	return config.Consul{Address: srv.Address, TLS: srv.TLS, TokenFile: secretFile(srv.TokenFile)}
}

// consulDrill is what the phases of one drill hand to each other.
type consulDrill struct {
	*run
	file string
}

func (d *consulDrill) restore(ctx context.Context, dest config.Consul) error {
	var f failures
	_, err := consulrestore.Restore(ctx, dest, fromFile(d.file), consulrestore.Selection{}, restore.Options{Apply: true, Item: f.item})
	if named := f.err(); named != nil {
		return named
	}
	return err
}

// account is what was read from a server.
type account struct {
	sha256 string
	info   *lifeboatv1.SourceInfo
}

// read reads everything under the prefixes, as a snapshot would. What it reads is in a form that depends on nothing but keys, flags
// and values, so that equal digests mean equal content.
func (d *consulDrill) read(ctx context.Context, dest config.Consul) (account, error) {
	stream, err := consulsource.New(dest, consulsource.Options{}).Open(ctx)
	if err != nil {
		return account{}, err
	}
	defer stream.Close()
	sum := sha256.New()
	if _, err = io.Copy(sum, stream); err != nil {
		return account{}, err
	}
	info, err := stream.Info(ctx)
	return account{hex.EncodeToString(sum.Sum(nil)), info}, err
}

// compare reads the restored keys and compares all of them.
func (d *consulDrill) compare(ctx context.Context, dest config.Consul) error {
	d.rto()
	got, err := d.read(ctx, dest)
	if err != nil {
		return fmt.Errorf("reading the restored keys: %w", err)
	}
	for _, name := range []string{"keys", "bytes"} {
		d.count(name, got.info.GetCounts()[name])
	}
	return d.content(ctx, "content", d.in.Manifest.GetData().GetRaw().GetSha256(), got, dest, "")
}

// content compares digests, and when they differ key by key. of begins the names in the report.
func (d *consulDrill) content(ctx context.Context, what, want string, got account, dest config.Consul, of string) error {
	d.account()
	if got.sha256 == want {
		d.equal(what, digestText(want), digestText(got.sha256))
		return nil
	}
	file, err := os.Open(d.file)
	if err != nil {
		return err
	}
	defer file.Close()
	stream, err := consulsource.New(dest, consulsource.Options{}).Open(ctx)
	if err != nil {
		return fmt.Errorf("reading the restored keys again: %w", err)
	}
	defer stream.Close()
	differ := 0
	err = mergeKV(file, stream, func(key, want, got string) {
		if differ++; differ <= maxNamed {
			d.note(&lifeboatv1.Comparison{What: of + "key " + strconv.Quote(key), Want: want, Got: got})
		}
	})
	if err != nil {
		return fmt.Errorf("comparing key by key: %w", err)
	}
	if differ == 0 {
		// The same content in other words, as of another version.
		d.note(&lifeboatv1.Comparison{What: what, Want: "equal key by key", Got: "equal key by key", Ok: true})
		return nil
	}
	d.number("the number of "+of+"keys that differ", 0, int64(differ))
	return nil
}

func digestText(sum string) string { return "sha256 " + sum }

// raft restores the raft snapshot of the whole datacenter. It was read at another moment than the keys, so that what can be compared
// depends on whether a key was written in between.
func (d *consulDrill) raft(ctx context.Context, s *scratch, part *lifeboatv1.Data, i int) error {
	file := filepath.Join(s.Dir(), fmt.Sprintf("part-%d.%s", i, part.GetFormat()))
	srv, err := s.serve(ctx, part, file, throwaway.StartConsul, throwaway.Options{Binary: d.in.Servers.ConsulBinary})
	if err != nil {
		return err
	}
	dest := consulOf(srv)
	return s.with(ctx, srv, func() error {
		err := d.phase(ctx, phaseRestore, func() error {
			if rerr := d.archive(file, part, "raft snapshot"); rerr != nil {
				return rerr
			}
			return consulrestore.RestoreRaft(ctx, dest, fromFile(file))
		})
		if err != nil {
			return err
		}
		return d.phase(ctx, phaseCompare, func() error { return d.compareRaft(ctx, dest) })
	})
}

// compareRaft reads the keys of the restored datacenter. Their index came with the snapshot: when it is that of the keys' own
// snapshot, nothing was written between the two, and they must be the same.
func (d *consulDrill) compareRaft(ctx context.Context, dest config.Consul) error {
	const of = "raft snapshot: "
	src := d.in.Manifest.GetSource()
	if prefixes := src.GetIdentity()["prefixes"]; prefixes != "" {
		dest.Prefixes = strings.Split(prefixes, ",")
	}
	got, err := d.read(ctx, dest)
	if err != nil {
		return fmt.Errorf("reading the keys of the restored datacenter: %w", err)
	}
	if n := src.GetCounts()["keys"]; n > 0 && got.info.GetCounts()["keys"] == 0 {
		d.number(of+"keys", n, 0) // whatever was written in between did not delete all of them
		return nil
	}
	if got.info.GetRevision() != src.GetRevision() {
		d.incomparable(of+"keys", strconv.FormatInt(got.info.GetCounts()["keys"], 10), fmt.Sprintf(
			"a key was written between the two reads: its keys are at index %d, and those of the snapshot at %d", got.info.GetRevision(),
			src.GetRevision()))
		return nil
	}
	d.number(of+"keys", src.GetCounts()["keys"], got.info.GetCounts()["keys"])
	return d.content(ctx, of+"content", d.in.Manifest.GetData().GetRaw().GetSha256(), got, dest, of)
}
