package keys

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
)

const recipientsFile = "age/recipients"

// identities makes the key that drills and restores decrypt with, another one for the safe, and their public halves. Without them all
// that was encrypted for them is lost, so nothing here replaces one that has only been put elsewhere.
func (m *maker) identities() error {
	encrypted, err := m.has(recipientsFile)
	if err != nil {
		return err
	}
	var known []string
	for _, i := range []struct{ name, purpose string }{
		{"age/identity", "encryption.identity_file of drill workers, and restores"},
		{"age/escrow-identity", "a safe, against the loss of the other: take it away from here"},
	} {
		if there, failed := m.has(i.name); failed != nil {
			return failed
		} else if encrypted && !there {
			m.elsewhere(i.name, i.purpose, "for another one remove "+recipientsFile+" as well")
			continue
		}
		content, f, failed := m.secret(i.name, i.purpose, m.newIdentity)
		if failed != nil {
			return failed
		}
		recipients, failed := recipientsOf(content)
		if failed != nil {
			f.unfit("it holds no age identity (AGE-SECRET-KEY-1...): put the right one there, or remove it and %s and run this again", recipientsFile)
			continue
		}
		known = append(known, recipients...)
	}
	content, f, err := m.public(recipientsFile, "encryption.recipients: all that workers need to encrypt", func() ([]byte, error) {
		if len(known) < 2 {
			return nil, errors.New("it needs both identities, and one of them cannot be read: put the right one there, or remove it, and run this again")
		}
		return []byte(strings.Join(known, "\n") + "\n"), nil
	})
	if err != nil {
		return err
	}
	have := strings.Fields(string(content))
	if missing := slices.DeleteFunc(known, func(r string) bool { return slices.Contains(have, r) }); len(missing) > 0 {
		f.unfit("put %s there and into encryption.recipients, or the right identity beside it, and run this again", strings.Join(missing, ", "))
	}
	return nil
}

// newIdentity is a file as age-keygen writes it.
func (m *maker) newIdentity() ([]byte, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "# created: %s\n# public key: %s\n%s\n", m.now.UTC().Format(time.RFC3339), id.Recipient(), id), nil
}

// recipientsOf are the public halves of a file's identities. Errors hold nothing of it.
func recipientsOf(content []byte) (all []string, err error) {
	ids, err := age.ParseIdentities(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		switch id := id.(type) {
		case *age.X25519Identity:
			all = append(all, id.Recipient().String())
		case *age.HybridIdentity:
			all = append(all, id.Recipient().String())
		}
	}
	return all, nil
}
