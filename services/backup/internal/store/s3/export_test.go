package s3

import (
	"context"
	"net"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
)

// WithLimits makes a test of what hangs take seconds.
func WithLimits(idle, answer, complete time.Duration) Option {
	return func(s *settings) { s.limits = limits{idle, answer, complete} }
}

// WithBackoff makes retries quick.
func WithBackoff(limit time.Duration) Option { return func(s *settings) { s.backoff = limit } }

// WithReuse sets how old a scratch upload must be to be used again.
func WithReuse(age time.Duration) Option { return func(s *settings) { s.reuse = age } }

// WithDial connects to somewhere else than to what the endpoint says, in place of DNS.
func WithDial(dial func(ctx context.Context, network, addr string) (net.Conn, error)) Option {
	return func(s *settings) { s.dial = dial }
}

// Client is the SDK's own client, for what a Store never does.
func (s *Store) Client() *awss3.Client { return s.client }
