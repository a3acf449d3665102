package chattest

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"html"
	"html/template"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/yuin/goldmark"
)

//go:embed page.html
var pageHTML string

// shown is how many messages of each chat the page has.
const shown = 100

func (s *Server) addPage(mux *http.ServeMux) {
	page := template.Must(template.New("page").Parse(pageHTML))
	render := func(w http.ResponseWriter, name string) {
		nonce := rand.Text()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; base-uri 'none'; "+
			"form-action 'none'; script-src 'nonce-"+nonce+"'; style-src 'nonce-"+nonce+"'")
		data := map[string]any{"Nonce": nonce, "Slack": s.views(Slack), "DingTalk": s.views(DingTalk)}
		var b bytes.Buffer
		if err := page.ExecuteTemplate(&b, name, data); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		answer(w, http.StatusOK, b.String())
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { render(w, "page") })
	mux.HandleFunc("GET /columns", func(w http.ResponseWriter, _ *http.Request) { render(w, "columns") })
	mux.HandleFunc("GET /changes", s.serveChanges)
}

// serveChanges is an event stream with one event for each change, so that the page need not poll.
func (s *Server) serveChanges(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if _, err := fmt.Fprint(w, "data: changed\n\n"); err != nil {
			return
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// view is a message as the page shows it. The bodies were rendered by functions that escape everything.
type view struct {
	Time string
	Body template.HTML
	// Tone is the colour's class; empty for none.
	Tone string
	// Channel of Slack, how often the message was edited, and who alone saw it.
	Channel string
	Edited  int
	User    string
	// Broadcast is a message of a thread that stands in the channel too.
	Broadcast bool
	// Thread below the message, oldest first.
	Thread []view
}

// views are the newest messages of one chat, newest first, each with its thread.
func (s *Server) views(k Kind) []view {
	messages := s.Messages()
	threads := map[string][]view{}
	for _, m := range messages {
		if m.ThreadTS != "" {
			threads[m.ThreadTS] = append(threads[m.ThreadTS], viewOf(m))
		}
	}
	if k == Slack {
		messages = append(messages, s.Ephemerals()...)
		slices.SortStableFunc(messages, func(a, b Message) int { return a.Time.Compare(b.Time) })
	}
	var out []view
	for _, m := range slices.Backward(messages) {
		if m.Kind != k || m.ThreadTS != "" && !m.Broadcast && m.User == "" {
			continue
		}
		v := viewOf(m)
		v.Thread = threads[m.TS]
		if out = append(out, v); len(out) == shown {
			break
		}
	}
	return out
}

func viewOf(m Message) view {
	v := view{
		Time: m.Time.Format("15:04:05"), Tone: tone(m.Colour), Channel: m.Channel, Edited: m.Edited, User: m.User,
		Broadcast: m.Broadcast,
	}
	if m.Kind == Slack {
		v.Body = renderSlack(m.Raw)
	} else {
		v.Body = renderMarkdown(m.Text)
	}
	return v
}

// tone is the class of a colour: the page's security policy allows no styles from outside its own sheet.
func tone(colour string) string {
	var red, green, blue int
	switch colour {
	case "":
		return ""
	case "good":
		return "green"
	case "warning":
		return "amber"
	case "danger":
		return "red"
	}
	if _, err := fmt.Sscanf(colour, "#%02x%02x%02x", &red, &green, &blue); err != nil {
		return ""
	}
	switch {
	case red > 150 && green > 110 && blue < 120:
		return "amber"
	case green > red && green > blue:
		return "green"
	case blue > red:
		return "blue"
	}
	return "red"
}

// renderMarkdown leaves raw HTML and dangerous links out, which is goldmark's default.
func renderMarkdown(src string) template.HTML {
	var b bytes.Buffer
	if err := goldmark.Convert([]byte(src), &b); err != nil {
		return template.HTML(html.EscapeString(src)) //nolint:gosec // escaped
	}
	return template.HTML(b.String()) //nolint:gosec // goldmark escapes text and drops raw HTML
}

func renderSlack(raw []byte) template.HTML {
	var p slackPayload
	if err := json.Unmarshal(raw, &p); err != nil {
		return ""
	}
	var b strings.Builder
	for _, block := range slackBlocks(p) {
		tag := "p"
		switch block.Type {
		case "divider":
			b.WriteString("<hr>")
		case "header":
			tag = "h3"
		case "context":
			tag = "small"
		case "actions":
			b.WriteString(renderButtons(block))
			continue
		}
		texts := slices.Clone(block.Fields)
		for _, e := range block.Elements {
			texts = append(texts, slackText{Type: e.Type, Text: e.Text.Text})
		}
		if block.Text != nil {
			texts = append([]slackText{*block.Text}, texts...)
		}
		for _, t := range texts {
			body := strings.ReplaceAll(html.EscapeString(unescapeSlack(t.Text)), "\n", "<br>")
			if t.Type == "mrkdwn" {
				body = renderFences(t.Text)
			}
			fmt.Fprintf(&b, "<%s>%s</%s>", tag, body, tag)
		}
	}
	return template.HTML(b.String()) //nolint:gosec // every text above was escaped
}

func renderButtons(block slackBlock) string {
	var b strings.Builder
	b.WriteString("<p>")
	for _, e := range block.Elements {
		label := html.EscapeString(unescapeSlack(e.Text.Text))
		if u, err := url.Parse(e.URL); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
			label = fmt.Sprintf(`<a href="%s" rel="noreferrer">%s</a>`, html.EscapeString(e.URL), label)
		}
		fmt.Fprintf(&b, `<span class="button" title="%s">%s</span> `, html.EscapeString(e.ActionID), label)
	}
	return b.String() + "</p>"
}

// renderFences shows what stands between two fences as it is, and the rest with its marks.
func renderFences(src string) string {
	var b strings.Builder
	parts := strings.Split(src, "```")
	for i, part := range parts {
		switch {
		case i%2 == 1 && i < len(parts)-1:
			fmt.Fprintf(&b, `<code class="fence">%s</code>`, html.EscapeString(unescapeSlack(strings.Trim(part, "\n"))))
		case i%2 == 1:
			b.WriteString("```" + renderMrkdwn(part))
		default:
			b.WriteString(strings.ReplaceAll(renderMrkdwn(part), "\n", "<br>"))
		}
	}
	return b.String()
}

// renderMrkdwn shows Slack's links, mentions, bold, italics and code.
func renderMrkdwn(src string) string {
	angle := regexp.MustCompile(`<([^<>|]+)(?:\|([^<>]*))?>`)
	var b strings.Builder
	at := 0
	for _, m := range angle.FindAllStringSubmatchIndex(src, -1) {
		b.WriteString(renderSpans(src[at:m[0]]))
		at = m[1]
		target, label := unescapeSlack(src[m[2]:m[3]]), ""
		if m[4] >= 0 {
			label = unescapeSlack(src[m[4]:m[5]])
		}
		if label == "" {
			label = target
		}
		u, err := url.Parse(target)
		if err == nil && (u.Scheme == "http" || u.Scheme == "https") {
			fmt.Fprintf(&b, `<a href="%s" rel="noreferrer">%s</a>`, html.EscapeString(target), html.EscapeString(label))
			continue
		}
		// A mention: <!channel>, <@U123>. It is shown loudly, because it would ring phones.
		fmt.Fprintf(&b, `<mark class="mention">%s</mark>`, html.EscapeString(label))
	}
	b.WriteString(renderSpans(src[at:]))
	return b.String()
}

func renderSpans(src string) string {
	out := html.EscapeString(unescapeSlack(src))
	for _, span := range []struct{ mark, tag string }{{"`", "code"}, {`\*`, "b"}, {"_", "i"}, {"~", "s"}} {
		re := regexp.MustCompile(`(^|[\s(])` + span.mark + `([^\s][^<>\n]*?)` + span.mark + `($|[\s).,:])`)
		out = re.ReplaceAllString(out, "$1<"+span.tag+">$2</"+span.tag+">$3")
	}
	return out
}
