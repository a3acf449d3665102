package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/dingtalk"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/deliver/slack"
)

// printer is a chat that prints what it is sent.
type printer struct{ out io.Writer }

// Post implements the senders' Poster.
func (p printer) Post(_ context.Context, _ string, body []byte) (status int, header http.Header, answer []byte, err error) {
	var b bytes.Buffer
	if err := json.Indent(&b, body, "", "  "); err != nil {
		return 0, nil, nil, err
	}
	b.WriteByte('\n')
	if _, err := p.out.Write(b.Bytes()); err != nil {
		return 0, nil, nil, err
	}
	// DingTalk's and Slack's words for success.
	return http.StatusOK, nil, []byte(`{"errcode":0,"errmsg":"ok","ok":true,"channel":"preview","ts":"1.000001"}`), nil
}

// RoundTrip is Slack's Web API: it prints a call's form as the JSON that a webhook takes, with its channel and thread.
func (p printer) RoundTrip(r *http.Request) (*http.Response, error) {
	form, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("reading a preview: %w", err)
	}
	if err = r.Body.Close(); err != nil {
		return nil, fmt.Errorf("reading a preview: %w", err)
	}
	fields, err := url.ParseQuery(string(form))
	if err != nil {
		return nil, fmt.Errorf("reading a preview: %w", err)
	}
	call := map[string]any{}
	for name := range fields {
		switch value := fields.Get(name); name {
		case "token":
		case "blocks", "attachments":
			call[name] = json.RawMessage(value)
		case "reply_broadcast", "unfurl_links", "unfurl_media":
			call[name] = value == "true"
		default:
			call[name] = value
		}
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err = enc.Encode(call); err != nil {
		return nil, fmt.Errorf("reading a preview: %w", err)
	}
	status, _, answer, err := p.Post(r.Context(), "", body.Bytes())
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r, ContentLength: int64(len(answer)),
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(answer)),
	}, nil
}

// previewSender is the receiver's own, with a chat that prints and addresses that lead nowhere.
func previewSender(r config.Receiver, out io.Writer) deliver.Sender {
	nowhere := func() (string, error) { return "https://chat.invalid/robot/send?access_token=preview", nil }
	p := printer{out}
	switch {
	case r.DingTalk != nil:
		return dingtalk.New(dingtalk.Options{Address: nowhere, Poster: p, Style: r.DingTalk.Style, Now: time.Now})
	case r.Slack != nil && r.Slack.BotTokenFile != "":
		return slack.New(slack.Options{
			Receiver: r.Name, BotToken: func() (string, error) { return "preview", nil }, Channel: r.Slack.Channel, HTTP: &http.Client{Transport: p}, Now: time.Now,
		})
	}
	return slack.New(slack.Options{Receiver: r.Name, WebhookURL: nowhere, Poster: p, Now: time.Now})
}
