package service

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"

	"github.com/lmittmann/tint"
	"github.com/mattn/go-isatty"

	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// NewLogger writes JSON lines, or short text in colour when out is a terminal. level is debug, info, warn or error.
func NewLogger(out io.Writer, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("log level %q is not debug, info, warn or error", level)
	}
	var h slog.Handler
	if f, ok := out.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
		h = tint.NewTextHandler(out, &tint.Options{Level: l, TimeFormat: "15:04:05.000", NoColor: os.Getenv("NO_COLOR") != ""})
	} else {
		h = slog.NewJSONHandler(out, &slog.HandlerOptions{Level: l})
	}
	return slog.New(traceHandler{Handler: h}), nil
}

// traceHandler adds trace_id to every record that is logged under a trace, and what was noted of whatever is at hand, unless the record
// says it by itself.
type traceHandler struct {
	slog.Handler
	// said are the keys that the logger itself has, in the group that it writes to.
	said []string
}

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	if id := tracing.ID(ctx); id != "" {
		r.AddAttrs(slog.String("trace_id", id))
	}
	for _, note := range tracing.Notes(ctx) {
		said := slices.Contains(h.said, note.Key)
		r.Attrs(func(a slog.Attr) bool {
			said = said || a.Key == note.Key
			return !said
		})
		if !said {
			r.AddAttrs(note)
		}
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceHandler) WithAttrs(as []slog.Attr) slog.Handler {
	said := slices.Clone(h.said) // loggers that come of the same one must not share it
	for _, a := range as {
		said = append(said, a.Key)
	}
	return traceHandler{h.Handler.WithAttrs(as), said}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	said := h.said
	if name != "" {
		said = nil
	}
	return traceHandler{h.Handler.WithGroup(name), said}
}
