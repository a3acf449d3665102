package deliver

import (
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/route"
)

// compiled is what is made of one configuration: it costs more than a delivery.
type compiled struct {
	cfg *config.Config
	// began is when this process had its first configuration, and gone when it lost a receiver that it had.
	began     time.Time
	gone      map[string]time.Time
	tree      *route.Tree
	renderer  *render.Renderer
	receivers map[string]config.Receiver
	senders   map[string]Sender
}

// current is what the configuration in force means. It is made anew when that is another one; senders whose receiver has not
// changed stay.
func (d *Deliverer) current() (*compiled, error) {
	cfg := d.o.Config()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.compiled != nil && d.compiled.cfg == cfg {
		return d.compiled, nil
	}
	tree, err := route.Compile(cfg.Notifier)
	if err != nil {
		return nil, fmt.Errorf("compiling routes: %w", err)
	}
	renderer, err := render.New(cfg.Notifier)
	if err != nil {
		// An alert is not kept back for its form: who has a broken template gets the default message.
		d.o.Logger.Error("a receiver's template is broken; it gets the default message", slog.Any("err", err))
	}
	c := &compiled{
		cfg: cfg, began: d.o.Now(), gone: map[string]time.Time{}, tree: tree, renderer: renderer,
		receivers: map[string]config.Receiver{}, senders: map[string]Sender{},
	}
	if old := d.compiled; old != nil {
		for name := range old.receivers {
			c.gone[name] = c.began
		}
		maps.Copy(c.gone, old.gone)
		c.began = old.began
	}
	for _, r := range cfg.Notifier.Receivers {
		c.receivers[r.Name] = r
		delete(c.gone, r.Name)
		if old := d.compiled; old != nil && reflect.DeepEqual(old.receivers[r.Name], r) && old.senders[r.Name] != nil {
			if _, failed := old.senders[r.Name].(broken); !failed {
				c.senders[r.Name] = old.senders[r.Name]
				continue
			}
		}
		if c.senders[r.Name], err = d.o.Sender(r); err != nil {
			// The others need not wait for this one, and its fallback takes over.
			d.o.Logger.Error("a receiver cannot be prepared", slog.String("receiver", r.Name), slog.Any("err", err))
			c.senders[r.Name] = broken{err: err}
		}
	}
	d.compiled = c
	return c, nil
}

// broken stands for a sender that could not be made. Without a key it is never asked to send.
type broken struct {
	Sender
	err error
}

func (b broken) Key() (string, error) { return "", b.err }

// unknownFor is how long what is for a receiver that is not configured here waits: while a fleet is updated, another notifier has
// another configuration, and may know the receiver.
const unknownFor = 10 * time.Minute

// receiver is the one with a name, and its sender. Without one the error is bus.Terminal when a message that was stored at a moment has
// waited for long enough for a notifier that knows the receiver; before that it has to be tried again.
func (c *compiled) receiver(name string, stored, now time.Time) (config.Receiver, Sender, error) {
	r, ok := c.receivers[name]
	if ok {
		return r, c.senders[name], nil
	}
	err := fmt.Errorf("no receiver is named %q in this notifier's configuration", name)
	if c.orphaned(name, stored, now) {
		return r, nil, bus.Terminal("unknown_receiver", err)
	}
	return r, nil, fmt.Errorf("%w; another notifier's may have it", err)
}

// orphaned says whether no other notifier is to be expected that knows the receiver of a message.
func (c *compiled) orphaned(name string, stored, now time.Time) bool {
	missing, ok := c.gone[name]
	if !ok {
		missing = c.began
	}
	return now.Sub(stored) >= unknownFor && now.Sub(missing) >= unknownFor
}
