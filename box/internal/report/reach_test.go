package report

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"dandelion/pkg/wire"
)

// TestNonce: the dial-back gets the nonce of a session, also when it comes before the reply.
func TestNonce(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	e.set(func() { e.silent = true })
	r := run(t, func(c *Config) { c.Entrances = []string{e.url}; c.Interval = 100 * time.Millisecond })
	receive(t, e.exchanges, "report")
	type answer struct {
		nonce string
		ok    bool
	}
	early := make(chan answer)
	go func() {
		nonce, ok := r.Nonce(t.Context(), shortDigest("a nonce"))
		early <- answer{nonce, ok}
	}()
	eventually(t, "it waits", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.waiting == 1 })
	e.set(func() { e.silent = false; e.answer = func(r *wire.ExchangeReply) { r.Nonce = "a nonce" } })
	if got := receive(t, early, "nonce"); got != (answer{"a nonce", true}) {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, short := range []string{"", "0123456789abcdef", shortDigest("a nonce")[:15], "../x"} {
		if _, ok := r.Nonce(ctx, short); ok {
			t.Errorf("%q is known", short)
		}
	}
	e.set(func() { e.down = true })
	e.cut()
	eventually(t, "the nonce ends with its session", func() bool {
		_, ok := r.Nonce(ctx, shortDigest("a nonce"))
		return !ok
	})
}

func TestReachability(t *testing.T) {
	t.Parallel()
	e := newEntrance(t, "e", nil)
	say := func(verdict, reason, address string) {
		e.set(func() {
			e.answer = func(r *wire.ExchangeReply) { r.Reachable, r.Reason, r.Address = verdict, reason, address }
		})
	}
	say("", "", "203.0.113.7")
	r := run(t, func(c *Config) { c.Entrances = []string{e.url} })
	is := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return r.status(e.url).Sentence == want })
	}
	is("not known yet: the entrance has not dialled back")
	say(wire.ReachableNo, "connection timed out", "203.0.113.7")
	no := "not reachable: http://203.0.113.7:7073 does not answer from outside (connection timed out): forward TCP port 7073 on your router to 127.0.0.1:7074"
	is(no)
	for range 5 {
		receive(t, e.exchanges, "report")
	}
	say(wire.ReachableYes, "", "203.0.113.7")
	yes := "reachable: http://203.0.113.7:7073 answers from outside"
	is(yes)
	if r.log.count(no) != 1 || r.log.count(yes) != 1 {
		t.Errorf("logged %d and %d times, want once at each change", r.log.count(no), r.log.count(yes))
	}
	if got := r.status(e.url).Reachable; got != wire.ReachableYes {
		t.Errorf("%q", got)
	}
}

func TestReachSentences(t *testing.T) {
	t.Parallel()
	addr := netip.MustParseAddr
	for want, r := range map[string]reach{
		"reachable: http://box.example:80 answers from outside": {verdict: wire.ReachableYes, host: "box.example", port: 80},
		"not known: this entrance does not dial back":           {old: true},
		"not reachable: http://203.0.113.7:7072 does not answer from outside: let TCP port 7072 through the firewall of this machine": {
			verdict: wire.ReachableNo, port: 7072, seen: addr("203.0.113.7"), local: addr("203.0.113.7"), localPort: 7072,
		},
		"not reachable: http://[2001:db8::1]:7072 does not answer from outside: forward TCP port 7072 on your router to 192.168.1.20:7073": {
			verdict: wire.ReachableNo, port: 7072, seen: addr("2001:db8::1"), local: addr("192.168.1.20"), localPort: 7073,
		},
		"not reachable at http://203.0.113.7:80 (connection timed out): forward TCP port 80 on your router to 192.168.1.20:7072": {
			verdict: wire.ReachableNo, port: 80, seen: addr("203.0.113.7"), local: addr("192.168.1.20"), localPort: 7072,
			reason: "not reachable at http://203.0.113.7:80 (connection timed out): forward TCP port 80 to this box",
		},
		"not reachable: http://203.0.113.7:80 does not answer from outside: forward TCP port 80 on 203.0.113.7 to 203.0.113.7:7072": {
			verdict: wire.ReachableNo, port: 80, seen: addr("203.0.113.7"), local: addr("203.0.113.7"), localPort: 7072,
		},
		"not reachable: http://203.0.113.7:80 does not answer from outside: start nginx": {
			verdict: wire.ReachableNo, port: 80, seen: addr("203.0.113.7"), local: addr("192.168.1.20"), localPort: 7072, advice: "start nginx",
		},
		"not reachable: the box does not answer from outside (why): let TCP port 1 through": {verdict: wire.ReachableNo, reason: "why", port: 1},
	} {
		if got := r.String(); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
