package drill

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/throwaway"
)

// etcdData asks a restored etcd at the snapshot's revision, whatever has expired since. It goes past the API, which asks for a user
// where authentication is on.
type etcdData struct {
	server   *throwaway.Etcd
	revision int64
}

func (d etcdData) at() int64 {
	if now := d.server.Revision(); d.revision == 0 || d.revision > now { // a manifest that does not say, or says what is not so
		return now
	}
	return d.revision
}

func (d etcdData) value(ctx context.Context, key string) (v []byte, known bool, err error) {
	found, err := d.server.Server().KV().Range(ctx, []byte(key), nil, mvcc.RangeOptions{Rev: d.at()})
	if err != nil {
		return nil, false, fmt.Errorf("reading the key at revision %d: %w", d.at(), err)
	}
	if len(found.KVs) == 0 {
		return nil, false, nil
	}
	return found.KVs[0].Value, true, nil
}

func (d etcdData) under(ctx context.Context, prefix string) (int64, error) {
	end := []byte(clientv3.GetPrefixRangeEnd(prefix))
	if string(end) == "\x00" { // the end of everything, which the store spells otherwise
		end = []byte{}
	}
	found, err := d.server.Server().KV().Range(ctx, []byte(prefix), end, mvcc.RangeOptions{Rev: d.at(), CountOnly: true})
	if err != nil {
		return 0, fmt.Errorf("counting keys at revision %d: %w", d.at(), err)
	}
	return int64(found.Count), nil
}
