package s3

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"os"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

// renewed asks with the CA and the client's certificate as their files are now. It is for the store alone: the SDK's own calls for
// credentials keep what was read at the start.
type renewed struct {
	client *web.Rotated[*awshttp.BuildableClient]
}

func renewing(base *awshttp.BuildableClient, files config.TLS, bundles []string) aws.HTTPClient {
	if files == (config.TLS{}) {
		return base
	}
	build := func(settings *tls.Config) (*awshttp.BuildableClient, error) {
		for _, name := range bundles {
			if settings.RootCAs == nil { // base has those of the bundle already
				break
			}
			pem, err := os.ReadFile(name)
			if err != nil {
				return nil, fmt.Errorf("reading the AWS SDK's CA bundle: %w", err)
			}
			settings.RootCAs.AppendCertsFromPEM(pem)
		}
		return base.WithTransportOptions(func(t *http.Transport) { secure(t, settings) }), nil
	}
	// A client that is replaced closes its idle connections by its IdleConnTimeout.
	return &renewed{web.NewRotated(func() config.TLS { return files }, build, func(*awshttp.BuildableClient) {})}
}

// Do implements aws.HTTPClient.
func (r *renewed) Do(req *http.Request) (*http.Response, error) {
	client, err := r.client.Get()
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// secure sets what is configured, and leaves the rest as the SDK has it.
func secure(t *http.Transport, settings *tls.Config) {
	if settings == nil {
		return
	}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if settings.RootCAs != nil {
		t.TLSClientConfig.RootCAs = settings.RootCAs
	}
	t.TLSClientConfig.GetClientCertificate = settings.GetClientCertificate
}

// caBundles are the files that the SDK adds to the CAs: AWS_CA_BUNDLE, or ca_bundle of a profile. It reads the first one.
func caBundles(sources []any) []string {
	for _, s := range sources {
		var name string
		switch from := s.(type) {
		case awsconfig.EnvConfig:
			name = from.CustomCABundle
		case awsconfig.SharedConfig:
			name = from.CustomCABundle
		case *awsconfig.EnvConfig:
			name = from.CustomCABundle
		case *awsconfig.SharedConfig:
			name = from.CustomCABundle
		}
		if name != "" {
			return []string{name}
		}
	}
	return nil
}
