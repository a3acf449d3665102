package s3

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// How long the last good keys are used while a file cannot be read, as when it is being replaced, and how long after a
// rotation a request may be denied because it was signed before.
const credentialsGrace = time.Minute

// fileCredentials reads the key files for every attempt, so that keys may be rotated under a running service and the old
// ones switched off at the same moment. Two small files cost nothing beside a request.
type fileCredentials struct {
	id, secret config.SecretFile

	mu      sync.Mutex
	last    aws.Credentials
	at      time.Time
	rotated time.Time
}

// Retrieve implements aws.CredentialsProvider. What it returns has expired already, so that the SDK's cache asks again.
func (f *fileCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	c, err := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if time.Since(f.at) < credentialsGrace {
			return f.last, nil
		}
		return aws.Credentials{}, err
	}
	if f.last.AccessKeyID != "" && differ(c, f.last) {
		f.rotated = time.Now()
	}
	f.last, f.at = c, time.Now()
	return c, nil
}

func (f *fileCredentials) read() (aws.Credentials, error) {
	id, err := f.id.Read()
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("store.access_key_id_file: %w", err)
	}
	secret, err := f.secret.Read()
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("store.secret_access_key_file: %w", err)
	}
	return aws.Credentials{
		AccessKeyID: id, SecretAccessKey: secret, Source: "files", CanExpire: true, Expires: time.Unix(0, 0),
	}, nil
}

// changed says that a denied request may have been signed with keys that are no longer those of the files: one of the two
// was read before the rotation, or the old keys ended while the request was on its way.
func (f *fileCredentials) changed() bool {
	c, err := f.read()
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Since(f.rotated) < credentialsGrace || err == nil && differ(c, f.last)
}

func differ(a, b aws.Credentials) bool {
	return a.AccessKeyID != b.AccessKeyID || a.SecretAccessKey != b.SecretAccessKey
}
