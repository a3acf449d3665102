package slack

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	slackapi "github.com/slack-go/slack"

	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Slack takes 2,000 characters of a button's value, and 75 of its label (docs.slack.dev, "Button element").
const (
	maxValue  = 1900
	maxLabel  = 75
	maxLinks  = 1200
	maxReason = 200
)

// Action ids of the buttons. That of a silence ends with its hours.
const (
	actionSilence = "lifeboat_silence_%d"
	actionAck     = "lifeboat_ack"
)

// pressed is a button's value: what is done when somebody presses it.
type pressed struct {
	Receiver string            `json:"r"`
	Matchers map[string]string `json:"m"`
	Comment  string            `json:"c"`
	// Seconds of the silence; 0 for as long as an acknowledgement lasts.
	Seconds int `json:"d"`
}

// silence are the buttons of a notice, or links where nobody listens to buttons or the matchers are too long for them.
func silence(n notice.Notice, receiver string) []slackapi.Block {
	if n.Silence == nil {
		return nil
	}
	if n.Silence.Buttons {
		if row := buttons(n, receiver); row != nil {
			return []slackapi.Block{row}
		}
	}
	var links []string
	left := maxLinks
	for _, l := range n.Silence.Links {
		if !strings.HasPrefix(l.URL, "https://") && !strings.HasPrefix(l.URL, "http://") {
			continue
		}
		address := strings.NewReplacer("|", "%7C", ">", "%3E", "<", "%3C", " ", "%20").Replace(l.URL)
		link := "<" + escape(address) + "|" + fit(tame(l.Label), maxLabel) + ">"
		if left -= units(link) + 3; left > 0 {
			links = append(links, link)
		}
	}
	if len(links) == 0 {
		return nil
	}
	return []slackapi.Block{section(mrkdwn("🔕 " + strings.Join(links, " · ")))}
}

// linkUnits is the room that the links take.
func linkUnits(n notice.Notice, receiver string) int {
	size := 0
	for _, b := range silence(n, receiver) {
		if s, ok := b.(*slackapi.SectionBlock); ok {
			size += units(s.Text.Text)
		}
	}
	return size
}

// buttons is nil when the value of one would be too long.
func buttons(n notice.Notice, receiver string) slackapi.Block {
	var row []slackapi.BlockElement
	add := func(action, label string, d time.Duration) bool {
		// JSON's own escapes stand for & < >, so that the value comes back as it was whatever Slack does with these.
		value, err := json.Marshal(pressed{receiver, n.Silence.Matchers, cut(line(n.Silence.Comment), maxReason), int(d / time.Second)})
		if err != nil || units(string(value)) > maxValue {
			return false
		}
		row = append(row, slackapi.NewButtonBlockElement(action, string(value), plain(fit(label, maxLabel))))
		return true
	}
	for _, hours := range []int{1, 4} {
		label := fmt.Sprintf(n.Words.Silence, fmt.Sprintf("%dh", hours))
		if !add(fmt.Sprintf(actionSilence, hours), label, time.Duration(hours)*time.Hour) {
			return nil
		}
	}
	if !add(actionAck, n.Words.Acknowledge, 0) {
		return nil
	}
	return slackapi.NewActionBlock("lifeboat", row...)
}
