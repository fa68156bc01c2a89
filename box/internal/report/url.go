package report

import (
	"net"
	"net/netip"
	"net/url"
	"strings"

	"dandelion/pkg/wire"
)

// EntranceURL returns the URL of an entrance's websocket in one form, so that one URL is one
// entrance: http or https, host[:port] with or without a path; none, and that of the index, is
// wire.EntranceWSPath. Names are not resolved.
func EntranceURL(raw string) (string, error) {
	u, err := wire.ParseURL(strings.TrimSpace(raw))
	if err != nil {
		return "", err
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if a, err := netip.ParseAddr(host); err == nil {
		host = a.Unmap().String()
	}
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		port = ""
	}
	switch {
	case port != "":
		host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"):
		host = "[" + host + "]"
	}
	clean := url.URL{Scheme: u.Scheme, Host: host, Path: u.Path, RawQuery: u.RawQuery}
	switch strings.TrimSuffix(u.Path, "/") {
	case "", strings.TrimSuffix(wire.EntranceIndexPath, "/"), strings.TrimSuffix(wire.EntranceWSPath, "/"):
		clean.Path = wire.EntranceWSPath
	}
	return clean.String(), nil
}

// hostAddr returns the address of a URL whose host is one.
func hostAddr(raw string) (netip.Addr, bool) {
	u, err := url.Parse(raw)
	if err != nil {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(u.Hostname())
	return a, err == nil
}
