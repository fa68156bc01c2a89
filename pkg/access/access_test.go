package access

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"dandelion/pkg/httperr"
)

func TestAllow(t *testing.T) {
	t.Parallel()
	nobody, everyone := [4]bool{}, [4]bool{true, true, true, true}
	thisMachine := [4]bool{true, true, false, false}
	tests := map[Action][4]bool{ // from 127.0.0.1, ::1 (also mapped), a LAN, unknown
		ViewStream:  everyone,
		PeerSession: everyone,
		ReadAPI:     thisMachine,
		Upload:      thisMachine,
		Debug:       thisMachine,
		0:           nobody,
		actionCount: nobody,
		255:         nobody,
	}
	if len(tests) != actionCount-1+3 {
		t.Errorf("%d actions tested, there are %d", len(tests)-3, actionCount-1)
	}
	for action, want := range tests {
		for i, remote := range []string{"127.0.0.1", "::ffff:127.3.0.1", "192.168.1.7", ""} {
			addr, _ := netip.ParseAddr(remote)
			err := Allow(action, addr)
			if (err == nil) != want[i] {
				t.Errorf("%s from %q: %v; want allowed %v", action, remote, err, want[i])
			}
			var denied *Denied
			if err != nil && (!errors.As(err, &denied) || denied.Action != action || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%s from %q: %#v is not a Denied", action, remote, err)
			}
		}
	}
	if err := Allow(Debug, netip.MustParseAddr("::1")); err != nil {
		t.Error(err)
	}
}

func TestActionsHaveNames(t *testing.T) {
	t.Parallel()
	for a := Action(1); a < actionCount; a++ {
		if a.String() == "" {
			t.Errorf("action %d has no name", a)
		}
	}
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	const proxies = "127.0.0.0/8 10.0.0.0/8 fd00::/8"
	tests := map[string]struct {
		remote  string
		headers string // lines "Name: value"
		trusted string
		want    string // empty: unknown
	}{
		"direct":                                  {remote: "192.0.2.1:5", want: "192.0.2.1"},
		"direct, mapped":                          {remote: "[::ffff:192.0.2.1]:5", want: "192.0.2.1"},
		"direct, zone":                            {remote: "[fe80::1%eth0]:5", want: "fe80::1"},
		"direct loopback":                         {remote: "127.0.0.1:5", want: "127.0.0.1"},
		"direct loopback 6":                       {remote: "[::1]:5", want: "::1"},
		"no IP":                                   {remote: "@", want: ""},
		"empty":                                   {remote: "", want: ""},
		"untrusted says anything":                 {remote: "192.0.2.1:5", headers: "X-Forwarded-For: 127.0.0.1", want: "192.0.2.1"},
		"untrusted on loopback":                   {remote: "127.0.0.1:5", headers: "X-Forwarded-For: 192.0.2.9", want: ""},
		"untrusted on loopback, loopback":         {remote: "127.0.0.1:5", headers: "X-Forwarded-For: 127.0.0.1", want: ""},
		"untrusted on loopback, mapped":           {remote: "[::ffff:127.0.0.1]:5", headers: "X-Forwarded-For: 127.0.0.1", want: ""},
		"untrusted on loopback, Forwarded":        {remote: "127.0.0.1:5", headers: "Forwarded: for=192.0.2.9", want: ""},
		"untrusted on loopback, empty header":     {remote: "127.0.0.1:5", headers: "X-Forwarded-For: ", want: ""},
		"untrusted on loopback, X-Real-IP":        {remote: "127.0.0.1:5", headers: "X-Real-IP: 192.0.2.9", want: ""},
		"untrusted on loopback, Via":              {remote: "127.0.0.1:5", headers: "Via: 1.1 proxy", want: ""},
		"trusted, no header":                      {remote: "127.0.0.1:5", trusted: proxies, want: "127.0.0.1"},
		"trusted, one hop":                        {remote: "127.0.0.1:5", headers: "X-Forwarded-For: 192.0.2.9", trusted: proxies, want: "192.0.2.9"},
		"trusted, mapped remote":                  {remote: "[::ffff:10.1.1.1]:5", headers: "X-Forwarded-For: 192.0.2.9", trusted: proxies, want: "192.0.2.9"},
		"trusted, spoofed first hop":              {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1, 192.0.2.9", trusted: proxies, want: "192.0.2.9"},
		"trusted, two proxies":                    {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1, 192.0.2.9 ,10.2.2.2", trusted: proxies, want: "192.0.2.9"},
		"trusted, several lines":                  {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1\nX-Forwarded-For: 192.0.2.9\nX-Forwarded-For: 10.2.2.2", trusted: proxies, want: "192.0.2.9"},
		"trusted, all trusted":                    {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1, 10.2.2.2", trusted: proxies, want: "127.0.0.1"},
		"trusted, mapped hop":                     {remote: "10.1.1.1:5", headers: "X-Forwarded-For: ::ffff:192.0.2.9", trusted: proxies, want: "192.0.2.9"},
		"trusted, hop with port":                  {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 192.0.2.9:1234", trusted: proxies, want: "192.0.2.9"},
		"trusted, IPv6 hop":                       {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 2001:db8::1", trusted: proxies, want: "2001:db8::1"},
		"trusted, bracketed hop":                  {remote: "10.1.1.1:5", headers: "X-Forwarded-For: [2001:db8::1]", trusted: proxies, want: "2001:db8::1"},
		"trusted, nonsense":                       {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1, nonsense", trusted: proxies, want: ""},
		"trusted, empty":                          {remote: "127.0.0.1:5", headers: "X-Forwarded-For: ", trusted: proxies, want: ""},
		"trusted, ends with comma":                {remote: "127.0.0.1:5", headers: "X-Forwarded-For: 127.0.0.1,", trusted: proxies, want: ""},
		"trusted, only X-Real-IP":                 {remote: "127.0.0.1:5", headers: "X-Real-IP: 192.0.2.9", trusted: proxies, want: ""},
		"trusted, Forwarded":                      {remote: "10.1.1.1:5", headers: "Forwarded: for=127.0.0.1, proto=https;For=192.0.2.9;by=203.0.113.43", trusted: proxies, want: "192.0.2.9"},
		"trusted, Forwarded, quoted IPv6":         {remote: "10.1.1.1:5", headers: `Forwarded: for="[2001:db8:cafe::17]:4711"`, trusted: proxies, want: "2001:db8:cafe::17"},
		"trusted, Forwarded, unknown":             {remote: "10.1.1.1:5", headers: "Forwarded: for=unknown", trusted: proxies, want: ""},
		"trusted, Forwarded, hidden":              {remote: "10.1.1.1:5", headers: "Forwarded: for=127.0.0.1, for=_hidden", trusted: proxies, want: ""},
		"trusted, Forwarded, without for":         {remote: "10.1.1.1:5", headers: "Forwarded: proto=https", trusted: proxies, want: ""},
		"trusted, Forwarded, open quote":          {remote: "10.1.1.1:5", headers: `Forwarded: for="127.0.0.1`, trusted: proxies, want: ""},
		"trusted, Forwarded, open quote in front": {remote: "10.1.1.1:5", headers: `Forwarded: for="127.0.0.1, for=192.0.2.9`, trusted: proxies, want: "192.0.2.9"},
		"trusted, both agree":                     {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 192.0.2.9\nForwarded: for=192.0.2.9", trusted: proxies, want: "192.0.2.9"},
		"trusted, both, one spoofed":              {remote: "10.1.1.1:5", headers: "X-Forwarded-For: 127.0.0.1\nForwarded: for=192.0.2.9", trusted: proxies, want: ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request(tt.remote, "127.0.0.1:7072", tt.headers)
			got := ClientAddr(r, prefixes(tt.trusted))
			want, _ := netip.ParseAddr(tt.want)
			if got != want {
				t.Errorf("ClientAddr: %v, want %v", got, want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		action                Action
		method, remote, host  string
		headers, trusted, bad string // bad: what the refusal says; empty: allowed
	}{
		"viewer from anywhere":      {action: ViewStream, remote: "192.0.2.1:5", host: "live.example.org"},
		"viewer through a proxy":    {action: ViewStream, remote: "127.0.0.1:5", host: "live.example.org", headers: "X-Forwarded-For: 192.0.2.1"},
		"API here":                  {action: ReadAPI, remote: "127.0.0.1:5", host: "127.0.0.1:7070"},
		"API here by name":          {action: ReadAPI, remote: "127.0.0.1:5", host: "LocalHost:7070"},
		"API here, IPv6":            {action: ReadAPI, remote: "[::1]:5", host: "[::1]:7070"},
		"API here, IPv6 no port":    {action: ReadAPI, remote: "[::1]:5", host: "[::1]"},
		"API from elsewhere":        {action: ReadAPI, remote: "192.0.2.1:5", host: "127.0.0.1", bad: "only programs on this machine"},
		"API through a local proxy": {action: ReadAPI, remote: "127.0.0.1:5", host: "127.0.0.1", headers: "X-Forwarded-For: 127.0.0.1", bad: "only programs on this machine"},
		"API through a trusted proxy from here": {
			action: ReadAPI, remote: "127.0.0.1:5", host: "localhost", headers: "X-Forwarded-For: 127.0.0.1", trusted: "127.0.0.1/32",
		},
		"API through a trusted proxy from elsewhere": {
			action: ReadAPI, remote: "127.0.0.1:5", host: "localhost", headers: "X-Forwarded-For: 127.0.0.1, 192.0.2.1", trusted: "127.0.0.1/32",
			bad: "only programs on this machine",
		},
		"a name that an attacker points here": {action: ReadAPI, remote: "127.0.0.1:5", host: "rebind.example.org:7070", bad: "names a host"},
		"no host":                             {action: ReadAPI, remote: "127.0.0.1:5", host: "", bad: "names a host"},
		"upload here":                         {action: Upload, method: "POST", remote: "127.0.0.1:5", host: "127.0.0.1:7070"},
		"upload by a page of another site": {
			action: Upload, method: "POST", remote: "127.0.0.1:5", host: "127.0.0.1:7070", headers: "Origin: https://example.org", bad: "another site's page",
		},
		"upload by the own page": {
			action: Upload, method: "POST", remote: "127.0.0.1:5", host: "127.0.0.1:7070", headers: "Origin: http://127.0.0.1:7070",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := request(tt.remote, tt.host, tt.headers)
			if tt.method != "" {
				r.Method = tt.method
			}
			err := Check(r, tt.action, prefixes(tt.trusted))
			if tt.bad == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var public *httperr.Error
			var denied *Denied
			if !errors.As(err, &public) || public.Status != http.StatusForbidden || !strings.Contains(public.Public, tt.bad) || !errors.As(err, &denied) {
				t.Errorf("Check: %v; want 403 with %q", err, tt.bad)
			}
		})
	}
}

func FuzzClientAddr(f *testing.F) {
	f.Add("127.0.0.1, 192.0.2.9", `for="[::1]:5", for=_x`)
	f.Add(",", ";=")
	trusted := prefixes("127.0.0.0/8")
	f.Fuzz(func(t *testing.T, xff, forwarded string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = "127.0.0.1:5"
		// What the proxy adds is what counts, whatever the client sent.
		r.Header["X-Forwarded-For"] = []string{xff + ", 192.0.2.9"}
		if got := ClientAddr(r, trusted); got.String() != "192.0.2.9" {
			t.Errorf("X-Forwarded-For %q: client %v", xff, got)
		}
		r.Header = http.Header{"Forwarded": {forwarded, "for=192.0.2.9"}}
		if got := ClientAddr(r, trusted); got.String() != "192.0.2.9" {
			t.Errorf("Forwarded %q: client %v", forwarded, got)
		}
		r.Header = http.Header{"X-Forwarded-For": {xff}, "Forwarded": {forwarded}}
		if got := ClientAddr(r, trusted); got.Is4In6() || got.Zone() != "" {
			t.Errorf("client %v", got)
		}
	})
}

func request(remote, host, headers string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr, r.Host = remote, host
	for line := range strings.Lines(headers) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		r.Header.Add(name, value)
	}
	return r
}

func prefixes(list string) []netip.Prefix {
	var all []netip.Prefix
	for s := range strings.FieldsSeq(list) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}
