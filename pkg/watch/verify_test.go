package watch

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestAddressed(t *testing.T) {
	t.Parallel()
	for u, want := range map[string]string{
		"http://h/live/demo/v/0123456789ab/1.ts?x=y": "0123456789ab",
		"http://h/0123456789ab/1.ts":                 "0123456789ab",
		"http://h/live/demo/v/0123456789AB/1.ts":     "",
		"http://h/live/demo/v/0123456789abc/1.ts":    "",
		"http://h/live/demo/v/1.ts":                  "",
		"http://h":                                   "",
	} {
		parsed, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressed(parsed); got != want {
			t.Errorf("%s: %q, want %q", u, got, want)
		}
	}
}

func TestPlaced(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{
		"/live/demo/v/seg.ts":    "/live/demo/v/seg.ts",
		"/publisher-0/a/b.ts":    "/a/b.ts",
		"/origin/live/demo/x.ts": "/live/demo/x.ts",
		"/origin":                "/origin",
	} {
		if got := placed(p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

// TestVerify: the bytes are held against the path that the playlist had, or against what its front
// says; never against the host that served them.
func TestVerify(t *testing.T) {
	t.Parallel()
	digest := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }
	bytesOf := func(body string) func(r *http.Request, n int) (*http.Response, error) {
		return func(r *http.Request, n int) (*http.Response, error) {
			if number(r) == 2 {
				return answer(r, 200, body), nil
			}
			return nil, nil
		}
	}
	for title, tt := range map[string]struct {
		uri                             func(n int) string // in the playlist; nil: the content-addressed one
		box                             func(r *http.Request, n int) (*http.Response, error)
		locate                          func(r *http.Request) (*http.Response, error)
		corrupt, duplicated, unverified int
		located                         int // times that the front was asked
		cause                           Cause
	}{
		"right": {},
		"wrong": {box: bytesOf("else"), corrupt: 1},
		"the same twice": {
			box: bytesOf(content(1)), corrupt: 1, duplicated: 1, cause: causeBytes,
		},
		"a URI twice": {
			uri:        func(n int) string { return name(n - n/3) }, // 0 1 2 2
			duplicated: 1, cause: causeURI,
		},
		"nothing promised": {
			uri:        func(n int) string { return fmt.Sprintf("x/%d.ts", n) },
			unverified: 4, located: uselessAnswers,
		},
		"the front knows": {
			uri: func(n int) string { return fmt.Sprintf("x/%d.ts", n) },
			locate: func(r *http.Request) (*http.Response, error) {
				path := r.URL.Query().Get("path")
				n := number(&http.Request{URL: &url.URL{Path: path}})
				if path != fmt.Sprintf("/live/demo/v/x/%d.ts", n) {
					return nil, errors.New("wrong path: " + path)
				}
				return answer(r, 200, `{"urls":["http://box9/x"],"digest":"`+digest(content(n))+`","size":3}`), nil
			},
			box: bytesOf("else"), corrupt: 1, located: 4,
		},
		"the front talks nonsense": {
			uri:        func(n int) string { return fmt.Sprintf("x/%d.ts", n) },
			locate:     func(r *http.Request) (*http.Response, error) { return answer(r, 200, `{"digest":"12"}`), nil },
			unverified: 4, located: uselessAnswers,
		},
		"byte ranges": {
			uri:        func(n int) string { return fmt.Sprintf("%s\n#EXT-X-BYTERANGE:100@%d", name(n), n) },
			box:        bytesOf("else"),
			unverified: 4,
		},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 4, window: 10, until: 4, box: tt.box}
			located := 0
			g.front = func(r *http.Request) (*http.Response, error) {
				switch {
				case r.URL.Path == "/api/v1/locate":
					located++
					if tt.locate != nil {
						return tt.locate(r)
					}
					return answer(r, 404, `{"error":"no"}`), nil
				case strings.HasSuffix(r.URL.Path, ".m3u8") && tt.uri != nil:
					text := g.playlist()
					for n := range 4 {
						uri, tags, _ := strings.Cut(tt.uri(n), "\n")
						text = strings.Replace(text, name(n)+"\n", strings.TrimPrefix(tags+"\n"+uri+"\n", "\n"), 1)
					}
					return answer(r, 200, text), nil
				case title == "byte ranges" && number(r) >= 0:
					if want := fmt.Sprintf("bytes=%d-%d", number(r), number(r)+99); r.Header.Get("Range") != want {
						return nil, fmt.Errorf("range %s, want %s", r.Header.Get("Range"), want)
					}
				}
				return nil, nil
			}
			g.play(t, Dandelion, 20*time.Second, func(t *testing.T, r Report) {
				if r.Segments != 4 || r.Corrupt != tt.corrupt || r.Duplicated != tt.duplicated || r.Unverified != tt.unverified || located != tt.located {
					t.Errorf("located %d times; %+v", located, r)
				}
				for _, e := range g.told(EventCorrupt) {
					if e.Seconds != 2 || e.From != "box1:80" || !strings.HasPrefix(e.URL, "http://front/live/demo/v/") || !strings.HasSuffix(e.URL, "/2.ts") {
						t.Errorf("%+v", e)
					}
				}
				for _, e := range g.told(EventDuplicated) {
					if e.Cause != tt.cause || e.From == "" || e.Seconds != 2 {
						t.Errorf("%+v", e)
					}
				}
				if len(g.told(EventCorrupt)) != tt.corrupt || len(g.told(EventDuplicated)) != tt.duplicated {
					t.Errorf("%+v", g.events)
				}
			})
		})
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	var h history
	for n := range 3 * maxPlayed {
		if h.add(fmt.Sprint(n)) {
			t.Fatalf("%d was there", n)
		}
	}
	if len(h.seen) != maxPlayed || len(h.ring) != maxPlayed {
		t.Errorf("remembers %d and %d", len(h.seen), len(h.ring))
	}
	for n := 2 * maxPlayed; n < 3*maxPlayed; n++ {
		if !h.add(fmt.Sprint(n)) {
			t.Fatalf("%d is forgotten", n)
		}
	}
	if h.add("0") {
		t.Error("0 is still there")
	}
}

// TestDigests: each path is asked for once, and what is remembered is bounded.
func TestDigests(t *testing.T) {
	t.Parallel()
	var d digests
	asked := 0
	for range 3 {
		if got := d.of("/a", func() (string, error) { asked++; return "ab", nil }); got != "ab" {
			t.Errorf("%q", got)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	for n := range 3 * maxDigests {
		d.of(fmt.Sprint(n), func() (string, error) { return "", nil })
	}
	if len(d.known) != maxDigests || len(d.order) != maxDigests {
		t.Errorf("remembers %d and %d", len(d.known), len(d.order))
	}
}
