package runbook

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/lifeboat-fleet/lifeboat/fleet/config"
	"github.com/lifeboat-fleet/lifeboat/fleet/web"
)

const (
	// askWithin bounds one question with all its redirects.
	askWithin    = 3 * time.Second
	maxRedirects = 3
	userAgent    = "lifeboat-notifier (asks whether a runbook's link is dead)"
)

var (
	// errPrivate is an address that links may not lead to.
	errPrivate = errors.New("it leads to a private address, which is asked only with allow_private")
	// errScheme is a redirect to something that is no page on the web.
	errScheme = errors.New("it leads to something that is no web page")
)

// newClient asks for links. It looks at each address after it was resolved and before it is connected to, so neither a redirect nor
// a name that resolves to something else the next time leads to a place that is not allowed. For the same reason it uses no proxy,
// and no connection twice.
//
// files are for the host alone, so that no certificate goes where only an alert's annotation leads.
func newClient(names *net.Resolver, private bool, host func() string, files func() config.TLS) *http.Client {
	dialer := &net.Dialer{
		Timeout: askWithin, Resolver: names,
		Control: func(_, address string, _ syscall.RawConn) error {
			to, err := netip.ParseAddrPort(address)
			if err != nil || !allowed(to.Addr(), private) {
				return errPrivate
			}
			return nil
		},
	}
	return &http.Client{
		Transport: web.NewHostTransport(&http.Transport{
			DialContext: dialer.DialContext, DisableKeepAlives: true, DisableCompression: true, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: askWithin, MaxResponseHeaderBytes: 64 << 10,
		}, host, files),
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			req.Header.Del("Referer") // the address that led here may be nobody else's business
			if len(via) > maxRedirects {
				return http.ErrUseLastResponse
			}
			if safe(req.URL.String()) == "" {
				return errScheme
			}
			return nil
		},
	}
}

// ask gets a page. GET, because HEAD is refused by many.
func (l *links) ask(ctx context.Context, q question) answer {
	client := l.public
	if q.private {
		client = l.private
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.link, http.NoBody)
	if err != nil {
		return answer{dead: "not an address", gone: true}
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "text/markdown, text/plain;q=0.9, text/html;q=0.8, */*;q=0.7")
	resp, err := client.Do(req)
	if err != nil {
		return failed(err)
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		return answer{dead: strconv.Itoa(code), gone: true}
	case code >= http.StatusInternalServerError:
		return answer{dead: strconv.Itoa(code)}
	case code != http.StatusOK:
		return answer{} // somebody answers, and wants a login, or us to come less often
	}
	a := answer{}
	_, fragment, trusted := below(q.base, q.link)
	// After the redirects as well: a page of ours may lead to one of somebody else's.
	if _, _, still := below(q.base, resp.Request.URL.String()); trusted && still && isText(resp.Header.Get("Content-Type")) {
		src, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
		if err == nil && len(src) <= maxPage && utf8.Valid(src) && !intricate(src) {
			a.steps, _ = steps(src, fragment, q.link)
		}
	}
	return a
}

func isText(contentType string) bool {
	kind, _, err := mime.ParseMediaType(contentType)
	return err == nil && (kind == "text/markdown" || kind == "text/plain")
}

// failed says what it means that no answer came. A link is called dead only when it is: not when the fault may be on our side.
func failed(err error) answer {
	var timeout interface{ Timeout() bool }
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return answer{unsure: "it was not asked to the end"}
	case errors.Is(err, errPrivate):
		return answer{unsure: errPrivate.Error()}
	case errors.Is(err, errScheme):
		return answer{unsure: errScheme.Error()}
	case isDNS && dns.IsNotFound:
		return answer{dead: "no such host", gone: true}
	case isDNS:
		return answer{unsure: "its name could not be resolved"}
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EMFILE):
		return answer{unsure: "no network"}
	case errors.Is(err, syscall.ECONNREFUSED):
		return answer{dead: "connection refused"}
	case isTLS(err):
		return answer{} // somebody answers; whom a browser trusts is not ours to say
	case errors.As(err, &timeout) && timeout.Timeout():
		return answer{dead: fmt.Sprintf("no answer in %s", askWithin)}
	}
	return answer{dead: "no answer"}
}

func isTLS(err error) bool {
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	return verification || alert || record || unknown
}

// allowed says whether a link may lead to an address.
func allowed(a netip.Addr, private bool) bool {
	a = inner(a.WithZone("").Unmap())
	if slices.Contains(metadata(), a) {
		return false // no runbook is there, but credentials of the machine
	}
	if private {
		return !a.IsMulticast()
	}
	if !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range special() {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// inner is the IPv4 address that an IPv6 address leads to by a gateway: NAT64 (RFC 6052) and 6to4 (RFC 3056).
func inner(a netip.Addr) netip.Addr {
	b := a.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return netip.AddrFrom4([4]byte(b[12:]))
	case netip.MustParsePrefix("2002::/16").Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// metadata are where clouds tell a machine its credentials.
func metadata() []netip.Addr {
	return []netip.Addr{
		netip.MustParseAddr("169.254.169.254"), netip.MustParseAddr("fd00:ec2::254"), // most of them
		netip.MustParseAddr("169.254.170.2"), netip.MustParseAddr("169.254.170.23"), netip.MustParseAddr("fd00:ec2::23"), // Amazon's containers
		netip.MustParseAddr("100.100.100.200"), // Alibaba
		netip.MustParseAddr("168.63.129.16"),   // Azure
		netip.MustParseAddr("192.0.0.192"),     // Oracle
	}
}

// special are ranges that are not reached over the internet, besides those that package netip knows, from the IANA's registries of
// special-purpose addresses (RFC 6890).
func special() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"::/96", "64:ff9b:1::/48", "100::/64", "2001::/32", "2001:db8::/32", "5f00::/16", "fec0::/10",
	} {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}
