package console_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/console"
	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// What other servers and people wrote neither moves the cursor, nor sets the title, nor turns the line around.
func TestPrintableLeavesTheTerminalAlone(t *testing.T) {
	for text, want := range map[string]string{
		"a\x1b[2Jb": "a[2Jb", "a\u009b2Jb": "a2Jb", "a\rb\x07\x7f": "ab", "a\u202eb\u2066c": "abc", "a\x9bb": "a\ufffdb", "a\n\tb": "a\n\tb",
		"备份失败 ü": "备份失败 ü",
	} {
		assert.Equal(t, want, console.Printable(text), "%q", text)
	}
	assert.Equal(t, "ab", console.FirstLine("a\rb\nc"))
}

func TestDurationHasAsManyDigitsAsAPersonNeeds(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 1400 * time.Millisecond: "1s", 90 * time.Second: "2m", 61 * time.Minute: "1h1m", 47 * time.Hour: "47h0m", 48 * time.Hour: "2d", 1000 * time.Hour: "41d",
	} {
		assert.Equal(t, want, console.Duration(d), d.String())
	}
}

// A file gets no colours, and an empty table says what to do.
func TestAFileGetsNoColours(t *testing.T) {
	var out bytes.Buffer
	assert.Equal(t, "x", console.Red(&out, "x"))
	assert.Equal(t, "x", console.Green(&out, "x"))
	require.NoError(t, console.NewTable(&out, "A").Flush("nothing is there"))
	assert.Equal(t, "nothing is there\n", out.String())
	out.Reset()
	table := console.NewTable(&out, "A", "B")
	table.Row("a", "long")
	table.Row("longer", "b")
	require.NoError(t, table.Flush(""))
	assert.Equal(t, "A       B\na       long\nlonger  b\n", out.String())
}

// Wrong usage is told apart from failure: it exits with 2.
func TestWrongUsageIsAUsageError(t *testing.T) {
	_, err := console.FindTarget(&config.Config{}, "f.yaml", "x")
	var usage *service.UsageError
	require.ErrorAs(t, err, &usage)
	require.ErrorContains(t, err, `no target is named "x" in f.yaml; it has -`)
	require.ErrorAs(t, console.CheckOutput("yaml"), &usage)
	require.NoError(t, console.CheckOutput(console.OutputJSON))
}
