package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	publisher = id.PublisherID("publisher-0123456789abcdef0123456789abcdef")
	entranceA = "entrance-0123456789abcdef0123456789abcdef"
	entranceB = "entrance-0000000000abcdef0123456789abcdef"
	boxA      = "box-0123456789abcdef0123456789abcdef"
	boxB      = "box-0000000000abcdef0123456789abcdef"
)

// fakeEntrance answers each SEARCH with what answer returns; "" is no answer.
func fakeEntrance(t *testing.T, answer func() string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wsconn.Accept(w, r, netaddr.Addr(nil))
		if err != nil {
			return
		}
		go func() {
			defer c.Abort()
			for {
				if _, err := c.ReadText(wire.MaxMessage); err != nil {
					return
				}
				if text := answer(); text != "" && c.WriteText([]byte(text)) != nil {
					return
				}
			}
		}()
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func reply(entrance, boxes string, urls ...string) string {
	list := `""`
	if len(urls) > 0 {
		list = `"` + strings.Join(urls, `","`) + `"`
	}
	return fmt.Sprintf(`{"ID":%q,"IP":"127.0.0.1","PORT":"7070","TYPE":"ENTRANCE","COMMAND":"SEARCH","URL":"http://127.0.0.1:7070","ENTRANCE_URLS":[%s],"BOX_SET":{%s}}`, entrance, list, boxes)
}

func offer(box, host string) string {
	return fmt.Sprintf(`%q:{"ID":%q,"IP":%q,"PORT":"7072","TYPE":"BOX","COMMAND":"EXCHANGE","CONNECT_WS":"http://%s:7072/dandelion/%s/ws/","EDGE_URL":"http://%s:7072"}`, box, box, host, host, box, host)
}

func newFleet(t *testing.T, entrances ...string) *Fleet {
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { client.Close() })
	return New(Config{Entrances: entrances, Wanted: func() int { return 2 }, Own: publisher}, client, slog.New(slog.DiscardHandler))
}

func run(t *testing.T, f *Fleet) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func TestBoxesThatAreOffered(t *testing.T) {
	t.Parallel()
	boxes := strings.Join([]string{
		offer(boxA, "127.0.0.1"), offer("box-x", "127.0.0.1"),
		`"` + boxB + `":` + strings.SplitN(offer(boxA, "127.0.0.1"), ":", 2)[1], // another ID inside
		offer("box-1111111111abcdef0123456789abcdef", "169.254.169.254"),
		`"box-2222222222abcdef0123456789abcdef":{}`,
		strings.Replace(offer("box-3333333333abcdef0123456789abcdef", "127.0.0.1"), `:7072"}`, `:7072?a=b"}`, 1),
	}, ",")
	f := newFleet(t, fakeEntrance(t, func() string { return reply(entranceA, boxes) }))
	run(t, f)
	await(t, "a box", func() bool { return len(f.Boxes()) > 0 })
	if b := f.Boxes(); len(b) != 1 || b[0].ID != boxA || b[0].EdgeBase != "http://127.0.0.1:7072" || b[0].Household != "" {
		t.Errorf("%+v", b)
	}
}

// TestEntrancesThatFail: each says why, none stops the others, and the good one is asked.
func TestEntrancesThatFail(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ answer, want string }{
		"refuses":        {`{"ID":"` + entranceB + `","IP":"a","PORT":"1","TYPE":"ENTRANCE","ERROR":"Refused: full"}`, "Refused: full"},
		"garbage":        {`garbage`, "wrong format"},
		"no entrance":    {reply(boxA, ""), "box-"},
		"list of boxes":  {strings.Replace(reply(entranceB, ""), `"BOX_SET":{}`, `"BOX_SET":["a"]`, 1), "BOX_SET"},
		"other commands": {`{"ID":"` + entranceB + `","IP":"a","PORT":"1","TYPE":"ENTRANCE","COMMAND":"LATER"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := fakeEntrance(t, func() string { return tt.answer })
			f := newFleet(t, bad, fakeEntrance(t, func() string { return reply(entranceA, offer(boxA, "127.0.0.1")) }))
			run(t, f)
			await(t, "the good one's box", func() bool { return len(f.Boxes()) == 1 })
			badURL, err := wire.ParseEntranceURL(bad)
			if err != nil {
				t.Fatal(err)
			}
			await(t, "the reason", func() bool { p, known := f.Entrances()[badURL]; return known && (p != "") == (tt.want != "") })
			if got := f.Entrances()[badURL]; !strings.Contains(got, tt.want) {
				t.Errorf("the reason is %q, want %q in it", got, tt.want)
			}
		})
	}
}

func TestTwoURLsOfOneEntrance(t *testing.T) {
	t.Parallel()
	answer := func() string { return reply(entranceA, offer(boxA, "127.0.0.1")) }
	f := newFleet(t, fakeEntrance(t, answer), fakeEntrance(t, answer))
	run(t, f)
	await(t, "one of two that says why", func() bool {
		problems := 0
		for _, p := range f.Entrances() {
			if strings.Contains(p, "the same entrance as") {
				problems++
			}
		}
		return problems == 1 && len(f.Boxes()) == 1
	})
}

// TestLearnedEntrances: what an entrance names is asked too, and however many URLs it makes up,
// so many are remembered.
func TestLearnedEntrances(t *testing.T) {
	t.Parallel()
	other := fakeEntrance(t, func() string { return reply(entranceB, offer(boxB, "127.0.0.1")) })
	var asked atomic.Int64
	f := newFleet(t, fakeEntrance(t, func() string {
		urls := []string{other, "http://169.254.1.1:7070", "ftp://a"}
		for i := range 60 {
			urls = append(urls, fmt.Sprintf("http://127.0.0.1:1/e%d-%d", asked.Load(), i))
		}
		asked.Add(1)
		return reply(entranceA, offer(boxA, "127.0.0.1"), urls...)
	}))
	f.cfg.Wanted = func() int { return 100 } // asked every second
	run(t, f)
	await(t, "boxes of both", func() bool { return len(f.Boxes()) == 2 })
	await(t, "three answers", func() bool { return asked.Load() >= 3 })
	if n := len(f.Entrances()); n > wire.MaxEntranceURLs {
		t.Errorf("%d entrances are remembered", n)
	}
}

func searchReply(t *testing.T, text string) wire.SearchReply {
	t.Helper()
	r, err := wire.Decode[wire.SearchReply]([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// quiet is a fleet without Redis, for synctest.
func quiet(t *testing.T) (*Fleet, context.Context) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	t.Cleanup(func() { client.Close() })
	ended, cancel := context.WithCancel(t.Context())
	cancel() // nothing is written
	return New(Config{Wanted: func() int { return 2 }, Own: publisher}, client, slog.New(slog.DiscardHandler)), ended
}

// TestForgetting: a box that no entrance offers is forgotten, but only while one answers, and not
// before boxes had the time to come back to it.
func TestForgetting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ctx := quiet(t)
		know := func(want int, when string) {
			t.Helper()
			if n := len(f.Boxes()); n != want {
				t.Errorf("%s: %d boxes, want %d", when, n, want)
			}
		}
		a, b := searchReply(t, reply(entranceA, offer(boxA, "127.0.0.1"))), searchReply(t, reply(entranceA, offer(boxB, "127.0.0.1")))
		f.claim(entranceA, "u")
		f.join(ctx, "u", a, netaddr.Loopback)
		f.join(ctx, "u", b, netaddr.Loopback)
		know(2, "at first")
		time.Sleep(forgetAfter + time.Second)
		f.join(ctx, "u", b, netaddr.Loopback)
		know(1, "one is offered no more")
		f.released(entranceA, "u")
		time.Sleep(time.Hour)
		know(1, "no entrance answers")
		f.claim(entranceA, "u")
		know(1, "an entrance answers again")
		time.Sleep(forgetAfter + time.Second)
		know(0, "it did not offer the box for long")
	})
}

// TestTwoEntrancesSeeABoxElsewhere: a box without a public address comes from another address at
// each entrance. It stays at one of them, the one that serves most viewers.
func TestTwoEntrancesSeeABoxElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f, ctx := quiet(t)
		lan, world := searchReply(t, reply(entranceA, offer(boxA, "192.168.1.9"))), searchReply(t, reply(entranceB, offer(boxA, "8.8.4.4")))
		at := func(want string) {
			t.Helper()
			if b := f.Boxes(); len(b) != 1 || b[0].EdgeAddr.String() != want {
				t.Errorf("%+v, want it at %s", b, want)
			}
		}
		f.join(ctx, "lan", lan, netaddr.Private)
		at("192.168.1.9")
		for range 10 {
			f.join(ctx, "world", world, netaddr.Public)
			at("8.8.4.4")
			time.Sleep(steadyInterval)
			f.join(ctx, "lan", lan, netaddr.Private)
			at("8.8.4.4")
		}
		time.Sleep(renewWithin)
		f.join(ctx, "lan", lan, netaddr.Private)
		at("192.168.1.9")
		// Narrower than the entrance itself is not taken.
		f.join(ctx, "world", lan, netaddr.Public)
		at("192.168.1.9")
	})
}
