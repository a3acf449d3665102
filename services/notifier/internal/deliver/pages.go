package deliver

import (
	"context"

	lifeboatv1 "github.com/lifeboat-fleet/lifeboat/proto/lifeboat/v1"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/render"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/runbook"
)

// pages remembers what was found for the alerts of a group while its message is made.
type pages struct {
	t     *turn
	found map[string]runbook.Page
}

func (t *turn) newPages() *pages { return &pages{t: t, found: map[string]runbook.Page{}} }

func (p *pages) page(ctx context.Context, a *lifeboatv1.Alert) runbook.Page {
	page, known := p.found[a.GetFingerprint()]
	if !known {
		page = p.t.d.o.Pages.Page(ctx, p.t.c.cfg.Notifier.Runbooks, a.GetLabels()["alertname"], a.GetAnnotations())
		p.found[a.GetFingerprint()] = page
	}
	return page
}

// forRender is how the renderer asks.
func (p *pages) forRender(ctx context.Context) func(*lifeboatv1.Alert) render.Page {
	return func(a *lifeboatv1.Alert) render.Page {
		page := p.page(ctx, a)
		return render.Page{Found: page.Found, Link: page.Link, Dead: page.Dead, Steps: page.Steps}
	}
}

// maxCounted is for how many alerts of a group pages are looked up that its message does not show.
const maxCounted = 100

// missing counts the alerts that begin to fire without a runbook, for their teams.
func (p *pages) missing(ctx context.Context, alerts []*lifeboatv1.Alert) {
	for i, a := range alerts {
		if i < maxCounted && !p.page(ctx, a).Found {
			p.t.d.o.Pages.Count(a.GetLabels()[p.t.c.cfg.Notifier.Runbooks.TeamLabel])
		}
	}
}
