package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// SecretFile is the path of a file that holds a secret. Its content never enters the configuration.
type SecretFile string

// Read returns the file's content without surrounding white space. It is read anew each time, so that a secret may be
// rotated while the service runs. An error names the path and never the content.
func (f SecretFile) Read() (string, error) {
	if f == "" {
		return "", errors.New("no secret file is configured")
	}
	b, err := os.ReadFile(string(f))
	if err != nil {
		return "", fmt.Errorf("reading secret file: %w", err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("secret file %s is empty", f)
	}
	return s, nil
}
