package etcd

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

// task is one thing of the restore: what is to become of it, and what became.
type task struct {
	item restore.Item
	// kv is the key in the snapshot; nil of what is only at the destination.
	kv   *mvccpb.KeyValue
	name string
	// seen is the destination's revision of the key that a write replaces; 0 when it was not there.
	seen int64
	// intended is what a write whose answer was lost would have done; empty when none was lost.
	intended restore.Action
	// settled says that item is how it ended.
	settled bool
}

// writes says whether it changes the destination.
func (t *task) writes() bool {
	return t.item.Action == restore.Create || t.item.Action == restore.Change
}

func (t *task) fail(err error) {
	t.item.Action, t.item.Detail, t.item.Err = restore.Failed, "", err
}

// when and then are the two halves of its write: only as it was seen.
func (t *task) when() clientv3.Cmp {
	if t.seen == 0 {
		return clientv3.Compare(clientv3.Version(t.name), "=", 0)
	}
	return clientv3.Compare(clientv3.ModRevision(t.name), "=", t.seen)
}

func (t *task) then() clientv3.Op {
	var opts []clientv3.OpOption
	if id := t.kv.GetLease(); id != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(id)))
	}
	return clientv3.OpPut(t.name, string(t.kv.GetValue()), opts...)
}

// size is about how many bytes its write adds to a request: the key is in it twice.
func (t *task) size() int { return 2*len(t.name) + len(t.kv.GetValue()) + 64 }

// decider says what becomes of a key.
type decider struct {
	force  bool
	leases bool
	ttl    map[int64]int64
}

// excluded is for what is not restored whatever the destination has.
func (d *decider) excluded(e entry) *restore.Item {
	item := restore.Item{Kind: "key", Name: printable(e.name)}
	id := e.kv.GetLease()
	ttl, known := d.ttl[id]
	switch {
	case e.name == "":
		item.Name, item.Action = printable(string(e.kv.GetKey())), restore.Failed
		item.Err = errors.New("the rename leaves nothing of its name")
	case e.clash:
		item.Action = restore.Failed
		item.Err = fmt.Errorf("another key would come to the same name as %s", printable(string(e.kv.GetKey())))
	case id != 0 && !known:
		item.Action, item.Detail = restore.Skip, "belongs to a lease that the snapshot does not have"
	case id != 0 && !d.leases:
		item.Action, item.Detail = restore.Skip, fmt.Sprintf("belongs to a lease of %ds TTL that nobody holds", ttl)
	default:
		return nil
	}
	return &item
}

// decide compares a key with what is at the destination, nil when nothing is.
func (d *decider) decide(t *task, there *mvccpb.KeyValue) {
	t.item = restore.Item{Kind: "key", Name: printable(t.name)}
	switch detail := difference(there, t.kv); {
	case there == nil:
		t.seen, t.item.Action = 0, restore.Create
	case detail == "":
		t.item.Action = restore.Same
	case d.force:
		t.seen, t.item.Action, t.item.Detail = there.GetModRevision(), restore.Change, detail
	default:
		t.item.Action, t.item.Detail = restore.Differs, detail
	}
}

// difference says how what is there differs from what the snapshot has, with values masked; empty when it does not.
func difference(there, kv *mvccpb.KeyValue) string {
	if there == nil {
		return ""
	}
	was, is := len(there.GetValue()), len(kv.GetValue())
	detail := ""
	switch {
	case was != is:
		detail = fmt.Sprintf("value %d B -> %d B", was, is)
	case !bytes.Equal(there.GetValue(), kv.GetValue()):
		detail = fmt.Sprintf("value %d B, another content", is)
	}
	switch {
	case there.GetLease() != 0 && kv.GetLease() == 0:
		detail = join(detail, "a lease there ends it, and none in the snapshot")
	case there.GetLease() == 0 && kv.GetLease() != 0:
		detail = join(detail, "no lease ends it there, and one in the snapshot")
	}
	return detail
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ", " + b
}

// printable shows a key as it is where that can be read without doubt, and quoted otherwise: keys are any bytes.
func printable(key string) string {
	if !utf8.ValidString(key) || key == "" || key[0] == '"' {
		return strconv.Quote(key)
	}
	for _, r := range key {
		if !unicode.IsGraphic(r) || unicode.IsSpace(r) && r != ' ' {
			return strconv.Quote(key)
		}
	}
	if key[0] == ' ' || key[len(key)-1] == ' ' {
		return strconv.Quote(key)
	}
	return key
}
