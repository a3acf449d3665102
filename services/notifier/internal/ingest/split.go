package ingest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	"github.com/lifeboat-fleet/lifeboat/fleet/bus"
)

const (
	// maxPart is about how large a message may get; NATS takes 1 MiB by default, and a delivery wraps the part.
	maxPart = 512 << 10
	// maxEnvelope is what everything but the alerts may take of it, and maxAlert what one alert may.
	maxEnvelope = 64 << 10
	maxAlert    = maxPart - maxEnvelope
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

// identity hashes group, receiver and the sorted alerts. startsAt is in it because an alert that fires anew is otherwise the same.
func (n *note) identity(alerts []item) string {
	keys := make([]string, 0, len(alerts))
	for _, a := range alerts {
		key := make([]byte, 0, 64)
		key = append(append(key, a.fingerprint...), ' ')
		if !a.startsAt.IsZero() {
			key = append(strconv.AppendInt(key, a.startsAt.Unix(), 10), '.')
			key = strconv.AppendInt(key, int64(a.startsAt.Nanosecond()), 10)
		}
		keys = append(keys, string(append(append(key, ' '), a.status...)))
	}
	slices.Sort(keys)
	text := make([]byte, 0, 64*(len(keys)+2))
	text = strconv.AppendQuote(text, n.groupKey)
	text = strconv.AppendQuote(append(text, ' '), n.receiver)
	for _, k := range keys {
		text = strconv.AppendQuote(append(text, ' '), k)
	}
	return hashed("am-", text)
}

// hashed is a prefix and 128 bits of a text's hash.
func hashed(prefix string, text []byte) string {
	sum := sha256.Sum256(text)
	return prefix + hex.EncodeToString(sum[:16])
}
