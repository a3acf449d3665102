package slack

import "github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"

// Forms are all forms that a notice may be sent in, encoded as for a webhook.
func Forms(n notice.Notice) (map[string][]byte, error) {
	main := compose(n, "ops")
	forms := map[string]message{"main": main, "plain": plainForm(n)}
	if m, _, ok := threadForm(n, main, false); ok {
		forms["thread"] = m
	}
	out := map[string][]byte{}
	for name, m := range forms {
		b, err := m.encode()
		if err != nil {
			return nil, err
		}
		out[name] = b
	}
	return out, nil
}

// Exported for tests.
var (
	Chunks = chunks
	Tame   = tame
	Fit    = fit
	Units  = units
)
