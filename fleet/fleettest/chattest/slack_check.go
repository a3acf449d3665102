package chattest

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"unicode/utf16"
)

// Slack's limits (docs.slack.dev, Block Kit reference), in UTF-16 code units, which is what a browser counts.
const (
	slackMaxHeader      = 150
	slackMaxSection     = 3000
	slackMaxField       = 2000
	slackMaxFields      = 10
	slackMaxContext     = 10
	slackMaxBlocks      = 50
	slackMaxText        = 40_000
	slackMaxAll         = 13_200
	slackMaxAttachments = 100
	slackMaxActions     = 25
	slackMaxButton      = 75
	slackMaxID          = 255
	slackMaxValue       = 2000
	slackMaxURL         = 3000
)

type slackPayload struct {
	Text        string            `json:"text"`
	Blocks      []slackBlock      `json:"blocks"`
	Attachments []slackAttachment `json:"attachments"`
}

type slackAttachment struct {
	Color    string       `json:"color"`
	Fallback string       `json:"fallback"`
	Text     string       `json:"text"`
	Blocks   []slackBlock `json:"blocks"`
}

type slackBlock struct {
	Type     string         `json:"type"`
	BlockID  string         `json:"block_id"`
	Text     *slackText     `json:"text"`
	Fields   []slackText    `json:"fields"`
	Elements []slackElement `json:"elements"`
}

type slackText struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// slackElement is a text of a context block, or a button of an actions block.
type slackElement struct {
	Type     string         `json:"type"`
	Text     elementText    `json:"text"`
	ActionID string         `json:"action_id"`
	Value    string         `json:"value"`
	URL      string         `json:"url"`
	Style    string         `json:"style"`
	Confirm  map[string]any `json:"confirm"`
}

// elementText is a string in a context block and an object in a button.
type elementText slackText

func (t *elementText) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte(`"`)) {
		return json.Unmarshal(b, &t.Text)
	}
	return json.Unmarshal(b, (*slackText)(t))
}

// CheckSlack returns Slack's word for what is wrong with a message's body, or nothing. It is for tests of an encoder.
func CheckSlack(raw []byte) string {
	_, problem := parseSlack(raw)
	return problem
}

func parseSlack(raw []byte) (p slackPayload, problem string) {
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, "invalid_payload"
	}
	return p, checkSlack(p)
}

func units(s string) int { return len(utf16.Encode([]rune(s))) }

// checkSlack returns Slack's word for what is wrong with a message, or nothing. Blocks of attachments count with the others:
// Slack does not say that they do not.
func checkSlack(p slackPayload) string {
	if p.Text == "" && len(p.Blocks) == 0 && len(p.Attachments) == 0 {
		return "no_text"
	}
	if len(p.Attachments) > slackMaxAttachments {
		return "too_many_attachments"
	}
	blocks := p.Blocks
	for _, a := range p.Attachments {
		if !slackColour(a.Color) || a.Text == "" && len(a.Blocks) == 0 {
			return "invalid_attachments"
		}
		blocks = append(slices.Clone(blocks), a.Blocks...)
	}
	if len(blocks) > slackMaxBlocks || units(p.Text) > slackMaxText || !uniqueIDs(blocks) {
		return "invalid_blocks"
	}
	all := 0
	for _, b := range blocks {
		size, ok := checkBlock(b)
		if !ok {
			return "invalid_blocks"
		}
		all += size
	}
	if all > slackMaxAll {
		return "msg_blocks_too_long"
	}
	return ""
}

func slackColour(c string) bool {
	return slices.Contains([]string{"", "good", "warning", "danger"}, c) || regexp.MustCompile(`^#[0-9a-fA-F]{6}$`).MatchString(c)
}

// uniqueIDs says whether all blocks that have an id have their own.
func uniqueIDs(blocks []slackBlock) bool {
	seen := map[string]bool{}
	for _, b := range blocks {
		if b.BlockID == "" {
			continue
		}
		if seen[b.BlockID] || len(b.BlockID) > slackMaxID {
			return false
		}
		seen[b.BlockID] = true
	}
	return true
}

// checkBlock returns how much text is in a block, and whether Slack takes it.
func checkBlock(b slackBlock) (size int, ok bool) {
	fits := func(t slackText, limit int, types ...string) bool {
		size += units(t.Text)
		return (t.Type == "plain_text" || slices.Contains(types, t.Type)) && t.Text != "" && units(t.Text) <= limit
	}
	switch b.Type {
	case "divider":
		return 0, true
	case "header":
		ok = b.Text != nil && fits(*b.Text, slackMaxHeader)
	case "section":
		if b.Text == nil && len(b.Fields) == 0 || len(b.Fields) > slackMaxFields {
			return size, false
		}
		ok = b.Text == nil || fits(*b.Text, slackMaxSection, "mrkdwn")
		for _, f := range b.Fields {
			ok = fits(f, slackMaxField, "mrkdwn") && ok
		}
	case "context":
		ok = len(b.Elements) > 0 && len(b.Elements) <= slackMaxContext
		for _, e := range b.Elements {
			ok = fits(slackText{Type: e.Type, Text: e.Text.Text}, slackMaxSection, "mrkdwn") && ok
		}
	case "actions":
		ok = len(b.Elements) > 0 && len(b.Elements) <= slackMaxActions
		ids := map[string]bool{}
		for _, e := range b.Elements {
			ok = e.Type == "button" && fits(slackText(e.Text), slackMaxButton) && checkButton(e) && !ids[e.ActionID] && ok
			ids[e.ActionID] = e.ActionID != ""
		}
	}
	return size, ok
}

func checkButton(e slackElement) bool {
	return units(e.ActionID) <= slackMaxID && units(e.Value) <= slackMaxValue && units(e.URL) <= slackMaxURL &&
		slices.Contains([]string{"", "primary", "danger"}, e.Style)
}

func slackTitle(p slackPayload) string {
	for _, b := range p.Blocks {
		if b.Type == "header" && b.Text != nil {
			return unescapeSlack(b.Text.Text)
		}
	}
	line, _, _ := strings.Cut(p.Text, "\n")
	return unescapeSlack(line)
}

// slackBlocks are all blocks of a message as a person sees them, one below another.
func slackBlocks(p slackPayload) []slackBlock {
	blocks := slices.Clone(p.Blocks)
	if len(blocks) == 0 && p.Text != "" {
		blocks = append(blocks, slackBlock{Type: "section", Text: &slackText{Type: "mrkdwn", Text: p.Text}})
	}
	for _, a := range p.Attachments {
		if a.Text != "" {
			blocks = append(blocks, slackBlock{Type: "section", Text: &slackText{Type: "mrkdwn", Text: a.Text}})
		}
		blocks = append(blocks, a.Blocks...)
	}
	return blocks
}

func slackAll(p slackPayload) string {
	var parts []string
	for _, b := range slackBlocks(p) {
		if b.Text != nil {
			parts = append(parts, b.Text.Text)
		}
		for _, t := range b.Fields {
			parts = append(parts, t.Text)
		}
		for _, e := range b.Elements {
			parts = append(parts, e.Text.Text)
		}
	}
	return strings.Join(parts, "\n")
}

func unescapeSlack(s string) string {
	return strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&").Replace(s)
}
