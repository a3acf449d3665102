// Package keys makes the secrets that a deployment of the fleet needs, each into a file of its own: users of NATS, certificates, age
// identities, a bearer token and the secret of links.
//
// What is there stays as it is, byte by byte. That makes a second run safe, and a run that was interrupted goes on: a file appears
// whole or not at all, and secrets are written before what is derived from them. Of two runs at once, one makes a file and both
// use it.
//
// A private half that is gone while its public half is there is taken to be kept elsewhere, as the escrow identity and the key of the
// CA should be: another one would fit nothing that was made with the first.
package keys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"
)

// Options say what is made.
type Options struct {
	// Dir is the folder; it is made when it is not there.
	Dir string
	// Hosts are names and addresses of servers, besides those of loopback.
	Hosts []string
	// Valid is for how long certificates of servers and clients are good.
	Valid time.Duration
	// Only is what to make, of Parts; everything when empty.
	Only []string
	Now  func() time.Time
}

// Parts are what can be made by itself.
func Parts() []string { return []string{"nats", "tls", "age", "tokens"} }

// State is what became of a file.
type State string

// States of a file.
const (
	Made      State = "made"
	There     State = "there"
	Elsewhere State = "elsewhere" // it is not here, and what is here says that it exists
	Unfit     State = "unfit"     // it is there, and does not do what it is for; Note says what to do
)

// File is one of the deployment's files, and what became of it.
type File struct {
	// Path is relative to the folder, with slashes.
	Path string `json:"path"`
	// State is made, there, elsewhere or unfit.
	State State `json:"state"`
	// For says who uses it.
	For string `json:"for"`
	// Secret files are made 0600, the others 0644; a secret that others can read is unfit.
	Secret bool `json:"secret"`
	// Note says what is wrong and what to do; or, of a certificate that is good, until when.
	Note string `json:"note,omitempty"`
	// Expires is when a certificate ends.
	Expires *time.Time `json:"expires,omitempty"`
}

// Make makes what is not there, and returns all files, also when some of them are unfit. An error says which file could not be made;
// the files before it are returned with it.
func Make(o Options) ([]File, error) {
	m := &maker{Options: o, now: o.Now()}
	steps := map[string]func() error{"nats": m.users, "tls": m.certificates, "age": m.identities, "tokens": m.tokens}
	for _, part := range Parts() {
		if len(o.Only) > 0 && !slices.Contains(o.Only, part) {
			continue
		}
		folders := []string{part}
		if part == "tokens" {
			folders = nil // they stand in the folder itself
		}
		if err := makeFolders(o.Dir, folders...); err != nil {
			return m.all(), err
		}
		if err := steps[part](); err != nil {
			return m.all(), err
		}
	}
	return m.all(), nil
}

// maker collects what became of the files.
type maker struct {
	Options
	now   time.Time
	files []*File
}

func (m *maker) all() []File {
	files := make([]File, len(m.files))
	for i, f := range m.files {
		files[i] = *f
	}
	return files
}

// path is where a file of the folder is.
func (m *maker) path(name string) string { return filepath.Join(m.Dir, filepath.FromSlash(name)) }

// secret makes a secret file unless it is there, and returns what is in it now.
func (m *maker) secret(name, purpose string, generate func() ([]byte, error)) ([]byte, *File, error) {
	return m.file(File{Path: name, For: purpose, Secret: true}, generate)
}

// public is secret of a file that anybody may read.
func (m *maker) public(name, purpose string, generate func() ([]byte, error)) ([]byte, *File, error) {
	return m.file(File{Path: name, For: purpose}, generate)
}

func (m *maker) file(f File, generate func() ([]byte, error)) ([]byte, *File, error) {
	content, made, err := ensure(m.path(f.Path), mode(f.Secret), generate)
	if err != nil {
		return nil, nil, err
	}
	f.State = There
	if made {
		f.State = Made
	}
	if f.Secret {
		if err := m.kept(&f); err != nil {
			return nil, nil, err
		}
	}
	return content, m.add(f), nil
}

// kept says so when others can read a secret. What is wrong with its content is said instead, if anything is, and this the next time.
func (m *maker) kept(f *File) error {
	path := m.path(f.Path)
	mode, open, err := exposed(path)
	if err == nil && open {
		f.unfit("others on this machine can read it (mode %04o): chmod 600 %s, and renew it if one of them may have", mode, path)
	}
	return err
}

// add returns the file as it stands in the list, so that it can be judged afterwards.
func (m *maker) add(f File) *File {
	m.files = append(m.files, &f)
	return &f
}

// elsewhere is a private half that is not here, while its public one is.
func (m *maker) elsewhere(name, purpose, note string) {
	m.add(File{Path: name, State: Elsewhere, For: purpose, Secret: true, Note: note})
}

// unfit says that a file does not do what it is for, and what to do.
func (f *File) unfit(format string, args ...any) {
	f.State, f.Note = Unfit, fmt.Sprintf(format, args...)
}

// has says whether a file is there, whatever is in it.
func (m *maker) has(name string) (bool, error) {
	_, err := read(m.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Roles are the users of deploy/nats, each of which has permissions of its own.
func Roles() []string {
	return []string{"scheduler", "snapshot", "verify", "drill", "prune", "notifier", "cli", "page"}
}

const keysConf = "nats/keys.conf"

// users makes a seed for each role, and the file that tells NATS's servers their public keys.
func (m *maker) users() error {
	known, err := m.knownUsers()
	if err != nil {
		return err
	}
	var lines []string
	for _, role := range Roles() {
		name, purpose, variable := "nats/"+role+".nk", "NATS user of "+title(role), strings.ToUpper(role)
		if there, failed := m.has(name); failed != nil {
			return failed
		} else if !there && known[variable] != "" {
			m.elsewhere(name, purpose, "for another one take "+variable+" out of "+keysConf)
			continue
		}
		seed, f, failed := m.secret(name, purpose, newSeed)
		if failed != nil {
			return failed
		}
		public, failed := publicKey(seed)
		if failed != nil {
			f.unfit("it holds no seed of a NATS user (%v): put the right one there, or remove it and take %s out of %s and run this again", failed, variable, keysConf)
			continue
		}
		lines = append(lines, variable+": "+public)
	}
	content, f, err := m.public(keysConf, "NATS servers: the public keys of all users", func() ([]byte, error) {
		if len(lines) < len(Roles()) {
			return nil, errors.New("it needs every user's seed, and one of them cannot be read: remove that .nk file and run this again")
		}
		return []byte("# Public keys of Lifeboat's users, whose seeds are the .nk files that were made with them.\n\n" + strings.Join(lines, "\n") + "\n"), nil
	})
	if err != nil {
		return err
	}
	users := parseUsers(content)
	lines = slices.DeleteFunc(lines, func(line string) bool {
		variable, public, _ := strings.Cut(line, ": ")
		return users[variable] == public
	})
	if len(lines) > 0 {
		f.unfit("put this there, instead of another line for it if there is one, and let NATS read it again: %s", strings.Join(lines, "; "))
	}
	return nil
}

// knownUsers are the public keys of the file for NATS's servers; none when it is not there.
func (m *maker) knownUsers() (map[string]string, error) {
	content, err := read(m.path(keysConf))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // nobody is known
	}
	return parseUsers(content), err
}

// parseUsers reads variables of NATS's configuration: a name and a value in a line, which a person may have put into quotes, or a
// comment behind them.
func parseUsers(conf []byte) map[string]string {
	users := map[string]string{}
	for line := range strings.Lines(string(conf)) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n:=\"'", r) })
		if len(words) == 2 {
			users[words[0]] = words[1]
		}
	}
	return users
}

func title(role string) string {
	if role == "cli" {
		return "people (lifeboat, nats)"
	}
	return role
}

func newSeed() ([]byte, error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	seed, err := pair.Seed()
	return append(seed, '\n'), err
}

// publicKey is that of the first seed of a user in a file. Errors hold nothing of it.
func publicKey(content []byte) (string, error) {
	pair, err := nkeys.ParseDecoratedUserNKey(content)
	if err != nil {
		return "", err
	}
	return pair.PublicKey()
}

// minSecret is the length below which the notifier refuses a secret of links.
const minSecret = 32

// tokens makes what is no pair of keys.
func (m *maker) tokens() error {
	for _, s := range []struct{ name, purpose string }{
		{"webhook-tokens", "notifier.bearer_tokens_file, and whoever posts alerts"},
		{"link-secret", "notifier.interactions.link_secret_file"},
	} {
		content, f, err := m.secret(s.name, s.purpose, newSecret)
		if err != nil {
			return err
		}
		if len(strings.TrimSpace(string(content))) < minSecret {
			f.unfit("it has fewer than %d characters, which can be guessed: remove it and run this again", minSecret)
		}
	}
	return nil
}

// newSecret is 256 random bits in a line.
func newSecret() ([]byte, error) {
	random := make([]byte, 32)
	_, _ = rand.Read(random) // it never fails: see its documentation
	return append(hex.AppendEncode(nil, random), '\n'), nil
}
