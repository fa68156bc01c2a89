package access

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// ClientAddr returns the address of who made the request: that of the connection, or, when that
// belongs to a trusted proxy, the rightmost address in X-Forwarded-For or Forwarded (RFC 7239)
// that is not a trusted proxy's itself. When all are, it is the leftmost. The address is never
// an IPv4-mapped one and has no zone.
//
// It returns the zero Addr where nothing can be said: a loopback connection that carries
// somebody's forwarding headers though no proxy there is trusted, headers that cannot be read or
// contradict each other, a connection without an IP address. Headers on any other untrusted
// connection count for nothing. A proxy on this machine that writes no such header cannot be
// told from a local program: proxies must be made to write one.
func ClientAddr(r *http.Request, trusted []netip.Prefix) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	remote := plain(peer.Addr())
	if !contains(trusted, remote) {
		if remote.IsLoopback() && forwarded(r.Header) {
			return netip.Addr{}
		}
		return remote
	}
	xff, hasXFF := r.Header["X-Forwarded-For"]
	fwd, hasFwd := r.Header["Forwarded"]
	switch {
	case hasXFF && hasFwd:
		// The proxy wrote one of them and passed the other on as the client sent it; which
		// one is not known here.
		a, b := clientHop(xff, trusted, parseHop), clientHop(fwd, trusted, parseForwarded)
		if a != b {
			return netip.Addr{}
		}
		return a
	case hasXFF:
		return clientHop(xff, trusted, parseHop)
	case hasFwd:
		return clientHop(fwd, trusted, parseForwarded)
	case forwarded(r.Header): // by something that does not say for whom
		return netip.Addr{}
	}
	return remote
}

// forwarded reports whether a proxy, or somebody who plays one, had the request in hand.
func forwarded(h http.Header) bool {
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Forwarded-Host", "X-Forwarded-Proto", "Via"} {
		if _, ok := h[name]; ok {
			return true
		}
	}
	return false
}

// clientHop walks the hops from the nearest to the farthest and stops at the first that is not
// a trusted proxy, so that nothing which the client wrote itself is reached.
func clientHop(lines []string, trusted []netip.Prefix, parse func(string) netip.Addr) netip.Addr {
	var addr netip.Addr
	for _, line := range slices.Backward(lines) {
		for more := true; more; {
			var hop string
			comma := strings.LastIndexByte(line, ',')
			hop, more = line[comma+1:], comma >= 0
			line = line[:max(comma, 0)]
			addr = parse(strings.TrimSpace(hop))
			if !contains(trusted, addr) { // the zero Addr is in no prefix
				return addr
			}
		}
	}
	return addr
}

// parseHop reads an address with or without a port; the zero Addr is one that it cannot read.
func parseHop(s string) netip.Addr {
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return plain(addr)
	}
	if addrPort, err := netip.ParseAddrPort(s); err == nil {
		return plain(addrPort.Addr())
	}
	return netip.Addr{}
}

// parseForwarded reads the for= parameter of one element: `for="[2001:db8::1]:4711";proto=http`.
func parseForwarded(element string) netip.Addr {
	for pair := range strings.SplitSeq(element, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if !strings.EqualFold(name, "for") {
			continue
		}
		if inner, ok := strings.CutPrefix(value, `"`); ok {
			if value, ok = strings.CutSuffix(inner, `"`); !ok {
				return netip.Addr{}
			}
		}
		return parseHop(value)
	}
	return netip.Addr{}
}

func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
