package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

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

// split makes messages that each fit into NATS, each with an id that depends on nothing but which alerts are in it and where they
// came from: a webhook that is sent again gives the same ids. A note that has an id keeps it. n is used up.
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
			n.id = n.identity(n.alerts[s.first:s.last])
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
		n.id = n.identity(n.alerts)
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

// identity hashes group, receiver and the alerts, which are sorted. startsAt is in it because an alert that fires anew is otherwise
// the same.
func (n *note) identity(alerts []item) string {
	text := make([]byte, 0, 256+64*len(alerts))
	part := func(s string) { // with its length before it, so that no two lists of texts are the same
		text = append(strconv.AppendInt(text, int64(len(s)), 10), ':')
		text = append(text, s...)
	}
	part(n.groupKey)
	part(n.receiver)
	for i := range alerts {
		part(alerts[i].fingerprint)
		part(alerts[i].status)
		if at := alerts[i].startsAt; !at.IsZero() {
			text = append(strconv.AppendInt(text, at.Unix(), 10), '.')
			text = strconv.AppendInt(text, int64(at.Nanosecond()), 10)
		}
	}
	return hashed("am-", text)
}

// hashed is a prefix and 128 bits of a text's hash.
func hashed(prefix string, text []byte) string {
	sum := sha256.Sum256(text)
	return prefix + hex.EncodeToString(sum[:16])
}
