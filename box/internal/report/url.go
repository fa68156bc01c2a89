package report

import (
	"net/netip"
	"net/url"
)

// hostAddr returns the address of a URL whose host is one.
func hostAddr(raw string) (netip.Addr, bool) {
	u, err := url.Parse(raw)
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return a, err == nil
}
