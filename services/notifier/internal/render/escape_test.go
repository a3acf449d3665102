package render_test

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
)

func labelled(v string) *lifeboatv1.Delivery {
	return delivery(&lifeboatv1.Alert{
		Status: "firing", Labels: map[string]string{"alertname": "A", "x": v}, Annotations: map[string]string{"summary": v}, GeneratorUrl: v,
	})
}

func TestSlackValuesAreOnlyText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ source, value, want string }{
		{"X", "a<!channel> & <https://evil|here>", "a&lt;!channel&gt; &amp; &lt;https://evil|here&gt;"},
		{"X", "*bold* _it_ ~no~ `code` a_b 2 * 3 rate(x[5m])*100", "＊bold＊ ＿it＿ ～no～ ｀code｀ a_b 2 * 3 rate(x[5m])＊100"},
		{"X", "> quote\n  > more", "＞ quote\n  ＞ more"},
		{"a X", "> 5", "a &gt; 5"},
		{"X", "@here ops@example.com", "＠here ops@example.com"},
		{"*X*", "node_load1", "*node_load1*"},
		{"```X```", "df -h | grep '*' > a && b_", "```df -h | grep '*' &gt; a &amp;&amp; b_```"},
		{"```\nX\n```", "a\n`b` *c*\n", "```\na\n｀b｀ *c*\n\n```"},
		{"`X` X", "*a*\nb", "`*a* b` ＊a＊\nb"},
		{"<X|go>", "https://a.b/c?d=e&f=g|h>i j*k_l", "<https://a.b/c?d=e&amp;f=g%7Ch%3Ei%20j%2Ak_l|go>"},
		{"<X|go>", "!channel", "<！channel|go>"},
		{"<X|go>", "@U123", "<＠U123|go>"},
		{"<X>", "#C123|x", "<＃C123｜x>"},
		{"<X|go>", "javascript:alert(1)", "<javascript：alert（1）|go>"},
		{"<X|go>", "https://u:p@evil/", "<https：／／u：p＠evil／|go>"},
		{"<X|go>", "http://<!channel>/x", "<http：／／&lt;！channel&gt;／x|go>"},
		{"<X|go>", "http://[::1]:9093/a", "<http://[::1]:9093/a|go>"},
		{"<X|go>", "ftp://a/b", "<ftp：／／a／b|go>"},
		{"<X|go>", "", "<|go>"},
		{"don`t\nX", "*a*", "don`t\n＊a＊"},
		{"a <http://a\nX", "a b", "a <http://a\na b"},
		{"text\nX", "> q", "text\n＞ q"},
		{"<https://a/?q=X|go>", "a b|c>&d=100%", "<https://a/?q=a%20b%7Cc%3E%26d=100%25|go>"},
		{"<https://a/|X>", "a>\n<!here>", "<https://a/|a&gt; &lt;!here&gt;>"},
		{"<@X>", "U12> <!here", "<@U12 here>"},
		{"<!subteam^X>", "S12|@all", "<!subteam^S12all>"},
		{"cpu < X", "a&b", "cpu < a&amp;b"},
		{"p<q and X", "a&b", "p<q and a&amp;b"},
		{"URL", "https://a/b_c*d)~e", "https://a/b%5Fc%2Ad%29%7Ee"},
		{"URL", "javascript:*x*", "javascript:＊x＊"},
	} {
		source := strings.NewReplacer("X", "{{ .CommonLabels.x }}", "URL", "{{ .CommonLabels.x | safeUrl }}").Replace(c.source)
		n := body(t, slack("", source), labelled(c.value))
		assert.Equal(t, c.want, n.Body, "%s of %q", c.source, c.value)
	}
}

func TestDingTalkValuesAreOnlyText(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ source, value, want string }{
		{"X", "[a](http://evil) ![i](http://evil/i.png) <font> &lt; @138", "［a］（http://evil) ！［i］（http://evil/i.png) ＜font＞ ＆lt; ＠138"},
		{"[critical]X", "(http://evil)", "[critical]（http://evil)"},
		{"X", "# head\n- item\n1. one\n===\n    code\nok - 1. #", "＃ head\n－ item\n1． one\n＝==\ncode\nok - 1. #"},
		{"> X", "# head", "> ＃ head"},
		{"- X", "1) x", "- 1） x"},
		{"a X", "- b", "a - b"},
		{"**X**", "a*b_c_ d", "**a＊b_c＿ d**"},
		{"```\nX\n```", "df -h | grep '*' && x > y <z ```", "```\ndf -h | grep '*' && x > y ＜z ｀｀｀\n```"},
		{"`X(y)` ]X", "a]", "`a］(y)` ]a］"},
		{"[go](X)", "http://a.b/c?d=e&f=(g) [h]_i", "[go](http://a.b/c?d=e&f=%28g%29%20%5Bh%5D_i)"},
		{"[go](X)", "javascript:alert(1)", "[go](javascript：alert（1）)"},
		{"[go](X)", "//evil.com", "[go](／／evil.com)"},
		{"[go](http://a/X)", "a)[b](http://evil", "[go](http://a/a%29%5Bb%5D%28http://evil)"},
		{"[X](http://a)", "a](http://evil)[b", "[a］（http://evil)［b](http://a)"},
		{"<font color=\"X\">y</font>", "red\" onclick=\"x", "<font color=\"red onclickx\">y</font>"},
		{"<X>", "http://a/b>c", "<http://a/b%3Ec>"},
		{"URL", "http://a/b_c(d)", "http://a/b%5Fc%28d%29"},
	} {
		source := strings.NewReplacer("X", "{{ .CommonLabels.x }}", "URL", "{{ .CommonLabels.x | safeUrl }}").Replace(c.source)
		n := body(t, dingtalk(source), labelled(c.value))
		assert.Equal(t, c.want, n.Body, "%s of %q", c.source, c.value)
	}
}

// everywhere puts a value wherever a template can.
const everywhere = "{{ range .Alerts }}*{{ .Labels.x }}* {{ .Annotations.summary }}{{ .Labels.x }}\n{{ .Labels.x }} {{ .Labels.x | safeUrl }}{{ .GeneratorURL | safeHtml }}\n" +
	"`{{ .Labels.x }}`\n```\n{{ .Labels.x }}\n```\n{{ .Labels }} {{ toJson .Labels }} {{ .Labels.x | urlquery }} {{ .Labels.x | html }} {{ printf \"%v\" .Labels }}\n" +
	"LINKS{{ end }}"

var escaped = regexp.MustCompile(`&(amp|lt|gt);`)

func FuzzValuesForgeNothing(f *testing.F) {
	for _, s := range []string{
		"<!channel>", "](http://e)", "a&b", "@here", "\x00\x01http://a/<>", "\x01http://a|b", "`` ` ```", "http://a/](x", "\u202e\n# x\n---\n> y",
		"http://[a](b)/", "]", "(x)", "\xff&lt;", "https://a/?q=%zz%3C<", "&amp;", "&#60;", "!subteam^S1", "\\[a\\](b)",
	} {
		f.Add(s)
	}
	ours := slack("{{ (index .Alerts 0).Labels.x }}", strings.Replace(everywhere, "LINKS", "<{{ .Labels.x }}|{{ .Labels.x }}> <https://a/?q={{ .Labels.x }}|b>", 1))
	theirs := dingtalk(strings.Replace(everywhere, "LINKS", "[{{ .Labels.x }}]({{ .Labels.x }}) [c](https://a/?q={{ .Labels.x }})[d]{{ .Labels.x }}", 1))
	theirs.Name = "ding"
	r, err := renderNew(ours, theirs)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, v string) {
		for _, receiver := range []config.Receiver{ours, theirs} {
			in := input(labelled(v))
			in.Receiver = receiver
			n, err := r.Message(in)
			require.NoError(t, err)
			for _, s := range []string{n.Title, n.Body, n.Footer, n.Late, n.Items[0].Summary, n.Items[0].Name} {
				assert.True(t, utf8.ValidString(s), "%q", s)
				assert.NotContains(t, s, "\x00")
				assert.NotContains(t, s, "\u202e")
			}
			assert.LessOrEqual(t, len(n.Body), 64<<10)
			assert.LessOrEqual(t, len(n.Title), 400)
			if len(n.Body) > 60<<10 {
				continue // cut: the template's own text is not whole
			}
			require.NotContains(t, n.Footer, "template failed")
			text := n.Body
			if receiver.Name == "ding" {
				assert.Equal(t, 2, strings.Count(text, "]("), "%q", text)
				assert.NotContains(t, text, "@")
				assert.NotContains(t, text, "<")
				assert.Equal(t, 8, strings.Count(text, "`"), "%q", text)
				continue
			}
			assert.Equal(t, 2, strings.Count(text, "<"), "%q", text)
			assert.Equal(t, 2, strings.Count(text, ">"), "%q", text)
			assert.Equal(t, 8, strings.Count(text, "`"), "%q", text)
			assert.NotContains(t, escaped.ReplaceAllString(text, ""), "&", "%q", text)
			for _, bad := range []string{"<!", "<@", "<#"} {
				assert.NotContains(t, text, bad)
			}
		}
	})
}
