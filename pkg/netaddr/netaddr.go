// Package netaddr says which addresses may be dialled and shown to whom:
// no role connects to link-local, metadata or other special addresses, and nobody is sent to
// an address that is more private than the one it comes from.
package netaddr

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Scope is how far an address reaches. Larger reaches further.
type Scope int

const (
	Forbidden Scope = iota // unspecified, link-local, metadata, multicast, reserved
	Loopback               // this machine
	Private                // a home's or provider's own network, carrier-grade NAT included
	Public                 // the Internet
)

func (s Scope) String() string {
	return [...]string{"forbidden", "loopback", "private", "public"}[s]
}

var (
	forbidden = prefixes(
		"0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"fe80::/10", "ff00::/8",
		// Metadata services of hosting providers outside the link-local ranges.
		"100.100.100.200/32", "fd00:ec2::254/128", "168.63.129.16/32",
	)
	private = prefixes("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15", "fc00::/7")
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		list[i] = netip.MustParsePrefix(s)
	}
	return list
}

// ScopeOf returns the scope of an address. IPv4 addresses mapped into IPv6 are taken as IPv4.
func ScopeOf(a netip.Addr) Scope {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid() || a.IsUnspecified() || contains(forbidden, a):
		return Forbidden
	case a.IsLoopback():
		return Loopback
	case contains(private, a):
		return Private
	}
	return Public
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// MayReach reports whether someone at from may be sent to target: a public viewer to public
// addresses only, a private one not to loopback, nobody to forbidden ones.
func MayReach(from, target netip.Addr) bool {
	scope := ScopeOf(target)
	return scope != Forbidden && scope >= min(ScopeOf(from), Public) && ScopeOf(from) != Forbidden
}

// Household returns the network that one home's boxes share: /24 of IPv4, /48 of IPv6.
func Household(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 24
	if a.Is6() {
		bits = 48
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// CrossesLine reports whether what from sends to another address goes through the line of its household, as far
// as addresses tell: those of the same household, where with IPv6 all are public, say nothing of the line.
func CrossesLine(from, to netip.Addr) bool {
	return ScopeOf(to) == Public && Household(from) != Household(to)
}

// Dialer returns a dialer that connects only to addresses whose scope is at least min. The
// check is made on the address that a name resolved to, so that no name leads around it.
func Dialer(least Scope, timeout time.Duration) *net.Dialer {
	least = max(least, Loopback)
	return &net.Dialer{
		Timeout: timeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %s: %w", address, err)
			}
			if scope := ScopeOf(ap.Addr()); scope < least {
				return fmt.Errorf("%s is a %s address: only %s addresses or wider are dialled here", ap.Addr(), scope, least)
			}
			return nil
		},
	}
}

// Addr returns the IP address of a net.Addr, unmapped; the zero Addr where it has none.
func Addr(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
