package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/restore"
)

const (
	// batchOps and batchBytes are how much goes into one transaction. etcd takes 128 operations and 1.5 MiB unless it was told
	// otherwise (--max-txn-ops, --max-request-bytes).
	batchOps   = 128
	batchBytes = 1 << 20
	// batchTasks is how many keys are told of at once, also those that are not written.
	batchTasks = 1024
)

// planner compares the snapshot with the destination and hands out batches.
type planner struct {
	*run
	apply bool
	out   chan *batch
	err   error // once out is closed

	there list
	batch *batch
	bytes int // that the batch's writes have
}

func (p *planner) plan(ctx context.Context) error {
	p.there = list{dest: p.dest}
	p.batch = &batch{}
	keys := merge(p.view, p.sel.segments())
	for _, sp := range p.sel.cover() {
		if err := p.span(ctx, keys, sp); err != nil {
			return err
		}
	}
	return p.flush(ctx)
}

// span goes through one span of the destination.
func (p *planner) span(ctx context.Context, keys *merged, sp span) error {
	for at := sp.lo; ; {
		page, err := p.page(ctx, keys, sp.hi)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			// Only what the snapshot does not have is left.
			p.there.within(span{at, sp.hi}, namesOnly, true)
			return p.compare(ctx, nil)
		}
		// Of the destination, only what lies up to the page's last key is asked for: to answer, etcd counts all that was asked for.
		end := page[len(page)-1].name + "\x00"
		p.there.within(span{at, end}, int64(len(page)+pageKeys/4), false)
		if err := p.compare(ctx, page); err != nil {
			return err
		}
		at = max(at, end)
	}
}

// page gives the next keys of the snapshot by the names that they get.
func (p *planner) page(ctx context.Context, keys *merged, hi string) ([]entry, error) {
	var page []entry
	for bytes := 0; len(page) < pageKeys && bytes < pageBytes; {
		next, err := keys.next(ctx, hi)
		if err != nil || len(next) == 0 {
			return page, err
		}
		for _, e := range next {
			bytes += len(e.kv.GetValue())
		}
		page = append(page, next...)
	}
	return page, nil
}

// compare decides about the keys of a page, and what is at the destination between them.
func (p *planner) compare(ctx context.Context, page []entry) error {
	last := ""
	for _, e := range page {
		there, err := p.upTo(ctx, e.name, last)
		if err != nil {
			return err
		}
		t := &task{kv: e.kv, name: e.name}
		if item := p.decide.excluded(e); item != nil {
			t.item = *item
		} else {
			p.decide.decide(t, there)
		}
		if err := p.add(ctx, t); err != nil {
			return err
		}
		last = e.name
	}
	_, err := p.upTo(ctx, "", last)
	return err
}

// upTo goes to a key at the destination and returns it; nil when it is not there. What is passed is only there, but for the last
// name, which has been decided about. Without a name it goes to the end.
func (p *planner) upTo(ctx context.Context, name, last string) (*mvccpb.KeyValue, error) {
	for {
		there, err := p.there.head(ctx)
		if err != nil || there == nil {
			return nil, err
		}
		key := string(there.GetKey())
		switch {
		case name != "" && key > name:
			return nil, nil //nolint:nilnil // not there
		case name != "" && key == name:
			return there, nil
		}
		p.there.page = p.there.page[1:]
		if key == last {
			continue
		}
		extra := &task{item: restore.Item{Kind: "key", Name: printable(key), Action: restore.Extra}}
		if err := p.add(ctx, extra); err != nil {
			return nil, err
		}
	}
}

// add puts a task into the batch, and sends that away when it is full.
func (p *planner) add(ctx context.Context, t *task) error {
	if t.writes() {
		if p.batch.writes > 0 && p.bytes+t.size() > batchBytes {
			if err := p.flush(ctx); err != nil {
				return err
			}
		}
		p.batch.writes++
		p.bytes += t.size()
	}
	p.batch.tasks = append(p.batch.tasks, t)
	if p.batch.writes == batchOps || len(p.batch.tasks) == batchTasks {
		return p.flush(ctx)
	}
	return nil
}

// flush sends the batch away.
func (p *planner) flush(ctx context.Context) error {
	b := p.batch
	p.batch, p.bytes = &batch{}, 0
	b.done = make(chan struct{})
	if !p.apply || b.writes == 0 {
		close(b.done)
	}
	select {
	case p.out <- b:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.apply && b.writes > 0 {
		go p.write(ctx, b)
	}
	return nil
}
