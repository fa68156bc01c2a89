package door

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"dandelion/pkg/access"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// Self is what an entrance calls itself towards a peer. Sessions share it; it is never changed.
type Self struct {
	URL string    // of its websocket; "" where it cannot be told
	Own wire.Peer // of its messages
}

// maxSelves bounds what is kept: the URL is what peers put into Host.
const maxSelves = 256

type selfKey struct {
	url   string
	local netip.Addr
}

// self returns what the entrance calls itself towards the peer that made the request.
func (d *Door) self(r *http.Request) *Self {
	key := selfKey{url: d.ownURL(r)}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		key.local = netaddr.Addr(local)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	self := d.selves[key]
	if self == nil {
		self = &Self{URL: key.url, Own: d.ownPeer(key.url, key.local)}
		if len(d.selves) >= maxSelves {
			clear(d.selves)
		}
		d.selves[key] = self
	}
	return self
}

// ownURL is what the entrance calls itself towards the peer that made the request: the configured
// URL, or the one that the peer dialled.
func (d *Door) ownURL(r *http.Request) string {
	if d.cfg.URL != "" {
		return d.cfg.URL
	}
	scheme := "http"
	if r.TLS != nil || r.Header.Get("X-Forwarded-Proto") == "https" && access.ClientAddr(r, d.cfg.Trusted) != remoteOf(r) {
		scheme = "https"
	}
	own := scheme + "://" + r.Host + wire.EntranceWSPath
	if u, err := wire.ParseURL(own); err == nil && u.Host == r.Host {
		return own
	}
	// HTTP/1.0 needs no Host.
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return scheme + "://" + local.String() + wire.EntranceWSPath
	}
	return ""
}

func remoteOf(r *http.Request) netip.Addr {
	ap, _ := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr().Unmap().WithZone("")
}

// ownPeer is what the entrance's messages say of it. Where its URL has a name, IP is the address
// that the peer is connected to.
func (d *Door) ownPeer(own string, local netip.Addr) wire.Peer {
	p := wire.Peer{ID: string(d.cfg.ID), IP: local.String(), Type: wire.TypeEntrance}
	u, err := url.Parse(own)
	if err != nil {
		u = &url.URL{}
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		p.IP = addr.String()
	}
	p.Port = wire.Text(portOf(u))
	return p
}

// portOf returns the port of an http or https URL, also where it is not written.
func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}
