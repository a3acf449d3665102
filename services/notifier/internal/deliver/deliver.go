// Package deliver routes what was received and brings it to each receiver.
//
//	lifeboat.alert.received -> route -> lifeboat.alert.delivery.<receiver> -> fold -> budget -> render -> send -> event
//
// The two hops make receivers independent: one that is throttled or broken keeps its own deliveries waiting, in order,
// and nobody else's. Each hop acknowledges its message only after the next one holds it, so a crash anywhere repeats
// work and loses none: a notification is routed again into deliveries of the same ids, and a delivery is sent again,
// unless the group's state says that it was told. What can never be delivered becomes a dead letter with the reason.
//
// See doc.go for who may send what when.
package deliver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/budget"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

const (
	ackWait = 30 * time.Second
	// sendTimeout bounds one attempt, and with it how long a stop takes.
	sendTimeout = 20 * time.Second
	// relist is how often deliveries are looked for that no consumer of ours takes, besides at each reload: another
	// replica may have put them there under an older configuration.
	relist = 15 * time.Second
)

// Bus is what this package needs of it.
type Bus interface {
	Consume(ctx context.Context, c bus.Consumer) error
	Publish(ctx context.Context, o bus.Outgoing) (seq uint64, err error)
	PublishAll(ctx context.Context, all []bus.Outgoing) error
	PutState(ctx context.Context, s bus.State) (seq uint64, err error)
	Last(ctx context.Context, stream, subject string, into proto.Message) (seq uint64, at time.Time, err error)
	First(ctx context.Context, stream, filter string) (*bus.Message, error)
	ScanFrom(ctx context.Context, stream, filter string, from uint64, each func(*bus.Message) error) error
	Delete(ctx context.Context, stream string, seq uint64) error
	Subjects(ctx context.Context, stream, filter string) (map[string]uint64, error)
	DeadLetter(ctx context.Context, reason string, d *lifeboatv1.DeadLetter) error
	Emit(ctx context.Context, e *lifeboatv1.Event) error
}

// Sender brings notices to one chat. It holds no state: what it must remember of a group is in the Ref.
type Sender interface {
	// Key names the robot or channel that the chat's limits are for, in letters, digits and dashes: a hash, for its address is a
	// secret. Receivers with the same one share a budget.
	Key() (string, error)
	// Split parts a notice into ones that each fit into a message, at least one. Notices of the same content are parted alike.
	Split(n notice.Notice) []notice.Notice
	// Send posts a notice, or changes the message that the group had before where the chat can. It calls take before every request.
	// The Ref is where the message stands now, also with an error, when a part of the work was done.
	//
	// An error is bus.Terminal when no further attempt can help, bus.RetryAfter when the chat must be left alone for a while, and
	// else worth another attempt soon. It never holds a secret.
	Send(ctx context.Context, n notice.Notice, before notice.Ref, take notice.Take) (notice.Ref, error)
}

// Pages finds runbooks.
type Pages interface {
	Page(ctx context.Context, cfg config.Runbooks, name string, annotations map[string]string) runbook.Page
	// Count counts an alert that was told without a runbook, for its team.
	Count(team string)
}

// Budgets are what robots and channels may be sent, over the whole fleet.
type Budgets interface {
	Take(ctx context.Context, key string, rule budget.Rule, critical bool) (wait time.Duration, err error)
	Late(ctx context.Context, key string, rule budget.Rule, begun, ended time.Time) error
	Pause(ctx context.Context, key string, until time.Time, why string) error
	Trouble(ctx context.Context, key, why string) error
	Well(ctx context.Context, key string) error
	State(ctx context.Context, key string, rule budget.Rule) (budget.State, error)
	// Show says whose budgets the metric of what is left shows, by receiver.
	Show(all map[string]budget.Shown)
}

// Options of a Deliverer.
type Options struct {
	Bus Bus
	// Config is the configuration in force; Changed gets a value when that is another one.
	Config  func() *config.Config
	Changed <-chan struct{}
	// Sender makes the sender of a receiver.
	Sender  func(config.Receiver) (Sender, error)
	Budgets Budgets
	Pages   Pages
	// Links makes the signed links that silence a group; it may return none.
	Links func(cfg config.Interactions, words notice.Words, matchers map[string]string, comment string) []notice.Link
	// GiveWay returns when the next step may go on, which is soon; nil: always at once.
	GiveWay    func(context.Context)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
}

// Deliverer routes and delivers.
type Deliverer struct {
	o       Options
	metrics *metrics

	// mu guards what is compiled from the configuration in force.
	mu       sync.Mutex
	compiled *compiled

	// measured are the receivers that have gauges, asleep is what is held of each. They are the sweep's own.
	measured map[string]bool
	asleep   map[string]asleep
}

// New makes a deliverer.
func New(o Options) *Deliverer {
	return &Deliverer{o: o, metrics: newMetrics(o.Registerer), measured: map[string]bool{}, asleep: map[string]asleep{}}
}

// giveWay lets what is more urgent go first: webhooks that are being taken.
func (d *Deliverer) giveWay(ctx context.Context) {
	if d.o.GiveWay != nil {
		d.o.GiveWay(ctx)
	}
}
