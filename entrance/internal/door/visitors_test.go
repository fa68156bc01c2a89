package door

import (
	"net"
	"net/http"
	"net/netip"
	"testing"
)

// from is a connection of which only the address and the close count.
type from struct {
	net.Conn
	addr   string
	closed bool
}

func (c *from) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.addr), 1))
}
func (c *from) Close() error { c.closed = true; return nil }

// TestVisitors: a network has so many connections that say nothing yet, all together have so many,
// and those that end or become sessions make room.
func TestVisitors(t *testing.T) {
	t.Parallel()
	d := newDoor(func(cfg *Config) { cfg.Trusted = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	var open []*from
	come := func(addr string) bool {
		c := &from{addr: addr}
		d.ConnState(c, http.StateNew)
		if c.closed {
			d.ConnState(c, http.StateClosed) // as net/http does
			return false
		}
		open = append(open, c)
		return true
	}
	for range MaxVisitorsPerNetwork {
		if !come("203.0.113.5") {
			t.Fatal("closed below the limit")
		}
	}
	if come("203.0.113.77") {
		t.Error("one more of the same network was let in")
	}
	if !come("203.0.114.1") {
		t.Error("another network was closed out")
	}
	d.ConnState(open[0], http.StateHijacked)
	d.ConnState(open[0], http.StateClosed) // never comes for one that was hijacked; must do no harm
	d.ConnState(open[1], http.StateActive)
	if open = open[1:]; !come("203.0.113.77") {
		t.Error("one that became a session made no room")
	}
	for i := 0; len(open) < MaxVisitors; i++ {
		// A trusted proxy, this network and loopback stand for many.
		if !come([]string{"192.0.2.1", "10.0.0.1", "127.0.0.1"}[i%3]) {
			t.Fatalf("closed with %d of %d", len(open), MaxVisitors)
		}
	}
	if come("198.51.100.1") {
		t.Error("more than the limit of all were let in")
	}
	if n := counted(t, d, refusedCrowd); n != 2 {
		t.Errorf("%v are counted", n)
	}
	for _, c := range open {
		d.ConnState(c, http.StateClosed)
	}
	if v := &d.visitors; v.places.taken != 0 || len(v.places.networks) != 0 || len(v.conns) != 0 {
		t.Errorf("%d places, %v, %d connections after the end", v.places.taken, v.places.networks, len(v.conns))
	}
}
