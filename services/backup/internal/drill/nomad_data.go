package drill

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/hashicorp/nomad/api"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/source"
)

// nomadData asks a restored Nomad.
type nomadData struct{ at config.Nomad }

func (d nomadData) hasJob(ctx context.Context, namespace, id string) (found bool, err error) {
	err = d.ask(func(c *api.Client) error {
		_, _, jerr := c.Jobs().Info(id, (&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
		if bad, ok := errors.AsType[api.UnexpectedResponseError](jerr); ok && bad.StatusCode() == http.StatusNotFound {
			return nil
		}
		found = jerr == nil
		return jerr
	})
	return found, err
}

// allocations counts what was ever placed.
func (d nomadData) allocations(ctx context.Context) (n int64, err error) {
	err = d.ask(func(c *api.Client) error {
		all, _, aerr := c.Allocations().List((&api.QueryOptions{Namespace: api.AllNamespacesNamespace}).WithContext(ctx))
		n = int64(len(all))
		return aerr
	})
	return n, err
}

// ask asks with a client of its own, whose settings come from nowhere else.
func (d nomadData) ask(question func(*api.Client) error) error {
	client, base, err := source.NewHTTPClient(d.at.Address, d.at.TLS, 0)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	conf := &api.Config{Address: base, HttpClient: client}
	if d.at.TokenFile != "" {
		if conf.SecretID, err = d.at.TokenFile.Read(); err != nil {
			return err
		}
	}
	c, err := api.NewClient(conf)
	if err != nil {
		return err
	}
	if err := question(c); err != nil {
		return fmt.Errorf("asking the restored server: %w", err)
	}
	return nil
}
