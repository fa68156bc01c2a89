package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// rig is a live stream without sockets, on a bubble's clock: the front at front:80 redirects
// the first request for a segment to box1:80, the second to box2:80, and so on.
type rig struct {
	begin  time.Time
	first  int // segments that are there at the beginning
	window int // segments in the playlist
	until  int // the last segment, then ENDLIST; 0: never
	offset int // what is added to MEDIA-SEQUENCE
	header string

	front func(r *http.Request) (*http.Response, error)        // nil, or nil answers: as usual
	box   func(r *http.Request, n int) (*http.Response, error) // n: the attempt, from 1 on; likewise

	mu       sync.Mutex
	attempts map[string]int // by path
	asked    []ask
	events   []Event
}

type ask struct {
	at  time.Duration // since the beginning
	url string
}

const rigTarget = 2 * time.Second // each segment lasts as long

func content(n int) string { return fmt.Sprintf("segment %d %s", n, strings.Repeat("x", 500)) }

func name(n int) string {
	sum := sha256.Sum256([]byte(content(n)))
	return fmt.Sprintf("%s/%d.ts", hex.EncodeToString(sum[:])[:12], n)
}

// edge is how many segments there are now.
func (g *rig) edge() int {
	n := g.first + int(time.Since(g.begin)/rigTarget)
	if g.until > 0 {
		n = min(n, g.until)
	}
	return n
}

func (g *rig) playlist() string {
	edge := g.edge()
	from := max(0, edge-g.window)
	var b strings.Builder
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:%d\n%s", from+g.offset, g.header)
	for n := from; n < edge; n++ {
		fmt.Fprintf(&b, "#EXTINF:2,\n%s\n", name(n))
	}
	if g.until > 0 && edge == g.until {
		b.WriteString("#EXT-X-ENDLIST\n")
	}
	return b.String()
}

func (g *rig) RoundTrip(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	g.asked = append(g.asked, ask{time.Since(g.begin), r.URL.String()})
	playlist := strings.HasSuffix(r.URL.Path, ".m3u8")
	if r.URL.Host == "front" && !playlist {
		g.attempts[r.URL.Path]++
	}
	n := g.attempts[r.URL.Path]
	g.mu.Unlock()
	if r.URL.Host == "front" {
		if g.front != nil {
			if resp, err := g.front(r); resp != nil || err != nil {
				return resp, err
			}
		}
		if playlist {
			return answer(r, 200, g.playlist()), nil
		}
		resp := answer(r, 302, "")
		resp.Header.Set("Location", fmt.Sprintf("http://box%d%s", n, r.URL.Path))
		return resp, nil
	}
	if g.box != nil {
		if resp, err := g.box(r, n); resp != nil || err != nil {
			return resp, err
		}
	}
	return answer(r, 200, content(number(r))), nil
}

// number is the segment that a request is for; -1 none.
func number(r *http.Request) int {
	n := -1
	_, _ = fmt.Sscanf(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:], "%d.ts", &n)
	return n
}

func answer(r *http.Request, status int, body string) *http.Response {
	return &http.Response{
		Status: fmt.Sprint(status, " ", http.StatusText(status)), StatusCode: status, Header: http.Header{}, Request: r,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

// silence answers nothing.
func silence(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// broken is a body that says a part, waits, and fails; without err it waits for ever.
type broken struct {
	ctx  context.Context
	part io.Reader
	wait time.Duration
	err  error
}

func (b *broken) Read(p []byte) (int, error) {
	if n, err := b.part.Read(p); err == nil {
		return n, nil
	}
	if b.err == nil {
		<-b.ctx.Done()
		return 0, b.ctx.Err()
	}
	time.Sleep(b.wait)
	return 0, b.err
}

func (b *broken) Close() error { return nil }

// player returns a viewer of the rig.
func (g *rig) player(policy Policy) *Player {
	p := New(Config{URL: "http://front/live/demo/v/index.m3u8", Policy: policy, Viewer: 7, Log: slog.New(slog.DiscardHandler), Events: func(e Event) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.events = append(g.events, e)
	}})
	p.client.Transport = g
	return p
}

// play lets a viewer watch the rig for so long, on the bubble's clock.
func (g *rig) play(t *testing.T, policy Policy, length time.Duration, check func(t *testing.T, r Report)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		g.begin, g.attempts = time.Now(), map[string]int{}
		p := g.player(policy)
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
		check(t, p.Report())
		if t.Failed() {
			t.Logf("%+v", p.Report())
			for _, a := range g.asked {
				t.Log(a.at, a.url)
			}
		}
	})
}

// times are when a URL with that ending was asked for.
func (g *rig) times(ending string) (at []time.Duration) {
	for _, a := range g.asked {
		if strings.HasPrefix(a.url, "http://front/") && strings.HasSuffix(a.url, ending) {
			at = append(at, a.at)
		}
	}
	return at
}

// told returns the events of a kind, without those of the start.
func (g *rig) told(kind string) (all []Event) {
	for _, e := range g.events {
		if e.Event == kind {
			all = append(all, e)
		}
	}
	return all
}

// expect compares an event with what it must be; its time is since the rig's beginning.
func (g *rig) expect(t *testing.T, e Event, at time.Duration, want Event) {
	t.Helper()
	want.Time, want.Viewer = g.begin.Add(at), 7
	if !e.Time.Equal(want.Time) {
		t.Errorf("%s began at %v, want %v", e.Event, e.Time.Sub(g.begin), at)
	}
	e.Time = want.Time
	if e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
}

var errReset = fmt.Errorf("read tcp: %w", syscall.ECONNRESET)
