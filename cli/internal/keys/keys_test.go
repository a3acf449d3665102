package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/lifeboat-fleet/lifeboat/fleet/service"
)

// all are the files of a deployment, in the order in which they come to be.
func all() []string {
	var names []string
	for _, role := range Roles() {
		names = append(names, "nats/"+role+".nk")
	}
	return append(names, "nats/keys.conf", "tls/ca-key.pem", "tls/ca.pem", "tls/server-key.pem", "tls/server.pem", "tls/client-key.pem",
		"tls/client.pem", "age/identity", "age/escrow-identity", "age/recipients", "webhook-tokens", "link-secret")
}

// at is a run at some time; hosts are its --host.
func at(dir string, now time.Time, hosts ...string) Options {
	return Options{Dir: dir, Hosts: hosts, Valid: DefaultValid, Now: func() time.Time { return now }}
}

// run makes what is missing and returns the files by path.
func run(t *testing.T, o Options) map[string]File {
	t.Helper()
	list, err := Make(o)
	require.NoError(t, err)
	files := map[string]File{}
	for _, f := range list {
		files[f.Path] = f
	}
	require.Len(t, files, len(list))
	return files
}

// A source has a CA of its own: the clients of the fleet's are none of its.
func TestOnlyAPart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	o := at(dir, time.Now(), "etcd")
	o.Only = []string{"tls"}
	for path := range run(t, o) {
		assert.True(t, strings.HasPrefix(path, "tls/"), path)
	}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	assert.Equal(t, "tls", entries[0].Name())
	o.Only = nil
	files := run(t, o)
	assert.Equal(t, There, files["tls/server.pem"].State)
	assert.Equal(t, Made, files["webhook-tokens"].State)
}

// states counts files by state.
func states(files map[string]File) map[State]int {
	n := map[State]int{}
	for _, f := range files {
		n[f.State]++
	}
	return n
}

// contents are all files below a folder by path.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range all() {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			found[name] = string(b)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", ".*"))
	require.NoError(t, err)
	assert.Empty(t, left, "nothing else is left")
	return found
}

// fits checks that everything in a folder belongs together, by what other programs make of it.
func fits(t *testing.T, dir string) {
	t.Helper()
	have := contents(t, dir)
	require.Len(t, have, len(all()))
	for _, role := range Roles() {
		public, err := publicKey([]byte(have["nats/"+role+".nk"]))
		require.NoError(t, err)
		assert.Contains(t, have["nats/keys.conf"], strings.ToUpper(role)+": "+public+"\n")
	}
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM([]byte(have["tls/ca.pem"])))
	for name, usage := range map[string]x509.ExtKeyUsage{"server": x509.ExtKeyUsageServerAuth, "client": x509.ExtKeyUsageClientAuth} {
		cert, err := parseCertificate(name, []byte(have["tls/"+name+".pem"]))
		require.NoError(t, err)
		_, err = cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: cert.NotAfter.Add(-time.Minute), KeyUsages: []x509.ExtKeyUsage{usage}})
		require.NoError(t, err, name)
		key, err := parseKey(name, []byte(have["tls/"+name+"-key.pem"]))
		require.NoError(t, err)
		assert.True(t, key.PublicKey.Equal(cert.PublicKey), name)
	}
	var recipients []string
	for _, name := range []string{"age/identity", "age/escrow-identity"} {
		r, err := recipientsOf([]byte(have[name]))
		require.NoError(t, err)
		recipients = append(recipients, r...)
	}
	assert.Equal(t, strings.Join(recipients, "\n")+"\n", have["age/recipients"])
	for _, name := range []string{"webhook-tokens", "link-secret"} {
		assert.Regexp(t, `^[0-9a-f]{64}\n$`, have[name])
	}
}

func TestEverythingIsMadeOnceAndFits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	now := time.Now()
	files := run(t, at(dir, now, "nats-1", "10.1.2.3"))
	assert.Equal(t, map[State]int{Made: len(all())}, states(files))
	assert.ElementsMatch(t, all(), slices.Collect(maps.Keys(files)))
	fits(t, dir)
	for _, name := range all() {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		want := os.FileMode(0o600)
		if slices.Contains([]string{"nats/keys.conf", "tls/ca.pem", "tls/server.pem", "tls/client.pem", "age/recipients"}, name) {
			want = 0o644
		}
		assert.Equal(t, want, info.Mode().Perm(), name)
		assert.Equal(t, want == 0o600, files[name].Secret, name)
	}
	before := contents(t, dir)
	files = run(t, at(dir, now, "nats-1", "10.1.2.3"))
	assert.Equal(t, map[State]int{There: len(all())}, states(files))
	assert.Equal(t, before, contents(t, dir))
	secrets := map[string]bool{}
	for name, text := range before {
		assert.False(t, secrets[text], "%s is another's copy", name)
		secrets[text] = true
	}
}

// What a certificate is for, and for how long.
func TestCertificatesAreForWhatTheyAreFor(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	o := at(dir, now, "nats-1", "*.nats.service.consul", "10.1.2.3", "fd00::1")
	o.Valid = 90 * 24 * time.Hour
	files := run(t, o)
	cert := func(name string) *x509.Certificate {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		c, err := parseCertificate(name, b)
		require.NoError(t, err)
		return c
	}
	ca, server, client := cert("tls/ca.pem"), cert("tls/server.pem"), cert("tls/client.pem")
	for _, host := range []string{"nats-1", "n2.nats.service.consul", "10.1.2.3", "fd00::1", "localhost", "127.0.0.1", "::1"} {
		require.NoError(t, server.VerifyHostname(host))
	}
	for _, host := range []string{"nats-2", "a.b.nats.service.consul", "10.1.2.4"} {
		require.Error(t, server.VerifyHostname(host))
	}
	require.Error(t, client.VerifyHostname("localhost"))
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, server.ExtKeyUsage)
	assert.Equal(t, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, client.ExtKeyUsage, "who stole it is no server")
	assert.True(t, ca.IsCA)
	assert.False(t, server.IsCA || client.IsCA)
	assert.Equal(t, x509.KeyUsageCertSign|x509.KeyUsageCRLSign, ca.KeyUsage)
	assert.Equal(t, x509.KeyUsageDigitalSignature, server.KeyUsage)
	assert.InDelta(t, 90, server.NotAfter.Sub(now).Hours()/24, 1)
	assert.InDelta(t, 3652, ca.NotAfter.Sub(now).Hours()/24, 1)
	assert.True(t, files["tls/server.pem"].Expires.Equal(server.NotAfter))
	for _, c := range []*x509.Certificate{ca, server, client} {
		key, ok := c.PublicKey.(*ecdsa.PublicKey)
		require.True(t, ok)
		assert.Equal(t, "P-256", key.Curve.Params().Name)
		assert.True(t, c.NotBefore.Before(now))
	}
	// None outlives its CA: a client would refuse it anyway, and the file would not say so.
	require.NoError(t, os.Remove(filepath.Join(dir, "tls", "server.pem")))
	o.Now, o.Valid = func() time.Time { return ca.NotAfter.Add(-31 * 24 * time.Hour) }, DefaultValid
	run(t, o)
	assert.Equal(t, ca.NotAfter, cert("tls/server.pem").NotAfter)
}

// A file that is gone is made again, and nothing else is touched. A private half whose public half is there is not: it may lie in a safe.
func TestOneFileIsGone(t *testing.T) {
	first := t.TempDir()
	run(t, at(first, time.Now(), "nats-1"))
	before := contents(t, first)
	for _, gone := range all() {
		t.Run(gone, func(t *testing.T) {
			dir := t.TempDir()
			require.NoError(t, os.CopyFS(dir, os.DirFS(first)))
			require.NoError(t, os.Remove(filepath.Join(dir, gone)))
			files := run(t, at(dir, time.Now(), "nats-1"))
			after := contents(t, dir)
			want := maps.Clone(before)
			delete(want, gone)
			if strings.HasSuffix(gone, ".nk") || strings.HasSuffix(gone, "-key.pem") || strings.HasSuffix(gone, "identity") {
				assert.Equal(t, Elsewhere, files[gone].State)
				assert.Equal(t, want, after)
				assert.Equal(t, map[State]int{There: len(all()) - 1, Elsewhere: 1}, states(files))
				return
			}
			assert.Equal(t, Made, files[gone].State)
			assert.NotEmpty(t, after[gone])
			delete(after, gone)
			assert.Equal(t, want, after, "nothing else is touched")
			assert.Equal(t, map[State]int{There: len(all()) - 1, Made: 1}, states(files))
			fits(t, dir)
		})
	}
}

// To replace a private half, its public one is removed as well, as the note says.
func TestAKeyIsReplaced(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now()))
	before := contents(t, dir)
	conf := filepath.Join(dir, "nats", "keys.conf")
	line := regexp.MustCompile(`(?m)^SNAPSHOT: .*\n`)
	require.NoError(t, os.WriteFile(conf, line.ReplaceAll([]byte(before["nats/keys.conf"]), nil), 0o600))
	for _, name := range []string{"nats/snapshot.nk", "tls/server-key.pem", "tls/server.pem", "age/identity", "age/recipients"} {
		require.NoError(t, os.Remove(filepath.Join(dir, name)))
	}
	files := run(t, at(dir, time.Now()))
	assert.Equal(t, 5, states(files)[Made])
	f := files["nats/keys.conf"]
	assert.Equal(t, Unfit, f.State)
	assert.Regexp(t, `^put this there, .*: SNAPSHOT: U[A-Z0-9]{55}$`, f.Note)

	// As it says, the servers' file gets the new line. It is not written by itself: the servers have a copy.
	_, said, _ := strings.Cut(f.Note, "read it again: ")
	require.NoError(t, os.WriteFile(conf, []byte(line.ReplaceAllString(before["nats/keys.conf"], said+"\n")), 0o600))
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now()))))
	fits(t, dir)
	after := contents(t, dir)
	for _, name := range []string{"nats/snapshot.nk", "tls/server-key.pem", "age/identity"} {
		assert.NotEqual(t, before[name], after[name])
	}
	assert.Equal(t, before["age/escrow-identity"], after["age/escrow-identity"])
}

// A version that has one role more finds the users of an earlier one, and leaves them as they are.
func TestARoleIsAdded(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now()))
	before := contents(t, dir)
	conf := filepath.Join(dir, "nats", "keys.conf")
	earlier := regexp.MustCompile(`(?m)^PAGE: .*\n`).ReplaceAllString(before["nats/keys.conf"], "")
	require.NoError(t, os.WriteFile(conf, []byte(earlier), 0o600))
	require.NoError(t, os.Remove(filepath.Join(dir, "nats", "page.nk")))
	files := run(t, at(dir, time.Now()))
	assert.Equal(t, map[State]int{There: len(all()) - 2, Made: 1, Unfit: 1}, states(files))
	assert.Regexp(t, `^put this there, .*: PAGE: U[A-Z0-9]{55}$`, files["nats/keys.conf"].Note)
	assert.Equal(t, before["nats/cli.nk"], contents(t, dir)["nats/cli.nk"])
}

// A run that dies goes on with the next: everything that the first one made stays and fits.
func TestAnInterruptedRunGoesOn(t *testing.T) {
	first := t.TempDir()
	run(t, at(first, time.Now(), "nats-1"))
	for n := range all() {
		dir := t.TempDir()
		for _, folder := range []string{"nats", "tls", "age"} {
			require.NoError(t, os.Mkdir(filepath.Join(dir, folder), 0o700))
		}
		for _, name := range all()[:n] {
			require.NoError(t, os.Link(filepath.Join(first, name), filepath.Join(dir, name)))
		}
		before := contents(t, dir)
		files := run(t, at(dir, time.Now(), "nats-1"))
		assert.Equal(t, n, states(files)[There])
		assert.Equal(t, len(all())-n, states(files)[Made])
		fits(t, dir)
		after := contents(t, dir)
		maps.DeleteFunc(after, func(name, _ string) bool { return before[name] == "" })
		assert.Equal(t, before, after)
	}
}

// Runs at the same time make one set.
func TestRunsAtOnceMakeOneSet(t *testing.T) {
	dir := t.TempDir()
	made, errs := make([]int, 8), make([]error, 8)
	var wg sync.WaitGroup
	for i := range made {
		wg.Go(func() {
			var files []File
			files, errs[i] = Make(at(dir, time.Now(), "nats-1"))
			for _, f := range files {
				assert.NotEqual(t, Unfit, f.State, "%s: %s", f.Path, f.Note)
				if f.State == Made {
					made[i]++
				}
			}
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	sum := 0
	for _, n := range made {
		sum += n
	}
	assert.Equal(t, len(all()), sum, "each file is made by one of them")
	fits(t, dir)
}

// A further host needs another certificate, which is a person's to replace: the servers have the old one.
func TestAFurtherHostIsSaidToBeMissing(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now(), "nats-1", "10.0.0.1"))
	before := contents(t, dir)
	f := run(t, at(dir, time.Now(), "nats-1", "nats-2", "*.nats", "10.0.0.2"))["tls/server.pem"]
	assert.Equal(t, Unfit, f.State)
	assert.Equal(t, "it is not for nats-2, *.nats, 10.0.0.2: remove it and run this again with --host 'nats-1,10.0.0.1,nats-2,*.nats,10.0.0.2', "+
		"then give it to the servers", f.Note)
	assert.Equal(t, before, contents(t, dir))

	// As it says.
	hosts := []string{"nats-1", "10.0.0.1", "nats-2", "*.nats", "10.0.0.2"}
	require.NoError(t, os.Remove(filepath.Join(dir, "tls", "server.pem")))
	assert.Equal(t, Made, run(t, at(dir, time.Now(), hosts...))["tls/server.pem"].State)
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now(), hosts...))))
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now(), "x.nats"))), "the wildcard has it")
	fits(t, dir)
	assert.Equal(t, before["tls/server-key.pem"], contents(t, dir)["tls/server-key.pem"], "the key stays")
}

func TestACertificateThatEnds(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	run(t, at(dir, now, "nats-1"))
	ends := now.Add(DefaultValid)
	for _, c := range []struct {
		at   time.Time
		note string
	}{
		{ends.Add(-31 * 24 * time.Hour), "good until "}, {ends.Add(-29 * 24 * time.Hour), "it ends on "}, {ends.Add(time.Hour), "it has ended on "},
	} {
		files := run(t, at(dir, c.at))
		for _, name := range []string{"tls/server.pem", "tls/client.pem"} {
			assert.Contains(t, files[name].Note, c.note+ends.UTC().Format(time.DateOnly))
			assert.Equal(t, c.note != "good until ", files[name].State == Unfit, name)
		}
		assert.Equal(t, There, files["tls/ca.pem"].State)
	}
	files := run(t, at(dir, ends))
	assert.Contains(t, files["tls/server.pem"].Note, "remove it and run this again with --host 'nats-1', then")
	require.NoError(t, os.Remove(filepath.Join(dir, "tls", "server.pem")))
	require.NoError(t, os.Remove(filepath.Join(dir, "tls", "client.pem")))
	assert.Equal(t, 2, states(run(t, at(dir, ends, "nats-1")))[Made])
	fits(t, dir)
	f := run(t, at(dir, now.Add(caValid+time.Hour)))["tls/ca.pem"]
	assert.Equal(t, Unfit, f.State)
	assert.Contains(t, f.Note, "remove everything below tls/")
}

// The keys that belong into a safe are not needed but for what they are for.
func TestKeysInASafe(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now()))
	safe := t.TempDir()
	private := []string{"tls/ca-key.pem", "age/escrow-identity", "tls/client-key.pem", "nats/cli.nk"}
	for _, name := range private {
		require.NoError(t, os.Rename(filepath.Join(dir, name), filepath.Join(safe, filepath.Base(name))))
	}
	assert.Equal(t, map[State]int{There: len(all()) - len(private), Elsewhere: len(private)}, states(run(t, at(dir, time.Now()))))
	// A certificate cannot be made without its CA's key, and then says which file it takes.
	require.NoError(t, os.Remove(filepath.Join(dir, "tls", "server.pem")))
	files, err := Make(at(dir, time.Now()))
	require.ErrorContains(t, err, "making "+filepath.Join(dir, "tls", "server.pem")+": this needs the CA's key: put tls/ca-key.pem back for this")
	assert.NotEmpty(t, files, "what was made before is told")
	require.NoError(t, os.Rename(filepath.Join(safe, "ca-key.pem"), filepath.Join(dir, "tls", "ca-key.pem")))
	assert.Equal(t, Made, run(t, at(dir, time.Now()))["tls/server.pem"].State)
}

// Files of somebody else, or damaged ones, are told as such; what they hold is not.
func TestFilesThatDoNotFit(t *testing.T) {
	first, other := t.TempDir(), t.TempDir()
	run(t, at(first, time.Now()))
	run(t, at(other, time.Now()))
	foreign := contents(t, other)
	const garbage = "SUAGARBAGE-AGE-SECRET-KEY-1GARBAGE\n"
	for _, name := range all() {
		for kind, text := range map[string]string{"another's": foreign[name], "garbage": garbage, "nothing": ""} {
			t.Run(name+" is "+kind, func(t *testing.T) {
				dir := t.TempDir()
				require.NoError(t, os.CopyFS(dir, os.DirFS(first)))
				require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
				before := contents(t, dir)
				out, code := lifeboat(t, "keys", "--out", dir)
				assert.Equal(t, before, contents(t, dir), "nothing is written over")
				saysNothingOf(t, out, before)
				assert.NotContains(t, out, "GARBAGE")
				if name == "webhook-tokens" || name == "link-secret" {
					assert.Equal(t, kind == "nothing", code != 0, out) // any text is as good, if it is long
					return
				}
				assert.Equal(t, service.ExitFailed, code, out)
				assert.Regexp(t, "run this again|put this there", out)
			})
		}
	}
}

// saysNothingOf checks that no line of a secret file stands in a text.
func saysNothingOf(t *testing.T, text string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if slices.Contains([]string{"nats/keys.conf", "age/recipients"}, name) || strings.HasSuffix(name, ".pem") && !strings.HasSuffix(name, "-key.pem") {
			continue
		}
		for line := range strings.Lines(content) {
			if line = strings.TrimSpace(line); len(line) > 8 && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, "-----") {
				assert.NotContains(t, text, line, name)
			}
		}
	}
}

// A secret that others can read is told, with what to do about it, and changed by nobody but a person.
func TestASecretThatOthersCanRead(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now()))
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) // or else nobody gets there
	_, open, err := exposed(filepath.Join(dir, "tls", "ca.pem"))
	require.NoError(t, err)
	require.False(t, open, "it is in a folder of its owner's")
	folders := []string{dir, filepath.Join(dir, "nats"), filepath.Join(dir, "tls"), filepath.Join(dir, "age")}
	for _, folder := range folders {
		require.NoError(t, os.Chmod(folder, 0o755))
	}
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now()))), "the files themselves are their owner's alone")
	for name, mode := range map[string]os.FileMode{"age/identity": 0o644, "tls/ca-key.pem": 0o640, "nats/cli.nk": 0o604, "webhook-tokens": 0o620} {
		require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	files := run(t, at(dir, time.Now()))
	require.Equal(t, map[State]int{There: len(all()) - 4, Unfit: 4}, states(files))
	assert.Equal(t, "others on this machine can read it (mode 0644): chmod 600 "+filepath.Join(dir, "age/identity")+", and renew it if one of them may have",
		files["age/identity"].Note)
	out, code := lifeboat(t, "keys", "--out", dir)
	assert.Equal(t, service.ExitFailed, code, out)
	assert.Contains(t, out, "4 of the files in "+dir+" do not do what they are for")
	info, err := os.Stat(filepath.Join(dir, "age", "identity"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o644), info.Mode().Perm())

	// What the folder keeps from others may be as it is: so does deploy/compose/prepare, and runs this again.
	require.NoError(t, os.Chmod(dir, 0o700))
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now()))))
	// A link is looked at where it leads to.
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Remove(filepath.Join(dir, "webhook-tokens")))
	require.NoError(t, os.Symlink("age/identity", filepath.Join(dir, "webhook-tokens")))
	assert.Equal(t, Unfit, run(t, at(dir, time.Now()))["webhook-tokens"].State)
	for name := range files {
		if files[name].State == Unfit {
			require.NoError(t, os.Chmod(filepath.Join(dir, name), 0o600)) // as it says
		}
	}
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now()))))
}

// A person may have what is there otherwise than it was made: with comments, spaces or quotes.
func TestKeysConfMayBeEdited(t *testing.T) {
	dir := t.TempDir()
	run(t, at(dir, time.Now()))
	path := filepath.Join(dir, "nats", "keys.conf")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	edited := strings.ReplaceAll(strings.ReplaceAll(string(b), ": ", " = \""), "\n", "\" # ours\n") + "OLD: UAAA\n"
	require.NoError(t, os.WriteFile(path, []byte(edited), 0o600))
	assert.Equal(t, There, run(t, at(dir, time.Now()))["nats/keys.conf"].State)
	lines := strings.SplitAfter(edited, "\n")
	require.NoError(t, os.WriteFile(path, []byte("# "+strings.Join(lines, "# ")), 0o600))
	assert.Equal(t, Unfit, run(t, at(dir, time.Now()))["nats/keys.conf"].State, "a comment is no key")
}

// Any names and addresses make a certificate that is for all of them.
func TestAnyHosts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	var hosts []string
	for i := range 40 {
		switch r.IntN(4) {
		case 0:
			hosts = append(hosts, fmt.Sprintf("10.%d.%d.%d", r.IntN(256), r.IntN(256), i))
		case 1:
			hosts = append(hosts, fmt.Sprintf("fd00::%x:%x", r.IntN(65536), i))
		case 2:
			hosts = append(hosts, fmt.Sprintf("nats_%d", i))
		default:
			hosts = append(hosts, fmt.Sprintf("n%d.%x.example.org", i, r.IntN(1000)))
		}
	}
	hosts, err := parseHosts(hosts)
	require.NoError(t, err)
	dir := t.TempDir()
	run(t, at(dir, time.Now(), hosts...))
	assert.Equal(t, map[State]int{There: len(all())}, states(run(t, at(dir, time.Now(), hosts...))))
	b, err := os.ReadFile(filepath.Join(dir, "tls", "server.pem"))
	require.NoError(t, err)
	cert, err := parseCertificate("", b)
	require.NoError(t, err)
	for _, h := range hosts {
		require.NoError(t, cert.VerifyHostname(h))
	}
}

func TestHostsThatAreNone(t *testing.T) {
	for _, h := range []string{"", "a b", "nats-1:4222", "https://x", "[::1]", "a..b", "-a", "*", "*.*.x", "a.*.b", "名", "x/", strings.Repeat("a", 64)} {
		_, err := parseHosts([]string{h})
		require.Error(t, err, h)
	}
	hosts, err := parseHosts([]string{"localhost", "a", "a", "127.0.0.1", "*.a.b", "a-b.c_d", "::2", net.IPv4bcast.String()})
	require.NoError(t, err)
	assert.Equal(t, []string{"a", "*.a.b", "a-b.c_d", "::2", "255.255.255.255"}, hosts)
}

// What is in the way is named.
func TestWhatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := Make(at(file, time.Now()))
	require.ErrorContains(t, err, file)
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "tls", "server.pem"), 0o700)) // as Docker leaves where a file was to be mounted
	_, err = Make(at(dir, time.Now()))
	require.ErrorContains(t, err, filepath.Join(dir, "tls", "server.pem"))
	require.ErrorContains(t, err, "is a directory")
}

func lifeboat(t *testing.T, args ...string) (output string, code int) {
	t.Helper()
	var out bytes.Buffer
	cmd := root()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	code = service.Main(cmd)
	return out.String(), code
}
