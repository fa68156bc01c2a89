package wire

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"dandelion/pkg/id"
)

// oldEdgePort is where an old box's web server answers viewers (docs/protocol.md, EDGE_URL).
const oldEdgePort = "7072"

// ParseURL checks an http or https URL of a message: a host, no user, no fragment, at most
// MaxURL bytes. Whether its host may be dialled is pkg/netaddr's to say.
func ParseURL(s string) (*url.URL, error) {
	if len(s) > MaxURL {
		return nil, fmt.Errorf("a URL longer than %d bytes", MaxURL)
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("%s is not an http or https URL with a host", id.Quote(s))
	}
	if u.User != nil || u.Fragment != "" {
		return nil, fmt.Errorf("%s has a user or a fragment", id.Quote(s))
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Errorf("%s has no port between 1 and 65535", id.Quote(s))
		}
	}
	return u, nil
}

// BoxWSPath is the path of a box's websocket, BoxIndexPath that of its index.
func BoxWSPath(box id.BoxID) string    { return "/dandelion/" + string(box) + "/ws/" }
func BoxIndexPath(box id.BoxID) string { return "/dandelion/" + string(box) + "/" }

// NoncePath is where a box answers the dial-back of an entrance that gave it a nonce: the body
// is the nonce whose digest begins with short.
func NoncePath(box id.BoxID, short string) string {
	return "/dandelion/" + string(box) + "/nonce/" + short
}

// EntranceWSPath is the path of an entrance's websocket, EntranceIndexPath that of its index.
const (
	EntranceWSPath    = "/dandelion/ws/"
	EntranceIndexPath = "/dandelion/"
)

// ParseEntranceURL returns the URL of an entrance's websocket in one form, so that one URL is one
// entrance: http or https, host[:port] with or without a path; none, and that of the index, is
// EntranceWSPath. Names are not resolved.
func ParseEntranceURL(raw string) (string, error) {
	u, err := ParseURL(strings.TrimSpace(raw))
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
	case "", strings.TrimSuffix(EntranceIndexPath, "/"), strings.TrimSuffix(EntranceWSPath, "/"):
		clean.Path = EntranceWSPath
	}
	return clean.String(), nil
}

// EdgeBase returns the base URL at which viewers reach the box, without a slash at its end:
// its EDGE_URL, or for an old box port 7072 of its IP.
func (x *Exchange) EdgeBase() string {
	if x.EdgeURL != "" {
		return strings.TrimSuffix(x.EdgeURL, "/")
	}
	return "http://" + net.JoinHostPort(x.IP, oldEdgePort)
}
