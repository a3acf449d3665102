package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/oklog/ulid/v2"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

const (
	// maxPart is about how large a message may get; NATS takes 1 MiB by default, and a delivery wraps the part.
	maxPart = 512 << 10
	// maxEnvelope is what everything but the alerts may take of it, and maxAlert what one alert may.
	maxEnvelope = 64 << 10
	maxAlert    = maxPart - maxEnvelope
	// maxSingle is a body that fits into a message even if every byte of it became six.
	maxSingle = maxAlert / 6
	// usualEnvelope is what it takes as a rule, and usualAlert what an alert takes.
	usualEnvelope = 2 << 10
	usualAlert    = 1 << 10
)

// span is the alerts from first to last, and where they stand among the written ones.
type span struct{ first, last, from, to int }

// split makes messages that each fit into NATS, each with an id of its own. A note that has an id keeps it. n is used up.
//
// A webhook of Alertmanager has none, and none is made of what it says: an alert that ended and fires on, with the startsAt that it had,
// posts the very same again, minutes later, and NATS would drop it. What was posted twice because an answer was lost is folded.
//
// Every alert is written once: their sizes say where to split, and the messages are made of the same bytes.
func split(n *note) []bus.Outgoing {
	n.shrink()
	if n.size > 0 && n.size <= maxSingle {
		return []bus.Outgoing{n.single()}
	}
	written, spans := n.write()
	out := make([]bus.Outgoing, 0, len(spans))
	id := n.id
	n.parts = len(spans)
	for i, s := range spans {
		n.part = i + 1
		switch {
		case id == "":
			n.id = newID("am-")
		case n.parts > 1:
			n.id = fmt.Sprintf("%s-%d", id, n.part)
		}
		data := make([]byte, 0, s.to-s.from+usualEnvelope)
		out = append(out, bus.Outgoing{Subject: bus.SubjectReceived, Data: n.append(data, written[s.from:s.to]), ID: n.id})
	}
	return out
}

// single is the one message of a body that is so small that there is nothing to split: it is written in one go.
func (n *note) single() bus.Outgoing {
	n.part, n.parts = 1, 1
	if n.id == "" {
		n.id = newID("am-")
	}
	data := n.open(make([]byte, 0, n.size+usualEnvelope/2))
	for i := range n.alerts {
		if i > 0 {
			data = append(data, ',')
		}
		data = n.alerts[i].append(data)
	}
	return bus.Outgoing{Subject: bus.SubjectReceived, Data: append(data, ']', '}'), ID: n.id}
}

// write puts the alerts one behind the other with commas, and says which ones make a message together.
func (n *note) write() (written []byte, spans []span) {
	written = make([]byte, 0, min(len(n.alerts)*usualAlert, maxBody))
	for i := range n.alerts {
		a, from := &n.alerts[i], len(written)
		written = a.append(written)
		if len(written)-from > maxAlert {
			a.shrink()
			written = a.append(written[:from])
		}
		if len(spans) == 0 || len(written)-spans[len(spans)-1].from > maxAlert {
			spans = append(spans, span{first: i, from: from})
		}
		s := &spans[len(spans)-1]
		s.last, s.to = i+1, len(written)
		written = append(written, ',')
	}
	return written, spans
}

// newID is a prefix and a ULID.
func newID(prefix string) string { return prefix + ulid.Make().String() }

// hashed is a prefix and 128 bits of a text's hash.
func hashed(prefix string, text []byte) string {
	sum := sha256.Sum256(text)
	return prefix + hex.EncodeToString(sum[:16])
}
