package bus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
)

// Connect starts connecting and returns at once: while no server answers or lets us in it keeps trying, for ever, and Ready
// says so. It fails only on settings that can never work, such as a credentials file that does not exist.
func Connect(o Options) (*Bus, error) {
	log := o.Logger.With(slog.String("nats_url", o.Config.URL))
	d := newDenials(o.Config.Inbox(o.role()))
	opts := connectOptions(log, d)
	opts = append(opts, nats.Name(o.Actor))
	if d.inboxPrefix != nats.InboxPrefix {
		opts = append(opts, nats.CustomInboxPrefix(strings.TrimSuffix(d.inboxPrefix, ".")))
	}
	login, key, err := authentication(o.Config, log)
	if err != nil {
		return nil, err
	}
	encryption, err := encryption(o.Config)
	if err != nil {
		return nil, fmt.Errorf("nats.tls: %w", err)
	}
	opts = append(append(opts, login...), encryption...)
	metrics := newMetrics(o.Registerer)
	nc, err := nats.Connect(o.Config.URL, opts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS at %s: %w", o.Config.URL, err)
	}
	if key != nil {
		key.conn.Store(nc)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("opening JetStream: %w", err)
	}
	return &Bus{
		nc: nc, js: js, log: o.Logger, actor: o.Actor, replicas: max(o.Config.Replicas, 1), url: o.Config.URL,
		monitor: newMonitor(o.Config), denials: d, metrics: metrics, refused: map[string]string{},
		slots: map[config.Work]slotLine{},
	}, nil
}

func connectOptions(log *slog.Logger, d *denials) []nats.Option {
	return []nats.Option{
		nats.MaxReconnects(-1),
		nats.RetryOnFailedConnect(true),
		// Without it the second refusal in a row is the last one: a server that comes back with another configuration, or
		// credentials that expire before their successor is there, would end the connection for good.
		nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, time.Second),
		nats.Timeout(5 * time.Second),
		// A server that hangs, or was cut off, says nothing. The library's own two minutes are longer than a job may be without a
		// heartbeat, or a tick may be late.
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) {
			d.connected()
			log.Info("connected to NATS")
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			d.connected()
			log.Info("reconnected to NATS")
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			d.disconnected()
			if err != nil {
				log.Warn("lost NATS, reconnecting", slog.Any("err", err))
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if d.away(err) {
				log.Warn("NATS does not answer, trying again", slog.Any("err", err))
			}
		}),
		// A denied permission shows up as a time-out at the caller; only this handler is told the reason.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if d.note(err) {
				log.Error("NATS reports an error", slog.Any("err", err))
			}
		}),
	}
}

// authentication is how the connection logs in. Every file is read again for each connection, so that it may be rotated.
func authentication(c config.NATS, log *slog.Logger) ([]nats.Option, *nkey, error) {
	switch {
	case c.CredsFile != "":
		content, err := c.CredsFile.Read()
		if err != nil {
			return nil, nil, fmt.Errorf("nats.creds_file: %w", err)
		}
		token, jwtErr := nkeys.ParseDecoratedJWT([]byte(content))
		if jwtErr == nil && strings.Count(token, ".") != 2 {
			jwtErr = errors.New("it has no JWT")
		}
		_, seedErr := nkeys.ParseDecoratedUserNKey([]byte(content))
		if err := errors.Join(jwtErr, seedErr); err != nil {
			return nil, nil, fmt.Errorf("nats.creds_file: %s does not hold a user's JWT and seed: %w", c.CredsFile, err)
		}
		return []nats.Option{nats.UserCredentials(string(c.CredsFile))}, nil, nil
	case c.NkeyFile != "":
		k := &nkey{file: c.NkeyFile}
		pair, public, err := k.read()
		if err != nil {
			return nil, nil, err
		}
		pair.Wipe()
		return []nats.Option{nats.Nkey(public, k.sign)}, k, nil
	case c.Username != "":
		if _, err := c.PasswordFile.Read(); err != nil {
			return nil, nil, fmt.Errorf("nats.password_file: %w", err)
		}
		return []nats.Option{nats.UserInfoHandler(func() (string, string) {
			password, err := c.PasswordFile.Read()
			if err != nil { // the server will refuse the empty one, and the next attempt reads again
				log.Warn("could not read nats.password_file", slog.Any("err", err))
			}
			return c.Username, password
		})}, nil, nil
	}
	return nil, nil, nil
}

// nkey is an NKey whose seed is in a file.
type nkey struct {
	file config.SecretFile
	conn atomic.Pointer[nats.Conn]
}

func (k *nkey) read() (pair nkeys.KeyPair, public string, err error) {
	content, err := k.file.Read()
	if err != nil {
		return nil, "", fmt.Errorf("nats.nkey_file: %w", err)
	}
	pair, err = nkeys.ParseDecoratedUserNKey([]byte(content))
	if err != nil {
		return nil, "", fmt.Errorf("nats.nkey_file: %s does not hold a user's seed (SU...): %w", k.file, err)
	}
	public, err = pair.PublicKey()
	if err != nil {
		return nil, "", fmt.Errorf("nats.nkey_file: %w", err)
	}
	return pair, public, nil
}

// sign answers the server's challenge. The library takes the public key as fixed, but another seed has another one: the
// attempt that finds one is given up, and the next shows the new key. The library calls this with the connection's lock
// held, which is what guards Opts.
func (k *nkey) sign(nonce []byte) ([]byte, error) {
	pair, public, err := k.read()
	if err != nil {
		return nil, err
	}
	defer pair.Wipe()
	if nc := k.conn.Load(); nc != nil && nc.Opts.Nkey != public {
		nc.Opts.Nkey = public
		return nil, fmt.Errorf("%s holds another key than before; connecting again with that", k.file)
	}
	return pair.Sign(nonce)
}

// encryption is the connection's TLS; none when it has none. CA and certificate are read again for each connection.
func encryption(c config.NATS) ([]nats.Option, error) {
	cfg, err := c.TLS.Client()
	if err != nil {
		return nil, err
	}
	if cfg == nil {
		if strings.HasPrefix(c.URL, "tls://") {
			return []nats.Option{nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})}, nil
		}
		return nil, nil
	}
	opts := []nats.Option{nats.Secure(cfg)}
	if c.TLS.CAFile != "" {
		opts = append(opts, func(o *nats.Options) error {
			o.RootCAsCB = func() (*x509.CertPool, error) { return config.CertPool(c.TLS.CAFile) }
			return nil
		})
	}
	return opts, nil
}
