package checkin

import (
	"net/netip"
	"net/url"
	"testing"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

var boxID = id.BoxIDOf([]byte("box"))

func claimed(ip, connectWS, edgeURL string) claims {
	return claims{string(boxID), ip, "7072", connectWS, edgeURL}
}

// TestUnspecifiedHostIsTheSessions: 0.0.0.0 stands for the address that the entrance sees.
func TestUnspecifiedHostIsTheSessions(t *testing.T) {
	t.Parallel()
	path := wire.BoxWSPath(boxID)
	for _, test := range []struct {
		remote, ip, connectWS, edgeURL string
		wantIP, wantWS, wantEdge, addr string
	}{
		{
			"203.0.113.7", "0.0.0.0", "http://0.0.0.0:7072" + path, "http://0.0.0.0:7072",
			"203.0.113.7", "http://203.0.113.7:7072" + path, "http://203.0.113.7:7072", "203.0.113.7",
		},
		{
			"2001:db8::7", "0.0.0.0", "http://0.0.0.0:7072" + path, "http://[::]/",
			"2001:db8::7", "http://[2001:db8::7]:7072" + path, "http://[2001:db8::7]/", "2001:db8::7",
		},
		{
			"203.0.113.7", "box.example", "https://box.example" + path, "https://cdn.example:8443/box/",
			"box.example", "https://box.example" + path, "https://cdn.example:8443/box/", "203.0.113.7",
		},
		{
			"203.0.113.7", "198.51.100.1", "http://198.51.100.1:7072" + path, "",
			"198.51.100.1", "http://198.51.100.1:7072" + path, "", "198.51.100.1",
		},
		{
			"127.0.0.1", "127.0.0.1", "http://localhost:1" + path[:len(path)-1], "http://10.0.0.1",
			"127.0.0.1", "http://localhost:1" + path[:len(path)-1], "http://10.0.0.1", "127.0.0.1",
		},
	} {
		box, err := place(claimed(test.ip, test.connectWS, test.edgeURL), netip.MustParseAddr(test.remote))
		if err != nil {
			t.Errorf("%s: %v", test.connectWS, err)
			continue
		}
		if box.ip != test.wantIP || box.connectWS != test.wantWS || box.edgeURL != test.wantEdge || box.address.String() != test.addr {
			t.Errorf("%s: %s, %s, %s, %s", test.connectWS, box.ip, box.connectWS, box.edgeURL, box.address)
		}
	}
}

// FuzzPlace: whatever a box says, the places that are kept are ones that a peer at its address
// may be sent to, or names.
func FuzzPlace(f *testing.F) {
	path := wire.BoxWSPath(boxID)
	f.Add("0.0.0.0", "http://0.0.0.0:7072"+path, "http://0.0.0.0:7072", "203.0.113.7")
	f.Add("127.0.0.1", "http://localhost:7072"+path, "http://[::ffff:169.254.169.254]/", "127.0.0.1")
	f.Add("box.example", "https://box.example"+path, "https://0x7f.1:80/x?y#z", "fd00::1")
	f.Add("1.2.3.4", "http://1.2.3.4:1"+path[:len(path)-1], "http://a%2fb/", "10.0.0.1")
	f.Fuzz(func(t *testing.T, ip, connectWS, edgeURL, from string) {
		remote, err := netip.ParseAddr(from)
		if err != nil || remote.Zone() != "" {
			return
		}
		remote = remote.Unmap()
		box, err := place(claimed(ip, connectWS, edgeURL), remote)
		if err != nil {
			return
		}
		for _, raw := range []string{box.connectWS, box.edgeURL} {
			if raw == "" {
				continue
			}
			u, err := url.Parse(raw)
			if err != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
				t.Fatalf("%q was kept: %v", raw, err)
			}
			if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !addr.Unmap().IsUnspecified() && !netaddr.MayReach(remote, addr) && addr.Unmap() != remote {
				t.Fatalf("%q was kept for a box at %s", raw, remote)
			}
		}
		if u, _ := url.Parse(box.connectWS); u.Path != path && u.Path+"/" != path {
			t.Fatalf("%q was kept", box.connectWS)
		}
	})
}
