package netaddr

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestScopeOf(t *testing.T) {
	for in, want := range map[string]Scope{
		"127.0.0.1": Loopback, "127.9.9.9": Loopback, "::1": Loopback, "::ffff:127.0.0.1": Loopback,
		"10.1.2.3": Private, "192.168.1.1": Private, "172.31.0.1": Private, "100.64.0.1": Private, "fd12::1": Private,
		"1.1.1.1": Public, "2606:4700::1": Public, "172.32.0.1": Public,
		"0.0.0.0": Forbidden, "::": Forbidden, "169.254.169.254": Forbidden, "::ffff:169.254.169.254": Forbidden,
		"fe80::1": Forbidden, "fe80::1%eth0": Forbidden, "224.0.0.1": Forbidden, "255.255.255.255": Forbidden,
		"100.100.100.200": Forbidden, "fd00:ec2::254": Forbidden,
	} {
		if got := ScopeOf(netip.MustParseAddr(in)); got != want {
			t.Errorf("ScopeOf(%s) = %s; want %s", in, got, want)
		}
	}
	if ScopeOf(netip.Addr{}) != Forbidden {
		t.Error("the zero address is not forbidden")
	}
}

func TestMayReach(t *testing.T) {
	for _, c := range []struct {
		from, target string
		want         bool
	}{
		{"127.0.0.1", "127.0.0.2", true},
		{"127.0.0.1", "192.168.1.1", true},
		{"192.168.1.2", "127.0.0.1", false},
		{"192.168.1.2", "192.168.1.3", true},
		{"1.1.1.1", "192.168.1.3", false},
		{"1.1.1.1", "127.0.0.1", false},
		{"1.1.1.1", "8.8.8.8", true},
		{"127.0.0.1", "169.254.169.254", false},
	} {
		if got := MayReach(netip.MustParseAddr(c.from), netip.MustParseAddr(c.target)); got != c.want {
			t.Errorf("MayReach(%s, %s) = %v", c.from, c.target, got)
		}
	}
}

func TestHousehold(t *testing.T) {
	for in, want := range map[string]string{"203.0.113.9": "203.0.113.0/24", "::ffff:203.0.113.9": "203.0.113.0/24", "2001:db8:1:2::3": "2001:db8:1::/48"} {
		if got := Household(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("Household(%s) = %s", in, got)
		}
	}
}

func TestCrossesLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"192.168.1.2", "1.1.1.1", true},
		{"192.168.1.2", "192.168.1.7", false},
		{"1.1.1.2", "1.1.1.1", false},
		{"2a00:1:2:3::4", "2a00:1:2:7::9", false},
		{"2a00:1:2:3::4", "2a00:1:3:7::9", true},
		{"127.0.0.1", "127.0.0.1", false},
	} {
		if got := CrossesLine(netip.MustParseAddr(c.from), netip.MustParseAddr(c.to)); got != c.want {
			t.Errorf("from %s to %s: %v", c.from, c.to, got)
		}
	}
}

func TestDialerRefuses(t *testing.T) {
	for _, c := range []struct {
		least   Scope
		address string
	}{{Loopback, "169.254.169.254:80"}, {Private, "127.0.0.1:1"}, {Public, "localhost:1"}, {Forbidden, "0.0.0.0:1"}} {
		conn, err := Dialer(c.least, time.Second).DialContext(t.Context(), "tcp", c.address)
		if err == nil {
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "only") {
			t.Errorf("dialled %s with least %s: %v", c.address, c.least, err)
		}
	}
}
