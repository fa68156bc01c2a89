package entrance

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"dandelion/pkg/config"
	"dandelion/pkg/wire"
)

// TestBadMessages: every one is answered with an ERROR that says what is wrong, and the session is
// closed with code 1000.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	set := func(key string, value any) []byte { return b.report(func(m map[string]any) { m[key] = value }) }
	without := func(key string) []byte { return b.report(func(m map[string]any) { delete(m, key) }) }
	const whole = "Wrong format in your message. Your message: "
	for _, test := range []struct {
		name    string
		message []byte
		want    string
	}{
		{"not JSON", []byte("hello"), whole + "hello"},
		{"empty", []byte(""), whole},
		{"not an object", []byte("[1]"), whole + "[1]"},
		{"cut off", b.report(nil)[:50], whole + "{"},
		{"no ID", without("ID"), whole + "{"},
		{"empty ID", set("ID", ""), whole + "{"},
		{"no IP", without("IP"), whole},
		{"no PORT", without("PORT"), whole},
		{"no TYPE", without("TYPE"), whole},
		{"no COMMAND", without("COMMAND"), whole},
		{"null ID", set("ID", nil), whole},
		{"ID of a publisher", set("ID", publisherID), "Wrong format in your message: ID: "},
		{"SQL in ID", set("ID", "box-' OR 1=1; DROP TABLE boxes; --aaaa"), "Wrong format in your message: ID: "},
		{"path in ID", set("ID", "box-../../../../../../../../etc/pass"), "Wrong format in your message: ID: "},
		{"TYPE of a publisher", set("TYPE", "PUBLISHER"), "EXCHANGE is for TYPE BOX"},
		{"unknown COMMAND", set("COMMAND", "DANCE"), "Unknown COMMAND: DANCE"},
		{"long COMMAND", set("COMMAND", strings.Repeat("x", 5000)), whole},
		{"too long", set("X", strings.Repeat("x", wire.MaxExchange)), "longer than 262144 bytes"},
		{"port 0", set("PORT", "0"), "PORT"},
		{"port 65536", set("PORT", "65536"), "PORT"},
		{"port of letters", set("PORT", "http"), "PORT"},
		{"IP of letters", set("IP", "a b"), "IP"},
		{"IP like a number", set("IP", "127.1"), "IP"},
		{"no CONNECT_WS", without("CONNECT_WS"), "CONNECT_WS"},
		{"CONNECT_WS is a number", set("CONNECT_WS", 1), "CONNECT_WS"},
		{"CONNECT_WS ws:", set("CONNECT_WS", "ws://127.0.0.1:1"+wire.BoxWSPath(b.id)), "CONNECT_WS"},
		{"CONNECT_WS of another box", set("CONNECT_WS", "http://127.0.0.1:1"+wire.BoxWSPath(newBoxID(2))), "CONNECT_WS: its path must be "},
		{"CONNECT_WS elsewhere", set("CONNECT_WS", "http://127.0.0.1:1/admin/"), "CONNECT_WS: its path must be "},
		{"CONNECT_WS with query", set("CONNECT_WS", "http://127.0.0.1:1"+wire.BoxWSPath(b.id)+"?x=1"), "CONNECT_WS"},
		{"CONNECT_WS with user", set("CONNECT_WS", "http://u:p@127.0.0.1:1"+wire.BoxWSPath(b.id)), "CONNECT_WS"},
		{"CONNECT_WS with zone", set("CONNECT_WS", "http://[::1%25lo]:1"+wire.BoxWSPath(b.id)), "CONNECT_WS"},
		{"EDGE_URL with query", set("EDGE_URL", "http://127.0.0.1:1/?a="), "EDGE_URL"},
		{"EDGE_URL with fragment", set("EDGE_URL", "http://127.0.0.1:1/#a"), "EDGE_URL"},
		{"EDGE_URL ftp", set("EDGE_URL", "ftp://127.0.0.1/"), "EDGE_URL"},
		{"link-local IP", set("IP", "169.254.1.1"), "IP"},
		{"metadata service", set("CONNECT_WS", "http://169.254.169.254"+wire.BoxWSPath(b.id)), "CONNECT_WS"},
		{"metadata service, IPv6", set("EDGE_URL", "http://[fd00:ec2::254]/"), "EDGE_URL"},
		{"metadata service, mapped", set("EDGE_URL", "http://[::ffff:169.254.169.254]/"), "EDGE_URL"},
		{"metadata service, decimal", set("EDGE_URL", "http://2852039166/"), "EDGE_URL"},
		{"metadata service, hex", set("EDGE_URL", "http://0xa9fea9fe/"), "EDGE_URL"},
		{"multicast", set("EDGE_URL", "http://224.0.0.1/"), "EDGE_URL"},
		{"CPU is text", set("CPU-IDLE", "much"), "CPU-IDLE"},
		{"CPU is negative", set("CPU-IDLE", -1), "CPU-IDLE"},
		{"CPU is a list", set("CPU-IDLE", []int{1}), "CPU-IDLE"},
		{"CPU is infinite", set("CPU-IDLE", "1e999"), "CPU-IDLE"},
		{"GEOIP with numbers", set("GEOIP", map[string]any{"CITY": 1}), "GEOIP"},
		{"FEATURES is a number", set("FEATURES", 1), "FEATURES"},
		{"SEARCH of a box", set("COMMAND", "SEARCH"), "SEARCH is for TYPE PUBLISHER"},
		{"SEARCH with a bad ID", []byte(`{"ID": "publisher-x", "IP": "1", "TYPE": "PUBLISHER", "COMMAND": "SEARCH"}`), "ID: "},
		{"SEARCH with a bad COUNT", searchMessage(`, "COUNT": "many"`), "Wrong format in your message"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := e.dialIn(t)
			reply := p.ask(test.message)
			text, _ := reply["ERROR"].(string)
			if !strings.Contains(text, test.want) || len(text) > wire.MaxEcho+200 {
				t.Errorf("ERROR %q (%d bytes); want %q in it", text, len(text), test.want)
			}
			if reply["ID"] != string(e.ID()) || reply["TYPE"] != "ENTRANCE" || reply["IP"] == nil || reply["PORT"] == nil {
				t.Errorf("without own info: %v", reply)
			}
			if code := p.closed(); code != websocket.CloseNormalClosure {
				t.Errorf("closed with %d", code)
			}
		})
	}
	t.Cleanup(func() {
		if known := e.api("/api/v1/boxes")["total"]; known != 0.0 {
			t.Errorf("%v boxes were registered", known)
		}
	})
}

// dialIn is dial for a subtest.
func (r *running) dialIn(t *testing.T) *peer {
	t.Helper()
	in := *r
	in.t = t
	return in.dial(wire.EntranceWSPath)
}

func TestBinaryMessageIsRefused(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	p := e.dial(wire.EntranceWSPath)
	if err := p.ws.WriteMessage(websocket.BinaryMessage, []byte("<Dandelion>{}</Dandelion>x")); err != nil {
		t.Fatal(err)
	}
	if reply := p.receive(); !strings.HasPrefix(reply["ERROR"].(string), "Wrong format in your message.") {
		t.Errorf("%v", reply)
	}
	if code := p.closed(); code != websocket.CloseNormalClosure {
		t.Errorf("closed with %d", code)
	}
}

func TestUnknownCommandAfterFeaturesLeavesTheSessionOpen(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	p := e.connect(b)
	reply := p.ask(b.report(func(m map[string]any) { m["COMMAND"] = "DANCE" }))
	if reply["ERROR"] != "Unknown COMMAND: DANCE" {
		t.Errorf("%v", reply)
	}
	b.reportOn(p)
	e.offered(b, true)
}

func TestSessionKeepsItsID(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	p := e.connect(newBox(t, 1))
	reply := p.ask(newBox(t, 2).report(nil))
	if text, _ := reply["ERROR"].(string); !strings.Contains(text, "ID is another one") {
		t.Errorf("%v", reply)
	}
	p.closed()
}

func TestUntrustedProxyIsNamed(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	p := e.dialWith(wire.EntranceWSPath, http.Header{"X-Forwarded-For": {"203.0.113.9"}})
	reply := p.ask(newBox(t, 1).report(nil))
	if text, _ := reply["ERROR"].(string); !strings.Contains(text, "trusted_proxies") {
		t.Errorf("%v", reply)
	}
}

// trustLoopback makes sessions come from wherever the test says.
func trustLoopback(cfg *Config) {
	cfg.TrustedProxies = config.Networks{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}
}

func from(addr string) http.Header { return http.Header{"X-Forwarded-For": {addr}} }

// TestPublicBoxCannotNamePrivateAddresses: nor can a box at home name this machine.
func TestPublicBoxCannotNamePrivateAddresses(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, trustLoopback)
	b := newBox(t, 1)
	for _, test := range []struct{ from, host, want string }{
		{"203.0.113.9", "127.0.0.1", "is a loopback address"},
		{"203.0.113.9", "[::1]", "is a loopback address"},
		{"203.0.113.9", "[::ffff:127.0.0.1]", "is a loopback address"},
		{"203.0.113.9", "10.0.0.1", "is a private address"},
		{"203.0.113.9", "192.168.1.1", "is a private address"},
		{"203.0.113.9", "100.64.0.1", "is a private address"},
		{"203.0.113.9", "[fd12::1]", "is a private address"},
		{"203.0.113.9", "169.254.169.254", "is a forbidden address"},
		{"192.168.1.5", "127.0.0.1", "is a loopback address"},
		{"2001:db8::5", "127.0.0.1", "is a loopback address"},
	} {
		for _, field := range []string{"CONNECT_WS", "EDGE_URL"} {
			url := "http://" + test.host + ":" + b.port()
			if field == "CONNECT_WS" {
				url += wire.BoxWSPath(b.id)
			}
			p := e.dialWith(wire.EntranceWSPath, from(test.from))
			reply := p.ask(b.report(func(m map[string]any) {
				m["CONNECT_WS"], m["EDGE_URL"] = "http://0.0.0.0:1"+wire.BoxWSPath(b.id), "http://0.0.0.0:1"
				m[field] = url
			}))
			if text, _ := reply["ERROR"].(string); !strings.Contains(text, test.want) || !strings.Contains(text, field) {
				t.Errorf("%s from %s: %v; want %q", url, test.from, reply, test.want)
			}
		}
	}
}

// TestNamesAreCheckedWhenTheyAreDialled: a name that resolves to a narrower address than the box's
// is not dialled.
func TestNamesAreCheckedWhenTheyAreDialled(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, trustLoopback)
	b := newBox(t, 1)
	p := e.dialWith(wire.EntranceWSPath, from("192.168.77.5"))
	report := b.report(func(m map[string]any) {
		m["CONNECT_WS"] = "http://localhost:" + b.port() + wire.BoxWSPath(b.id)
		m["EDGE_URL"] = "http://localhost:" + b.port()
	})
	b.learn(p.ask(report)["NONCE"].(string))
	eventually(t, func() string {
		reply := p.ask(report)
		if reason, _ := reply["REASON"].(string); reply["REACHABLE"] != "no" || !strings.Contains(reason, "only private addresses or wider are dialled") {
			return fmt.Sprint(reply)
		}
		return ""
	})
}

// TestPublisherIsNotSentWhereItCannotGo: boxes of this machine are not for publishers elsewhere.
func TestPublisherIsNotSentWhereItCannotGo(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, trustLoopback)
	b := newBox(t, 1)
	e.connect(b)
	e.offered(b, true)
	for _, addr := range []string{"203.0.113.9", "192.168.1.5", "2001:db8::1"} {
		if boxes := e.dialWith(wire.EntranceWSPath, from(addr)).boxes(); len(boxes) != 0 {
			t.Errorf("from %s: %v", addr, boxes)
		}
	}
}

// TestImpostorIsRefused: an ID whose box was reached is not given to somebody at another address
// who wants traffic sent to another place, until its lease ends.
func TestImpostorIsRefused(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, trustLoopback)
	b, other := newBox(t, 1), newBox(t, 2)
	p := e.connect(b)
	e.offered(b, true)
	claim := other.report(func(m map[string]any) {
		m["ID"] = string(b.id)
		m["CONNECT_WS"] = "http://127.0.0.1:" + other.port() + wire.BoxWSPath(b.id)
		m["EDGE_URL"] = other.server.URL
	})
	impostor := e.dialWith(wire.EntranceWSPath, from("127.0.0.2"))
	if text, _ := impostor.ask(claim)["ERROR"].(string); !strings.Contains(text, "this box ID is in use") {
		t.Errorf("ERROR %q", text)
	}
	impostor.closed()
	e.offered(b, true)

	// When the first is gone, it may as well be the box at a new address.
	p.ws.Close()
	e.offered(b, false)
	if reply := e.dialWith(wire.EntranceWSPath, from("127.0.0.2")).ask(claim); reply["MESSAGE"] != "ACCEPTED" {
		t.Errorf("%v", reply)
	}
}

// TestReconnectBeforeTheOldConnectionDied: the newest session has the lease, and the end of the
// older one means nothing.
func TestReconnectBeforeTheOldConnectionDied(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	first := e.connect(b)
	e.offered(b, true)
	e.connect(b)
	first.ws.Close()
	eventually(t, func() string {
		if now := e.metric("dandelion_entrance_sessions"); now != "1" {
			return now + " sessions are there"
		}
		return ""
	})
	if _, offered := e.search()[string(b.id)]; !offered {
		t.Error("the box is not offered any more")
	}
}
