package service_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
	"github.com/lifeboat-fleet/lifeboat/fleet/tracing"
)

// What is noted stands once in a line, also when the logger itself says it, as often as it was derived.
func TestANoteStandsOnce(t *testing.T) {
	var out bytes.Buffer
	root, err := service.NewLogger(&out, "info")
	require.NoError(t, err)
	ctx := tracing.Note(t.Context(), slog.String("target", "noted"), slog.String("job_id", "7"))
	for want, logger := range map[string]*slog.Logger{
		"noted": root, "own": root.With("target", "own"), "first": root.With("target", "first").With("work", "drill"),
		"beside": root.With("target", "beside").WithGroup(""),
	} {
		out.Reset()
		logger.InfoContext(ctx, "well", slog.Int("n", 1))
		line := out.String()
		assert.Equal(t, 1, strings.Count(line, `"target":`), line)
		assert.Contains(t, line, `"target":"`+want+`"`)
		assert.Equal(t, 1, strings.Count(line, `"job_id":"7"`), line)
	}
	out.Reset()
	root.With("target", "own").WithGroup("in").InfoContext(ctx, "well")
	assert.Contains(t, out.String(), `"in":{"target":"noted"`, "a group has keys of its own")
}
