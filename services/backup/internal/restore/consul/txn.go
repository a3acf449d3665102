package consul

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source/consulkv"
)

const (
	doingWrite = "writing keys"
	// maxTries is how often a key is written that changes each time before that.
	maxTries = 5
	// What Consul answers when a token may not do something, and when a check-and-set names an index that is not the key's.
	denied = "Permission denied"
	stale  = "index is stale"
)

// opError is why one operation of a transaction failed. None of the others happened then.
type opError struct {
	OpIndex int
	What    string
}

// carryOut writes a batch. It returns an error when nothing else can be written either.
func (w *writer) carryOut(writes []*write) error {
	if len(writes) == 1 && writes[0].room() > maxBody && consulkv.Plain(writes[0].thing.item.Name) {
		return w.put(writes[0])
	}
	return w.transact(writes)
}

// transact writes keys in one transaction, and when some of them are not as they were, the others.
func (w *writer) transact(writes []*write) error {
	for len(writes) > 0 {
		body := encode(writes)
		a, err := w.dest.ask(w.ctx, doingWrite, http.MethodPut, "/v1/txn", func() io.Reader { return bytes.NewReader(body) })
		if err != nil {
			return err
		}
		for _, wr := range writes {
			wr.lost = wr.lost || a.lost
		}
		switch a.status {
		case http.StatusOK:
			for _, wr := range writes {
				wr.thing.done = true
			}
			return nil
		case http.StatusConflict:
			if writes, err = w.sort(writes, a.body); err != nil {
				return err
			}
		case http.StatusRequestEntityTooLarge:
			return w.tooLarge(writes, len(body), a)
		default:
			return w.dest.refused(w.ctx, doingWrite, a.error())
		}
	}
	return nil
}

// encode makes a transaction's body.
func encode(writes []*write) []byte {
	size := 2
	for _, wr := range writes {
		size += wr.room()
	}
	b := make([]byte, 0, size)
	for i, wr := range writes {
		b = append(b, "[,"[min(i, 1)])
		b = append(append(b, `{"KV":{"Verb":"cas","Key":`...), wr.key...)
		b = strconv.AppendUint(append(b, `,"Flags":`...), wr.flags, 10)
		b = strconv.AppendUint(append(b, `,"Index":`...), wr.index, 10)
		b = append(append(append(b, `,"Value":"`...), wr.value...), `"}}`...)
	}
	return append(b, ']')
}

// sort takes out the keys that made a transaction fail and are decided now. The others have not been written.
func (w *writer) sort(writes []*write, body []byte) ([]*write, error) {
	var said struct{ Errors []opError }
	if err := json.Unmarshal(body, &said); err != nil || len(said.Errors) == 0 {
		return nil, w.dest.Failed(w.ctx, source.Damaged, doingWrite, errors.New("it answered 409, and not in Consul's way"))
	}
	for _, e := range said.Errors {
		if e.OpIndex < 0 || e.OpIndex >= len(writes) {
			return nil, w.dest.Failed(w.ctx, source.Damaged, doingWrite, fmt.Errorf("it names operation %d of %d", e.OpIndex, len(writes)))
		}
		switch wr := writes[e.OpIndex]; {
		case strings.Contains(e.What, denied):
			wr.fail(notAllowed(wr.thing.item.Name))
		case strings.HasSuffix(e.What, stale):
			if err := w.again(wr); err != nil {
				return nil, err
			}
		default:
			wr.fail(fmt.Errorf("the destination refused it: %s", e.What))
		}
	}
	var left []*write
	for _, wr := range writes {
		if !wr.thing.done {
			left = append(left, wr)
		}
	}
	return left, nil
}

func notAllowed(name string) error {
	return fmt.Errorf(`the token may not write it; give it: key %q { policy = "write" }`, name)
}

func (wr *write) fail(err error) {
	wr.thing.item.Action, wr.thing.item.Err = restore.Failed, err
	wr.thing.done = true
}

// again decides anew about a key that is not as it was.
func (w *writer) again(wr *write) error {
	item := &wr.thing.item
	there, value, err := w.dest.look(w.ctx, item.Name)
	if e, ok := errors.AsType[*source.Error](err); ok && e.Reason == source.Denied {
		wr.fail(err)
		return nil
	}
	if err != nil {
		return err
	}
	now := decide(item.Name, consulkv.Entry{Flags: wr.flags, Value: wr.value, Size: wr.thing.size}, there, value)
	switch {
	case now.action == restore.Same && wr.lost:
		wr.thing.done = true // as it was meant
		return nil
	case now.action == restore.Same, now.action == restore.Differs && !w.force:
		*item = now.item()
		wr.thing.done = true
		return nil
	case now.action == restore.Differs:
		now.action = restore.Change
	}
	*item = now.item()
	wr.index = there.index
	if wr.tries++; wr.tries == maxTries {
		wr.fail(fmt.Errorf("it changed at the destination %d times while it was being replaced", maxTries))
	}
	return nil
}

// tooLarge does with less at once what the destination took for too large.
func (w *writer) tooLarge(writes []*write, size int, a answer) error {
	if n := len(writes); n > 1 {
		if strings.HasPrefix(string(a.body), "Request body") {
			w.most.Store(min(w.most.Load(), int64(size/2)))
		}
		if err := w.transact(writes[:n/2]); err != nil {
			return err
		}
		return w.transact(writes[n/2:])
	}
	if consulkv.Plain(writes[0].thing.item.Name) {
		return w.put(writes[0])
	}
	writes[0].fail(fmt.Errorf("a value of %d B is too large for a transaction there, and a key of this name can be written in no other way; "+
		"limits.txn_max_req_len of the destination would have to be raised: %w", writes[0].thing.size, a.error()))
	return nil
}

// put writes a key by itself, which takes larger values.
func (w *writer) put(wr *write) error {
	value, err := base64.StdEncoding.AppendDecode(nil, wr.value)
	if err != nil {
		return fmt.Errorf("decoding the value of %q: it is no base64", wr.thing.item.Name)
	}
	for !wr.thing.done {
		path := fmt.Sprintf("/v1/kv/%s?cas=%d&flags=%d", (&url.URL{Path: wr.thing.item.Name}).EscapedPath(), wr.index, wr.flags)
		a, err := w.dest.ask(w.ctx, doingWrite, http.MethodPut, path, func() io.Reader { return bytes.NewReader(value) })
		if err != nil {
			return err
		}
		wr.lost = wr.lost || a.lost
		switch said := string(bytes.TrimSpace(a.body)); {
		case a.status == http.StatusOK && said == "true":
			wr.thing.done = true
		case a.status == http.StatusOK && said == "false":
			if err := w.again(wr); err != nil {
				return err
			}
		case a.status == http.StatusForbidden && strings.Contains(said, denied):
			wr.fail(notAllowed(wr.thing.item.Name))
		case a.status == http.StatusRequestEntityTooLarge:
			wr.fail(fmt.Errorf("its value of %d B is too large for the destination, where limits.kv_max_value_size would have to be raised: %w",
				len(value), a.error()))
		default:
			return w.dest.refused(w.ctx, doingWrite, a.error())
		}
	}
	return nil
}
