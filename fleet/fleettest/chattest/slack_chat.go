package chattest

import (
	"encoding/json"
	"slices"
	"time"
)

// wrong returns the API's word for what is wrong with a message.
func (c call) wrong() string {
	switch {
	case units(c.payload.Text) > slackMaxText:
		return "msg_too_long"
	case c.problem == "invalid_payload":
		return "invalid_blocks_format"
	}
	return c.problem
}

// channelWord returns Slack's word for a channel that cannot be posted to.
func (s *Server) channelWord(channel string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	word, known := s.slack.channels[channel]
	if !known && channel != s.slackApp.channel {
		return "channel_not_found"
	}
	return word
}

// post is chat.postMessage (https://docs.slack.dev/reference/methods/chat.postMessage).
func (s *Server) post(c call) outcome {
	channel, thread := c.fields.Get("channel"), c.fields.Get("thread_ts")
	if word := s.channelWord(channel); word != "" {
		return refuse(word)
	}
	if wait := s.throttle(channel); wait > 0 {
		return outcome{wait: wait}
	}
	if word := c.wrong(); word != "" {
		return refuse(word)
	}
	m := slackMessage(c.payload, c.raw, channel)
	if thread != "" {
		s.mu.Lock()
		parent, gone := s.slack.byTS[thread], s.slack.gone[thread]
		s.mu.Unlock()
		if !gone && (parent == nil || parent.Channel != channel) {
			return refuse("thread_not_found")
		}
		// The reply to a message that was deleted is posted without a thread.
		if !gone {
			m.ThreadTS, m.Broadcast = parent.TS, c.fields.Get("reply_broadcast") == "true"
			if parent.ThreadTS != "" {
				m.ThreadTS = parent.ThreadTS
			}
		}
	}
	return posted(s.accept(m))
}

func posted(m Message) outcome {
	return outcome{holds: map[string]any{"channel": m.Channel, "ts": m.TS, "text": m.Text, "message": messageJSON(m)}}
}

// messageJSON is a message as Slack gives it back.
func messageJSON(m Message) map[string]any {
	out := map[string]any{}
	if json.Unmarshal(m.Raw, &out) != nil {
		out = map[string]any{}
	}
	for _, name := range []string{"channel", "thread_ts", "reply_broadcast", "parse", "unfurl_links", "unfurl_media", "mrkdwn"} {
		delete(out, name)
	}
	out["type"], out["ts"], out["bot_id"], out["app_id"] = "message", m.TS, "B0LIFEBOAT", "A0LIFEBOAT"
	if m.ThreadTS != "" {
		out["thread_ts"] = m.ThreadTS
	}
	return out
}

// update is chat.update (https://docs.slack.dev/reference/methods/chat.update).
func (s *Server) update(c call) outcome {
	channel := c.fields.Get("channel")
	if word := s.channelWord(channel); word != "" {
		return refuse(word)
	}
	if wait := s.throttleUpdate(); wait > 0 {
		return outcome{wait: wait}
	}
	if word := c.wrong(); word != "" {
		return refuse(word)
	}
	ts := c.fields.Get("ts")
	if !c.fields.Has("attachments") {
		s.keepAttachments(&c, ts)
	}
	m, word := s.edit(ts, slackMessage(c.payload, c.raw, channel))
	if word != "" {
		return refuse(word)
	}
	return posted(m)
}

// keepAttachments gives an edit the attachments that the message has: they stay when an edit does not name them.
func (s *Server) keepAttachments(c *call, ts string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before, after map[string]json.RawMessage
	if old := s.slack.byTS[ts]; old == nil || json.Unmarshal(old.Raw, &before) != nil || before["attachments"] == nil {
		return
	}
	if json.Unmarshal(c.raw, &after) != nil {
		return
	}
	after["attachments"] = before["attachments"]
	if raw, err := json.Marshal(after); err == nil {
		c.raw = raw
		c.payload, _ = parseSlack(raw)
	}
}

// edit puts the content of one message into another and returns it.
func (s *Server) edit(ts string, fresh Message) (m Message, word string) {
	s.mu.Lock()
	old := s.slack.byTS[ts]
	switch {
	case old == nil || fresh.Channel != "" && old.Channel != fresh.Channel:
		word = "message_not_found"
	case fresh.Channel != "" && old.Channel == webhookChannel:
		word = "cant_update_message"
	case fresh.Channel != "" && s.opts.EditWindow > 0 && s.opts.Now().Sub(old.Time) > s.opts.EditWindow:
		word = "edit_window_closed"
	}
	if word != "" {
		s.mu.Unlock()
		return m, word
	}
	old.Title, old.Text, old.Raw, old.Colour = fresh.Title, fresh.Text, fresh.Raw, fresh.Colour
	old.Edited++
	m = *old
	s.notify()
	s.mu.Unlock()
	if s.opts.OnMessage != nil {
		s.opts.OnMessage(m)
	}
	return m, ""
}

// throttleUpdate returns zero when a message may be edited, else how long until one may.
func (s *Server) throttleUpdate() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opts.SlackUpdatesPerMinute == unlimited {
		return 0
	}
	now := s.opts.Now()
	s.slack.updates = slices.DeleteFunc(s.slack.updates, func(t time.Time) bool { return now.Sub(t) >= time.Minute })
	if len(s.slack.updates) >= s.opts.SlackUpdatesPerMinute {
		return time.Minute - now.Sub(s.slack.updates[0])
	}
	s.slack.updates = append(s.slack.updates, now)
	return 0
}

// postEphemeral is chat.postEphemeral.
func (s *Server) postEphemeral(c call) outcome {
	channel := c.fields.Get("channel")
	if word := s.channelWord(channel); word != "" {
		return refuse(word)
	}
	if word := c.wrong(); word != "" {
		return refuse(word)
	}
	m := slackMessage(c.payload, c.raw, channel)
	m.User, m.ThreadTS = c.fields.Get("user"), c.fields.Get("thread_ts")
	return outcome{holds: map[string]any{"message_ts": s.whisper(m).TS}}
}

// whisper remembers a message that one person sees.
func (s *Server) whisper(m Message) Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.Time = s.opts.Now()
	m.TS = s.slack.stamp(m.Time)
	s.slack.ephemerals = append(s.slack.ephemerals, m)
	s.notify()
	return m
}

func (s *Server) authTest(call) outcome {
	return outcome{holds: map[string]any{
		"url": "http://" + s.addr + "/", "team": "Lifeboat", "team_id": "T0LIFEBOAT", "user": "lifeboat", "user_id": "U0LIFEBOAT",
		"bot_id": "B0LIFEBOAT",
	}}
}
