package checkin

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// claims is where a box says that it is.
type claims struct{ id, ip, port, connectWS, edgeURL string }

func claimsOf(x *wire.Exchange) claims {
	return claims{x.ID, x.IP, string(x.Port), x.ConnectWS, x.EdgeURL}
}

// placed is where a box is taken to be.
type placed struct {
	ip                 string
	port               wire.Text
	connectWS, edgeURL string
	address            netip.Addr // of its websocket; the session's where that has a name
}

// place judges what a box that comes from the address remote claims. A host of 0.0.0.0 or ::
// stands for remote itself. It refuses, with wire.ErrFormat, places that nobody coming from
// remote may name: forbidden addresses (link-local, metadata services and the like), and addresses
// that reach less far than remote does. Names are judged when they are dialled.
func place(c claims, remote netip.Addr) (p placed, err error) {
	bad := func(field string, err error) (placed, error) {
		return placed{}, fmt.Errorf("%w: %s: %w", wire.ErrFormat, field, err)
	}
	p.address, p.port = remote, wire.Text(c.port)
	if p.ip, err = checkHost(c.ip, remote); err != nil {
		return bad("IP", err)
	}
	if port, err := strconv.Atoi(c.port); err != nil || port < 1 || port > 65535 {
		return bad("PORT", fmt.Errorf("%s is not a port from 1 to 65535", id.Quote(c.port)))
	}
	ws, err := checkURL(c.connectWS, remote)
	if err != nil {
		return bad("CONNECT_WS", err)
	}
	if want := wire.BoxWSPath(id.BoxID(c.id)); ws.EscapedPath() != want && ws.EscapedPath()+"/" != want {
		return bad("CONNECT_WS", fmt.Errorf("its path must be %s", want))
	}
	p.connectWS = ws.String()
	if addr, err := netip.ParseAddr(ws.Hostname()); err == nil {
		p.address = addr.Unmap().WithZone("")
	}
	if c.edgeURL != "" {
		edge, err := checkURL(c.edgeURL, remote)
		if err != nil {
			return bad("EDGE_URL", err)
		}
		p.edgeURL = edge.String()
	}
	return p, nil
}

func checkURL(raw string, remote netip.Addr) (*url.URL, error) {
	u, err := wire.ParseURL(raw)
	if err != nil {
		return nil, err
	}
	if u.RawQuery != "" || u.ForceQuery {
		return nil, fmt.Errorf("%s has a query", id.Quote(raw))
	}
	host, err := checkHost(u.Hostname(), remote)
	if err != nil {
		return nil, err
	}
	if host != u.Hostname() {
		u.Host = join(host, u.Port())
	}
	return u, nil
}

func join(host, port string) string {
	if port != "" {
		return net.JoinHostPort(host, port)
	}
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// checkHost returns the host, remote's address where it is unspecified.
func checkHost(host string, remote netip.Addr) (string, error) {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return host, checkName(host)
	}
	if addr.Zone() != "" {
		return "", fmt.Errorf("%s has a zone", id.Quote(host))
	}
	if addr.Unmap().IsUnspecified() {
		return remote.String(), nil
	}
	if !netaddr.MayReach(remote, addr) {
		return "", fmt.Errorf("%s is a %s address, and you come from %s, a %s one: give an address that others can reach, or 0.0.0.0 for the one you come from",
			addr, netaddr.ScopeOf(addr), remote, netaddr.ScopeOf(remote))
	}
	return host, nil
}

// checkName accepts what can be a host name: what is not an address but looks like one (such
// as 127.1 or 0x7f.1) is an address to some programs, and refused.
func checkName(host string) error {
	const maxName = 253
	bad := host == "" || len(host) > maxName
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		bad = bad || label == "" || len(label) > 63
	}
	for _, c := range []byte(host) {
		bad = bad || !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.')
	}
	last := host[strings.LastIndexByte(strings.TrimSuffix(host, "."), '.')+1:]
	if bad || '0' <= last[0] && last[0] <= '9' {
		return fmt.Errorf("%s is not an IP address or a host name", id.Quote(host))
	}
	return nil
}
