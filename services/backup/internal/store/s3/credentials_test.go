package s3_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/fleettest/s3test"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store"
	"github.com/lifeboat-fleet/lifeboat/services/backup/internal/store/s3"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func content(t *testing.T, f config.SecretFile) string {
	t.Helper()
	s, err := f.Read()
	require.NoError(t, err)
	return s
}

func TestCredentialsAreReadWhenTheyAreUsed(t *testing.T) {
	server := s3test.New(t)
	cfg := server.Config
	cfg.SecretAccessKeyFile = config.SecretFile(filepath.Join(t.TempDir(), "secret"))
	s := open(t, cfg)
	require.ErrorContains(t, s.Ping(t.Context()), "secret_access_key_file", "a missing file is found when it is used")
	write(t, string(cfg.SecretAccessKeyFile), content(t, server.Config.SecretAccessKeyFile))
	require.NoError(t, s.Ping(t.Context()), "the file is read again")
	require.NoError(t, os.Remove(string(cfg.SecretAccessKeyFile)))
	require.NoError(t, s.Ping(t.Context()), "while it is being replaced the last one is used")
}

// Keys are rotated, and the old ones end, between two parts of one upload.
func TestCredentialsRotateWhileAnUploadRuns(t *testing.T) {
	server := s3test.New(t)
	proxy := s3test.NewProxy(t, server)
	require.NoError(t, server.AddUser("FIRST", "first-secret"))
	dir := t.TempDir()
	id, secret := filepath.Join(dir, "id"), filepath.Join(dir, "secret")
	write(t, id, "FIRST")
	write(t, secret, "first-secret")
	cfg := proxy.Config
	cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile = config.SecretFile(id), config.SecretFile(secret)
	s := open(t, cfg)
	require.NoError(t, s.Ping(t.Context()))

	var once sync.Once
	rotated := make(chan error, 1)
	proxy.Handle(func(r *http.Request) s3test.Fault {
		if s3test.Op(r) == "UploadPart" && strings.Contains(r.URL.RawQuery, "partNumber=3") {
			once.Do(func() { // this request is signed with the old keys, which end before it arrives
				rotated <- errors.Join(server.AddUser("SECOND", "second-secret"), os.WriteFile(id, []byte("SECOND"), 0o600),
					os.WriteFile(secret, []byte("second-secret"), 0o600), server.RemoveUser("FIRST"))
			})
		}
		return s3test.Pass()
	})
	data := random(t, 40*mib)
	require.NoError(t, put(t, s, "k", data, store.Condition{Absent: true}))
	require.NoError(t, <-rotated)
	got, err := read(t.Context(), s, "k")
	require.NoError(t, err)
	assert.Len(t, got, len(data))
	used := map[string]bool{}
	for _, r := range proxy.Requests() {
		_, cred, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		who, _, _ := strings.Cut(cred, "/")
		used[who] = true
	}
	assert.Equal(t, map[string]bool{"FIRST": true, "SECOND": true}, used)

	require.NoError(t, server.RemoveUser("SECOND"))
	require.ErrorIs(t, s.Ping(t.Context()), store.ErrDenied, "keys that ended without others in their place")
}

// sts answers as AWS STS does, with keys of the S3 server, so that what is signed with them is checked for real. It gives no
// session token, because this server has no sessions.
type sts struct {
	*httptest.Server
	mu    sync.Mutex
	calls []url.Values
	auth  []string
	keys  [2]string
	// lives is how long the keys that it gives are said to live.
	lives time.Duration
}

func newSTS(t *testing.T, server *s3test.Server) *sts {
	t.Helper()
	s := &sts{keys: [2]string{content(t, server.Config.AccessKeyIDFile), content(t, server.Config.SecretAccessKeyFile)}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *sts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := r.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.calls, s.auth = append(s.calls, r.PostForm), append(s.auth, r.Header.Get("Authorization"))
	action := r.PostForm.Get("Action")
	if strings.HasPrefix(r.PostForm.Get("WebIdentityToken"), "revoked") {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprint(w, `<ErrorResponse><Error><Type>Sender</Type><Code>InvalidIdentityToken</Code>`+
			`<Message>No OpenIDConnect provider found</Message></Error></ErrorResponse>`)
		return
	}
	if strings.HasPrefix(r.PostForm.Get("WebIdentityToken"), "lost") {
		http.NotFound(w, r)
		return
	}
	type credentials struct {
		AccessKeyID     string `xml:"AccessKeyId"`
		SecretAccessKey string
		Expiration      string
	}
	type answer struct {
		XMLName xml.Name
		Result  struct {
			XMLName     xml.Name
			Credentials credentials
		}
	}
	a := answer{XMLName: xml.Name{Local: action + "Response"}}
	a.Result.XMLName.Local = action + "Result"
	a.Result.Credentials = credentials{s.keys[0], s.keys[1], time.Now().Add(s.lives).UTC().Format(time.RFC3339)}
	w.Header().Set("Content-Type", "text/xml")
	_ = xml.NewEncoder(w).Encode(a)
}

func (s *sts) seen() ([]url.Values, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls, s.auth
}

// chain is a configuration without key files: the SDK's own chain is asked. The session's own environment plays no part.
func chain(t *testing.T, server *s3test.Server, env map[string]string) config.ObjectStore {
	t.Helper()
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
			require.NoError(t, os.Unsetenv(name))
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	for name, value := range map[string]string{
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		t.Setenv(name, value)
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
	cfg := server.Config
	cfg.AccessKeyIDFile, cfg.SecretAccessKeyFile = "", ""
	return cfg
}

func TestWebIdentity(t *testing.T) {
	server := s3test.New(t)
	tokens := newSTS(t, server)
	token := filepath.Join(t.TempDir(), "token")
	write(t, token, "token-one")
	cfg := chain(t, server, map[string]string{
		"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/lifeboat", "AWS_WEB_IDENTITY_TOKEN_FILE": token,
		"AWS_ENDPOINT_URL_STS": tokens.URL,
	})
	tokens.lives = time.Hour
	s := open(t, cfg)
	require.NoError(t, put(t, s, "k", []byte("x"), store.Condition{}))
	require.NoError(t, s.Ping(t.Context()))
	calls, _ := tokens.seen()
	require.Len(t, calls, 1, "keys are used until they expire")
	assert.Equal(t, "AssumeRoleWithWebIdentity", calls[0].Get("Action"))
	assert.Equal(t, "arn:aws:iam::123456789012:role/lifeboat", calls[0].Get("RoleArn"))
	assert.Equal(t, "token-one", calls[0].Get("WebIdentityToken"))

	// Kubernetes replaces the token long before the pod ends.
	tokens.lives = 0
	s = open(t, cfg)
	require.NoError(t, s.Ping(t.Context()))
	write(t, token, "token-two")
	require.NoError(t, s.Ping(t.Context()))
	calls, _ = tokens.seen()
	require.GreaterOrEqual(t, len(calls), 3)
	assert.Equal(t, "token-two", calls[len(calls)-1].Get("WebIdentityToken"))

	write(t, token, "revoked-token")
	err := s.Ping(t.Context())
	require.ErrorContains(t, err, "InvalidIdentityToken")
	require.ErrorIs(t, err, store.ErrDenied)
	require.NotContains(t, err.Error(), "revoked-token")

	write(t, token, "lost-token")
	_, _, err = s.Get(t.Context(), "k")
	require.ErrorIs(t, err, store.ErrDenied)
	require.NotErrorIs(t, err, store.ErrNotFound, "a 404 of STS is not one of the store")
	require.NotErrorIs(t, s.Ping(t.Context()), store.ErrNoBucket)
	require.ErrorIs(t, s.Remove(t.Context(), store.Version{Object: store.Object{Key: "k"}}), store.ErrDenied)
}

func TestAssumeRole(t *testing.T) {
	server := s3test.New(t)
	tokens := newSTS(t, server)
	tokens.lives = time.Hour
	profile := filepath.Join(t.TempDir(), "config")
	write(t, profile, `[default]
role_arn = arn:aws:iam::123456789012:role/lifeboat
source_profile = base
external_id = fleet
[profile base]
aws_access_key_id = BASEKEY
aws_secret_access_key = base-secret
`)
	cfg := chain(t, server, map[string]string{"AWS_CONFIG_FILE": profile, "AWS_ENDPOINT_URL_STS": tokens.URL})
	s := open(t, cfg)
	require.NoError(t, put(t, s, "k", []byte("x"), store.Condition{}))
	calls, auth := tokens.seen()
	require.Len(t, calls, 1)
	assert.Equal(t, "AssumeRole", calls[0].Get("Action"))
	assert.Equal(t, "arn:aws:iam::123456789012:role/lifeboat", calls[0].Get("RoleArn"))
	assert.Equal(t, "fleet", calls[0].Get("ExternalId"))
	assert.Contains(t, auth[0], "Credential=BASEKEY/")
}

func TestNoCredentialsAtAll(t *testing.T) {
	server := s3test.New(t)
	s := open(t, chain(t, server, nil))
	err := s.Ping(t.Context())
	require.ErrorContains(t, err, "bucket lifeboat at "+server.Endpoint)
	require.ErrorContains(t, err, "credentials")
}

func TestCustomCA(t *testing.T) {
	server := s3test.New(t, s3test.WithTLS())
	right := server.Config.CAFile
	require.NoError(t, open(t, server.Config).Ping(t.Context()))

	cfg := server.Config
	cfg.CAFile = filepath.Join(t.TempDir(), "other-ca.crt")
	require.NoError(t, s3test.WriteCA(cfg.CAFile))
	err := open(t, cfg).Ping(t.Context())
	require.ErrorContains(t, err, server.Endpoint)
	require.ErrorContains(t, err, "certificate signed by unknown authority")

	cfg.CAFile = ""
	t.Setenv("AWS_CA_BUNDLE", "")
	require.ErrorContains(t, open(t, cfg).Ping(t.Context()), "certificate signed by unknown authority", "the system's roots")
	t.Setenv("AWS_CA_BUNDLE", right)
	require.NoError(t, open(t, cfg).Ping(t.Context()), "the SDK's own variable")

	cfg.CAFile = filepath.Join(t.TempDir(), "no-such")
	_, err = s3.New(t.Context(), cfg)
	require.ErrorContains(t, err, "store.ca_file")
}

func TestVirtualHostStyle(t *testing.T) {
	const domain = "s3.example.test"
	server := s3test.New(t, s3test.WithVirtualDomain(domain))
	proxy := s3test.NewProxy(t, server)
	port := proxy.Endpoint[strings.LastIndex(proxy.Endpoint, ":"):]
	var dialed sync.Map
	dial := s3.WithDial(func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Store(addr, true)
		return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1"+port)
	})
	cfg := proxy.Config
	cfg.Endpoint, cfg.PathStyle = "http://"+domain+port, false
	s := open(t, cfg, dial)
	data := random(t, 9*mib)
	require.NoError(t, put(t, s, "dir/a b+ü.json", []byte("x"), store.Condition{Absent: true}))
	require.NoError(t, put(t, s, "dir/data.db", data, store.Condition{Absent: true}))
	got, err := read(t.Context(), s, "dir/data.db")
	require.NoError(t, err)
	assert.Len(t, got, len(data))
	require.NoError(t, s.Ping(t.Context()))
	for _, r := range proxy.Requests() {
		assert.Equal(t, s3test.Bucket+"."+domain+port, r.Host)
	}
	_, ok := dialed.Load(s3test.Bucket + "." + domain + port)
	assert.True(t, ok)

	cfg.PathStyle = true
	proxy.Forget()
	s = open(t, cfg, dial)
	got, err = read(t.Context(), s, "dir/a b+ü.json")
	require.NoError(t, err)
	assert.Equal(t, "x", string(got), "both styles reach the same object")
	assert.Equal(t, domain+port, proxy.Requests()[0].Host)
}
