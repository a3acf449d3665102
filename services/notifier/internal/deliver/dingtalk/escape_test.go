package dingtalk

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestTheQuickAnswerIsTheSlowOne(t *testing.T) {
	t.Parallel()
	quick := 0
	for _, s := range []string{
		"", "a", "etcd-0.example.com:2379", "Etcd is down, and has been", " a", "a ", "a  b", "1. a", "- a", "#", "a_b", "10.0.0.1", "钉", "a\tb", "%", "a.", "x\u2028y",
	} {
		if plain(s) {
			quick++
			assert.Equal(t, escape(line(s)), s)
		}
	}
	assert.Equal(t, 5, quick)
	assert.Equal(t, "a…", safe("abcdef", 4))
}

func TestAddressesThatAreNone(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"", "javascript:alert(1)", "ftp://x/", "HTTP", "//x", "https://", "https:///x", "http://[", "https://x/%zz", "https://x/" + strings.Repeat("y", 5000),
		"https://x y/", "\nhttps://x",
	} {
		assert.Empty(t, target(s), s)
	}
	assert.Equal(t, "https://x/a%28b%29%20c?d=%2A%21", target("https://x/a(b) c?d=*!"))
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "a b", "1. a", " a", "a  b", "x_", "#a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if plain(s) {
			assert.Equal(t, escape(line(s)), s)
		}
	})
}
