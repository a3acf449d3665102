package runbook

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/notifier/internal/notice"
)

// Options of Pages.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	Now        func() time.Time
	// Resolver of the names in links; the machine's own when nil.
	Resolver *net.Resolver
}

// Page is an alert's runbook.
type Page struct {
	// Found says that there is one, a link or a page in the folder.
	Found bool
	// Link is an http or https address in escaped form. It may be empty although there is a page: without a base_url a page in the
	// folder has no address.
	Link string
	// Dead says what is wrong with the link, as "404" or "no such host"; empty when it is good, or not known yet.
	Dead string
	// Steps are the first of its TL;DR or Mitigation; none when it has no such heading.
	Steps []notice.Step
}

// Pages finds runbooks. It is safe for concurrent use.
type Pages struct {
	folder *folder
	links  *links

	without *prometheus.CounterVec
	mu      sync.Mutex
	teams   map[string]bool
}

// New makes Pages. Close it, because links are asked for in the background.
func New(o Options) *Pages {
	return &Pages{
		folder: newFolder(o.Logger, o.Now), links: newLinks(o.Now, o.Resolver), teams: map[string]bool{},
		without: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "lifeboat_alerts_without_runbook_total",
			Help: "Alerts that were told without a runbook, by team; after 100 teams the others are counted as other.",
		}, []string{"team"}),
	}
}

// Close ends what is asked for in the background, and waits for it. Page may still be called; it asks for nothing any more.
func (p *Pages) Close() { p.links.close() }

// Page finds the runbook of an alert by its name and annotations. It waits for a link that has not been asked for before, but never
// longer than half a second, and not each time: what is not known by then is known the next time. It never fails: what cannot be read is logged
// and left out, because the alert has to be told.
func (p *Pages) Page(ctx context.Context, cfg config.Runbooks, name string, annotations map[string]string) Page {
	w := where(cfg, name, annotations)
	page := Page{Link: w.given}
	file, looked := p.folder.find(ctx, cfg.PagesDir, w.files)
	switch {
	case file != nil:
		page.Found = true
		if page.Link == "" {
			page.Link = w.ruled
		}
		page.Steps = p.folder.steps(ctx, cfg.PagesDir, *file, page.Link)
	case page.Link == "" && !looked:
		page.Link = w.ruled
	}
	page.Found = page.Found || page.Link != ""
	if page.Link == "" || !cfg.CheckLinks {
		return page
	}
	p.links.trust(cfg)
	q := question{link: page.Link, private: cfg.AllowPrivate}
	if !looked {
		q.base = cfg.BaseURL
	}
	a := p.links.status(ctx, q)
	page.Dead = a.dead
	if page.Steps == nil {
		page.Steps = a.steps
	}
	return page
}

const (
	maxTeams     = 100
	maxTeamBytes = 64
	noTeam       = "none"
	otherTeam    = "other"
)

// Count counts an alert that was told without a runbook, for the team that its label names; empty is "none".
func (p *Pages) Count(team string) { p.without.WithLabelValues(p.team(team)).Inc() }

// team bounds what alerts can make of the metric.
func (p *Pages) team(name string) string {
	name = strings.ToValidUTF8(name, "?")
	switch {
	case name == "":
		name = noTeam
	case len(name) > maxTeamBytes:
		name = strings.ToValidUTF8(name[:maxTeamBytes], "")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.teams[name] {
		if len(p.teams) >= maxTeams {
			return otherTeam
		}
		p.teams[name] = true
	}
	return name
}

// place is where an alert's runbook may be.
type place struct {
	// given is the address in its annotation, and ruled the one that base_url makes of its name.
	given, ruled string
	// files are pages of the folder, the first that exists is the one.
	files []pageFile
}

// pageFile is a file of the folder, by its path with slashes, and a heading in it, as the fragment of an address.
type pageFile struct{ path, fragment string }

func where(cfg config.Runbooks, name string, annotations map[string]string) place {
	p := place{given: safe(annotations[Annotation]), ruled: ruled(cfg, name)}
	if rest, fragment, ok := below(cfg.BaseURL, p.given); ok {
		p.files = append(p.files, pageFile{pagePath(rest, cfg.Suffix), fragment})
	}
	if slug := Kebab(name); slug != "" {
		p.files = append(p.files, pageFile{slug + pageExt, ""})
	}
	return p
}

// pagePath is the file of a page's address: the site may show it with another suffix.
func pagePath(rest, suffix string) string {
	if suffix != "" {
		rest = strings.TrimSuffix(rest, suffix)
	}
	for _, s := range []string{pageExt, ".html", "/"} {
		rest = strings.TrimSuffix(rest, s)
	}
	return rest + pageExt
}
