package ops

import (
	"errors"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

// What follows is for who watches the fleet all the time, as the status page does, and has read the messages itself.

// Job is a job that waits or runs.
type Job = openJob

// Stuck says whether no worker takes the job.
func (j *openJob) Stuck() bool { return j.State == stateNoWorker }

// Runs says whether a worker is at it now.
func (j *openJob) Runs() bool { return j.State == stateRunning || j.State == stateCommitting }

// NewJob is the job of a message of the stream of jobs. The claim is the newest of its target and work, and may be nil or another job's.
func NewJob(m *bus.Message, claim *lifeboatv1.ClaimState, zone string, workers Crew) Job {
	j := newJob(m)
	j.Zone = zone
	j.describe(claim, workers)
	return j
}

// Delivery is how a delivery to one receiver ended. LagSeconds is from the webhook to the chat.
type Delivery = ended

// NewDelivery reads an event alert.delivered, alert.folded, alert.handed-on or alert.dead; stored stands in for a time that it lacks.
func NewDelivery(e *lifeboatv1.Event, stored time.Time) *Delivery { return newEnded(e, stored) }

// What is the alert that it was about, or how many.
func (d *ended) What() string { return d.what() }

// Dead says whether nobody was told.
func (d *ended) Dead() bool { return d.Outcome == outcomeDead }

// Crew are the workers that answered. The zero one is of a fleet without workers.
type Crew = crew

// NewCrew takes what Bus.Workers returned. With an error nothing is said about missing workers.
func NewCrew(workers []bus.WorkerInfo, err error) Crew { return crew{workers: workers, unknown: err} }

// UnknownCrew is that of who has not asked yet.
func UnknownCrew() Crew { return crew{unknown: errNotAsked} }

var errNotAsked = errors.New("nobody has asked yet")

// Known says whether workers could be asked.
func (c crew) Known() bool { return c.unknown == nil }

// Workers are those that answered.
func (c crew) Workers() []bus.WorkerInfo { return c.workers }

// Lacks says whether no worker takes this work in a zone; false when nobody could be asked.
func (c crew) Lacks(work config.Work, zone string) bool { return c.lacking(work, zone) != "" }

// Answers says whether a worker is among those that answered; true when nobody could be asked.
func (c crew) Answers(actor string) bool { return c.answers(actor) }

// Clean is one line of what other people and servers wrote, without control characters.
func Clean(s string) string { return clean(s) }

// Cut shortens a text to so many characters.
func Cut(s string, most int) string { return cut(s, most) }
