package checkin

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// place makes a Box of a report that came from the address remote. A host of 0.0.0.0 or :: stands
// for remote itself. It refuses, with wire.ErrFormat, places that nobody coming from remote may
// name: forbidden addresses (link-local, metadata services and the like), and addresses that reach
// less far than remote does. Names are judged when they are dialled.
func place(x wire.Exchange, remote netip.Addr) (registry.Box, error) {
	box := registry.Box{ID: id.BoxID(x.ID), Seen: remote, Address: remote}
	bad := func(field string, err error) (registry.Box, error) {
		return registry.Box{}, fmt.Errorf("%w: %s: %w", wire.ErrFormat, field, err)
	}
	var err error
	if x.IP, err = checkHost(x.IP, remote); err != nil {
		return bad("IP", err)
	}
	if port, err := strconv.Atoi(string(x.Port)); err != nil || port < 1 || port > 65535 {
		return bad("PORT", fmt.Errorf("%s is not a port from 1 to 65535", id.Quote(string(x.Port))))
	}
	ws, err := checkURL(x.ConnectWS, remote)
	if err != nil {
		return bad("CONNECT_WS", err)
	}
	if want := wire.BoxWSPath(box.ID); ws.EscapedPath() != want && ws.EscapedPath()+"/" != want {
		return bad("CONNECT_WS", fmt.Errorf("its path must be %s", want))
	}
	x.ConnectWS = ws.String()
	if x.EdgeURL != "" {
		edge, err := checkURL(x.EdgeURL, remote)
		if err != nil {
			return bad("EDGE_URL", err)
		}
		x.EdgeURL = edge.String()
	}
	box.Exchange = x
	if addr, err := netip.ParseAddr(ws.Hostname()); err == nil {
		box.Address = addr.Unmap().WithZone("")
	}
	return box, nil
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
