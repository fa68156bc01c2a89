package checkin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

const (
	maxProbeBody = 256 // bytes; an index page or a nonce
	nonceDigits  = 16  // of the nonce's digest, in its path
)

// hesitations are the pauses before a box that answers, but does not know its nonce yet, is asked
// again: it may not have read the reply that told it.
var hesitations = []time.Duration{10 * time.Millisecond, 40 * time.Millisecond, 150 * time.Millisecond, 500 * time.Millisecond}

// dialler makes the requests. One http.Transport for each scope, because the scope that may
// be dialled depends on where the box's session comes from.
type dialler struct {
	transports [netaddr.Public + 1]*http.Transport
}

func newDialler() *dialler {
	d := &dialler{}
	for scope := netaddr.Loopback; scope <= netaddr.Public; scope++ {
		d.transports[scope] = &http.Transport{
			DialContext:            netaddr.Dialer(scope, probeTimeout).DialContext,
			TLSHandshakeTimeout:    probeTimeout,
			DisableKeepAlives:      true, // each probe is to find out whether the box can be dialled
			DisableCompression:     true,
			MaxResponseHeaderBytes: 8 << 10,
			ReadBufferSize:         1 << 10,
			WriteBufferSize:        1 << 10,
		}
	}
	return d
}

// probe asks the box at the places that it claims. A box that got a nonce must know it at its
// public URL, and at its websocket's where that is another server; an old box must show its index
// page at its websocket's server. answered is the address of the websocket's server.
func (d *dialler) probe(ctx context.Context, box *registry.Box, nonce string) (reach registry.Reach, answered netip.Addr) {
	scope := netaddr.ScopeOf(box.Seen)
	reach.State = registry.ReachNo
	if scope == netaddr.Forbidden {
		reach.Reason = fmt.Sprintf("not reachable: its session comes from %s, an address that nobody can be sent to", box.Seen)
		return reach, answered
	}
	ws := origin(box.ConnectWS)
	edge := box.EdgeBase()
	want, path := "HI "+string(box.ID), wire.BoxIndexPath(box.ID)
	bases := []string{ws}
	if nonce != "" {
		sum := sha256.Sum256([]byte(nonce))
		want, path = nonce, wire.NoncePath(box.ID, hex.EncodeToString(sum[:])[:nonceDigits])
		bases = []string{edge}
		if origin(edge) != ws {
			bases = append(bases, ws)
		}
	}
	for _, base := range bases {
		addr, err := d.ask(ctx, scope, base+path, want, nonce != "")
		if err != nil {
			reach.Reason = explain(base, err)
			return reach, netip.Addr{}
		}
		// Publishers dial the websocket: that address, the last, is the one to judge by.
		answered = addr
	}
	reach.State = registry.ReachYes
	reach.Reason = "reachable at " + bases[0]
	return reach, answered
}

// wrongAnswer is an answer that is not the box's.
type wrongAnswer struct{ what string }

func (w *wrongAnswer) Error() string { return w.what }

func (d *dialler) ask(ctx context.Context, scope netaddr.Scope, rawURL, want string, hesitate bool) (netip.Addr, error) {
	for attempt := 0; ; attempt++ {
		addr, err := d.get(ctx, scope, rawURL, want)
		var wrong *wrongAnswer
		if err == nil || !hesitate || !errors.As(err, &wrong) || attempt == len(hesitations) {
			return addr, err
		}
		select {
		case <-ctx.Done():
			return addr, err
		case <-time.After(hesitations[attempt]):
		}
	}
}

func (d *dialler) get(ctx context.Context, scope netaddr.Scope, rawURL, want string) (netip.Addr, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return netip.Addr{}, err
	}
	req.Header.Set("User-Agent", "dandelion-entrance")
	addr, req := traced(req)
	resp, err := d.transports[scope].RoundTrip(req) // not a Client: no redirects
	if err != nil {
		return *addr, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeBody))
	switch {
	case resp.StatusCode != http.StatusOK:
		return *addr, &wrongAnswer{fmt.Sprintf("HTTP status %d", resp.StatusCode)}
	case err != nil:
		return *addr, err
	case strings.TrimSpace(string(body)) != want:
		return *addr, &wrongAnswer{"another answer than the box's"}
	}
	return *addr, nil
}

// origin is the scheme, host and port of a URL.
func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

// explain says in one sentence for the owner why the box cannot be reached at base, and what to do.
// The box itself adds its local address.
func explain(base string, err error) string {
	u, parseErr := url.Parse(base)
	if parseErr != nil {
		return "not reachable at " + base
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	forward := fmt.Sprintf("forward TCP port %s to this box", port)
	cause, cure := err.Error(), forward
	var (
		wrong   *wrongAnswer
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		cert    *tls.CertificateVerificationError
		header  tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &wrong):
		cause, cure = wrong.what, "another program answers there: "+forward
	case errors.As(err, &dns):
		cause, cure = "its name has no address", "correct public_address or the name's DNS entry"
	case errors.As(err, &unknown), errors.As(err, &cert):
		cause, cure = "its certificate is not accepted: "+err.Error(), "give it a certificate that browsers accept"
	case errors.As(err, &header):
		cause, cure = "no TLS there", "correct the scheme of the URL"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		cause = "connection timed out"
	case errors.Is(err, syscall.ECONNREFUSED):
		cause = "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		cause, cure = "no route to it", "give an address that others can reach"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		cause = "connection closed without an answer"
	case strings.Contains(err.Error(), "addresses or wider"):
		cure = "give an address that others can reach"
	}
	const limit = 200
	if len(cause) > limit {
		cause = strings.ToValidUTF8(cause[:limit], "") + "…"
	}
	return fmt.Sprintf("not reachable at %s (%s): %s", base, cause, cure)
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
