package edge

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/uplink"
)

func putLive(t testing.TB, s *segstore.Store, path string, plays time.Duration, b []byte) {
	t.Helper()
	w, err := s.Create(segstore.Meta{Publisher: pub, Path: id.Path(path), TTL: time.Minute, Size: int64(len(b)), Plays: plays})
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// TestLimit: answers of all kinds take no more than the limit together, and nobody is cut off for
// waiting, although each gets less than the least rate.
func TestLimit(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const size, viewers, rate = 300_000, 4, 1_000_000
	b := content(size)
	put(t, store, "/a.ts", time.Hour, b)
	limit := uplink.New(rate)
	_, base, deliveries := serve(t, Config{Store: store, Uplink: limit, MinRate: rate, RateWindow: 100 * time.Millisecond})
	url := base + "/" + string(pub) + "/a.ts"
	for range 5 {
		do(t, "HEAD", url)
		do(t, "GET", url+"x")
		do(t, "GET", url, "Range", "bytes=400000-")
		<-deliveries
		<-deliveries
		<-deliveries
	}
	if limit.Sent() != 0 {
		t.Errorf("%d bytes were taken for answers without a file's bytes", limit.Sent())
	}
	began := time.Now()
	var wg sync.WaitGroup
	for i := range viewers {
		wg.Go(func() {
			if i == 0 { // through Write
				_, got := do(t, "GET", url, "Range", fmt.Sprintf("bytes=0-10,100-%d", size-1))
				if len(got) < size-100 {
					t.Errorf("%d bytes of two ranges", len(got))
				}
				return
			}
			if _, got := do(t, "GET", url); !bytes.Equal(got, b) {
				t.Errorf("other bytes than were stored: %d", len(got))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	var sent int64
	for range viewers {
		d := <-deliveries
		sent += d.Bytes
		if d.Aborted {
			t.Errorf("cut off: %+v", d)
		}
	}
	if least := time.Duration(float64(sent) / rate * 0.97 * float64(time.Second)); took < least {
		t.Errorf("%d bytes took %v, want at least %v", sent, took, least)
	}
	if limit.Sent() != sent || limit.Flows() != 0 || limit.Peak() > rate*105/100 {
		t.Errorf("%d bytes of %d counted, %d flows, peak %d", limit.Sent(), sent, limit.Flows(), limit.Peak())
	}
}

// TestSlowViewersHoldNothing: viewers who take nothing keep no share from the others, and are cut off.
func TestSlowViewersHoldNothing(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/large.ts", time.Hour, content(64<<20))
	const size, rate = 4 << 20, 16 << 20
	put(t, store, "/a.ts", time.Hour, content(size))
	limit := uplink.New(rate)
	_, base, deliveries := serve(t, Config{Store: store, Uplink: limit, MinRate: 64 << 10, RateWindow: time.Second})
	const slow = 3
	for range slow {
		dialRaw(t, base, "GET /"+string(pub)+"/large.ts HTTP/1.1\r\nHost: x\r\n\r\n") // and reads nothing
	}
	cut := 0
	for cut < slow {
		do(t, "GET", base+"/"+string(pub)+"/a.ts")
		for done := false; !done; {
			d := <-deliveries
			switch {
			case d.Bytes == size && !d.Aborted:
				done = true
			case d.Aborted:
				cut++
			default:
				t.Fatalf("%+v", d)
			}
		}
	}
	if limit.Flows() != 0 {
		t.Errorf("%d flows", limit.Flows())
	}
}

// TestViewerLeavesWhileItWaits: who goes away does not wait for its turn any more.
func TestViewerLeavesWhileItWaits(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	put(t, store, "/a.ts", time.Hour, content(1<<20))
	limit := uplink.New(8000)
	_, base, deliveries := serve(t, Config{Store: store, Uplink: limit})
	c := dialRaw(t, base, "GET /"+string(pub)+"/a.ts HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if d := <-deliveries; !d.Aborted || d.Took > 10*time.Second {
		t.Errorf("%+v", d)
	}
	if limit.Flows() != 0 {
		t.Error("its flow is still open")
	}
}

// TestBounce: what would not arrive within the time that it plays is sent back to the front, or told
// to come later.
func TestBounce(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const rate, size = 100_000, 90_000
	b := content(size)
	live := "/live/demo/720p/" + id.DigestOf(b).Short() + "/seg 0.ts"
	putLive(t, store, live, time.Second, b)
	putLive(t, store, "/vod/a.ts", time.Second, b)
	putLive(t, store, "/unknown.ts", 0, b)
	etag := `"` + id.DigestOf(b).String() + `"`
	box := id.BoxIDOf([]byte("box"))

	limit := uplink.New(rate)
	front := "http://127.0.0.1:7071/"
	e, base, deliveries := serve(t, Config{
		Store: store, Uplink: limit, Box: box, FrontURL: func(p id.PublisherID) string {
			if p != pub {
				t.Errorf("asked for %s", p)
			}
			return front
		},
	})
	base += "/" + string(pub)
	path := strings.ReplaceAll(live, " ", "%20")
	var others []*uplink.Flow
	much := int64(0) // what the last of them expects to send
	get := func(method, path string, want int, headers ...string) *http.Response {
		t.Helper()
		if much > 0 {
			others[len(others)-1].Expect(much) // it has not fallen silent
		}
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close() // takes no more than it must
		if d := <-deliveries; resp.StatusCode != want || d.Status != want {
			t.Errorf("%s %s: %d (%d), want %d", method, path, resp.StatusCode, d.Status, want)
		}
		if resp.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: %d without CORS", method, path, resp.StatusCode)
		}
		return resp
	}
	get("GET", path, 200) // alone
	others = append(others, limit.Open(8))
	others[0].Expect(1000)
	get("GET", path, 200) // one other, and the rate suffices
	much = 80_000

	resp := get("GET", path, 302)
	if at := resp.Header.Get("Location"); at != "http://127.0.0.1:7071"+path+"?avoid="+string(box) {
		t.Errorf("sent to %s", at)
	}
	for name, want := range map[string]string{"Cache-Control": "no-store", "Etag": "", "Content-Type": "", "Content-Length": "0", "Accept-Ranges": ""} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	resp = get("GET", "/vod/a.ts", 302, "Range", "bytes=0-80000")
	if at := resp.Header.Get("Location"); at != "http://127.0.0.1:7071/"+string(pub)+"/vod/a.ts?avoid="+string(box) || resp.Header.Get("Content-Range") != "" {
		t.Errorf("sent to %s: %v", at, resp.Header)
	}
	get("GET", path, 206, "Range", "bytes=0-9999")
	get("GET", path, 304, "If-None-Match", etag)
	get("GET", path, 416, "Range", "bytes=100000-")
	get("HEAD", path, 200)
	get("GET", "/unknown.ts", 200)
	later := func(path string) {
		t.Helper()
		resp := get("GET", path, 503)
		if resp.Header.Get("Retry-After") != "1" || resp.Header.Get("Location") != "" || resp.Header.Get("Etag") != "" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, resp.Header)
		}
	}
	later(path + "?hop=1")
	later(path + "?hop")
	front = ""
	later(path)
	front = "http://169.254.169.254/"
	later(path)
	front = "https://front.example.org/here"
	if at := get("GET", path, 302).Header.Get("Location"); !strings.HasPrefix(at, front+path) {
		t.Errorf("sent to %s", at)
	}
	for _, f := range others {
		f.Close()
	}
	much = 0
	get("GET", path, 200)
	limit.SetRate(0)
	for range 20 {
		defer limit.Open(1).Close()
	}
	get("GET", path, 200)
	if e.Bounced() != 7 || limit.Flows() != 20 {
		t.Errorf("%d bounced, %d flows", e.Bounced(), limit.Flows())
	}
}

// TestCrowdIsTakenInPart: of those who come at once as many are served as the upload carries in time.
func TestCrowdIsTakenInPart(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	const rate, size, room = 1_000_000, 100_000, 10
	putLive(t, store, "/live.ts", time.Second, content(size))
	limit := uplink.New(rate)
	_, base, deliveries := serve(t, Config{Store: store, Uplink: limit})
	var wg sync.WaitGroup
	for range 4 * room {
		wg.Go(func() { do(t, "GET", base+"/"+string(pub)+"/live.ts") })
	}
	wg.Wait()
	served := 0
	for range 4 * room {
		switch d := <-deliveries; d.Status {
		case 200:
			served++
			if d.Took > 5*time.Second {
				t.Errorf("took %v", d.Took)
			}
		case 503:
		default:
			t.Errorf("%+v", d)
		}
	}
	// Those whom a busy machine lets come late find places that have become free.
	if served < room || served > 3*room {
		t.Errorf("%d were served", served)
	}
}

// TestFull: what another server has no upload left for goes back to the publisher; the viewer is who that server says,
// and it accounts for all.
func TestFull(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	b := content(1000)
	live := "/live/demo/720p/" + id.DigestOf(b).Short() + "/seg 0.ts"
	putLive(t, store, live, time.Second, b)
	box := id.BoxIDOf([]byte("box"))
	front := "http://127.0.0.1:7071"
	e, base, _ := serve(t, Config{
		Store: store, Box: box, FrontURL: func(id.PublisherID) string { return front }, Full: true, Trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	path := strings.ReplaceAll(live, " ", "%20")
	for _, tt := range []struct {
		method, query, viewer string
		status                int
		to                    string
	}{
		{"GET", "", "127.0.0.1", 302, front + path + "?avoid=" + string(box)},
		{"GET", "", "198.51.100.7", 503, ""}, // it cannot reach this front
		{"GET", "?hop=1", "127.0.0.1", 503, ""},
		{"HEAD", "", "198.51.100.7", 200, ""},
		{"GET", ".gone", "127.0.0.1", 404, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tt.method, base+"/"+string(pub)+path+tt.query, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", tt.viewer)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != tt.status || resp.Header.Get("Location") != tt.to {
			t.Errorf("%+v: %d to %q", tt, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	if requests, bytes := e.Totals(); requests != 0 || bytes != 0 || e.Bounced() != 3 {
		t.Errorf("%d requests, %d bytes, %d bounced", requests, bytes, e.Bounced())
	}
	e.Account(Delivery{Status: 200, Bytes: 7})
	if requests, bytes := e.Totals(); requests != 1 || bytes != 7 {
		t.Errorf("%d requests, %d bytes", requests, bytes)
	}
}
