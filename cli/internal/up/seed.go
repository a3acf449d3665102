package up

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// seed fills every target with data as a small platform team would have it.
func (f *Fleet) seed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if f.Etcd != nil {
		if err := f.seedEtcd(ctx); err != nil {
			return fmt.Errorf("etcd: %w", err)
		}
	}
	if f.Consul != nil {
		if err := f.seedConsul(ctx); err != nil {
			return fmt.Errorf("consul: %w", err)
		}
	}
	if f.Nomad != nil {
		if err := f.seedNomad(ctx); err != nil {
			return fmt.Errorf("nomad: %w", err)
		}
	}
	return nil
}

// seedEtcd writes objects as Kubernetes keeps them, and a history: some are written twice and some deleted.
func (f *Fleet) seedEtcd(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{f.Etcd.Endpoint}, DialTimeout: 10 * time.Second})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, ns := range []string{"default", "payments", "search"} {
		for i := range 40 {
			for _, kind := range []string{"configmaps", "deployments", "secrets"} {
				key := fmt.Sprintf("/registry/%s/%s/app-%02d", kind, ns, i)
				value := fmt.Sprintf(`{"kind":%q,"metadata":{"name":"app-%02d","namespace":%q},"data":{"token":%q}}`, kind, i, ns, rand.Text())
				if _, err = c.Put(ctx, key, value); err != nil {
					return err
				}
			}
		}
		if _, err = c.Delete(ctx, fmt.Sprintf("/registry/deployments/%s/app-00", ns)); err != nil {
			return err
		}
	}
	lease, err := c.Grant(ctx, 3600)
	if err != nil {
		return err
	}
	_, err = c.Put(ctx, "/registry/leases/kube-node-lease/node-1", `{"holderIdentity":"node-1"}`, clientv3.WithLease(lease.ID))
	return err
}

func (f *Fleet) seedConsul(ctx context.Context) error {
	entries := map[string]string{
		"config/global/log_level": "info", "config/global/regions": "beijing,seoul,us-east",
		"config/traefik/entrypoints": "web,websecure", "config/loki/retention": "720h",
		"certs/edge/fullchain.pem": "-----BEGIN CERTIFICATE-----\n" + rand.Text() + "\n-----END CERTIFICATE-----\n",
		"config/说明":                "所有服务的配置都在这里",
	}
	for _, app := range []string{"payments", "search", "gateway", "billing", "mail"} {
		entries["config/"+app+"/replicas"] = "3"
		entries["config/"+app+"/database_url"] = "postgres://" + app + "@db.internal/" + app
		entries["secrets/"+app+"/api_token"] = rand.Text()
	}
	for k, v := range entries {
		if err := send(ctx, http.MethodPut, f.Consul.Address+"/v1/kv/"+k+"?flags=42", []byte(v)); err != nil {
			return err
		}
	}
	return nil
}

// seedNomad registers jobs. The server has no client, so none of them ever runs.
func (f *Fleet) seedNomad(ctx context.Context) error {
	if err := send(ctx, http.MethodPut, f.Nomad.Address+"/v1/namespace/platform", mustJSON(map[string]any{
		"Name": "platform", "Description": "What the platform itself runs on",
	})); err != nil {
		return err
	}
	for ns, names := range map[string][]string{"default": {"payments", "search", "gateway"}, "platform": {"loki", "tempo", "traefik"}} {
		for _, name := range names {
			hcl := fmt.Sprintf("job %q {\n  namespace = %q\n  group \"main\" {\n    count = 2\n    task \"server\" {\n"+
				"      driver = \"docker\"\n      config {\n        image = \"registry.internal/%s:1.4.2\"\n      }\n    }\n  }\n}\n", name, ns, name)
			parsed, err := call(ctx, http.MethodPost, f.Nomad.Address+"/v1/jobs/parse", mustJSON(map[string]any{"JobHCL": hcl, "Canonicalize": true}))
			if err != nil {
				return err
			}
			err = send(ctx, http.MethodPut, f.Nomad.Address+"/v1/jobs?namespace="+ns, mustJSON(map[string]any{
				"Job": json.RawMessage(parsed), "Submission": map[string]any{"Source": hcl, "Format": "hcl2"},
			}))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// mustJSON encodes values of our own, which always encode.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func send(ctx context.Context, method, url string, body []byte) error {
	_, err := call(ctx, method, url, body)
	return err
}

func call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
	return answer, nil
}
