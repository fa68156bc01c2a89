package front

import (
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
)

// shelf is content by path.
type shelf struct {
	dir       string
	locations map[id.Path]Location
	viewer    netip.Addr // of the last Locate
	bytes     int64      // of Redirected
}

func (s *shelf) Playlist(stream id.StreamName, name string) (Playlist, bool) {
	return Playlist{Body: []byte("#EXTM3U\n"), ETag: `"v1"`, Modified: time.Unix(1e9, 0), MaxAge: time.Second}, stream == "demo" && name == "index.m3u8"
}

func (s *shelf) Locate(path id.Path, asker Asker) (Location, bool) {
	loc, ok := s.locations[path]
	s.viewer = asker.Addr
	loc.Room, loc.Origin = len(loc.Boxes), true
	loc.Path = (&url.URL{Path: "/publisher-0" + string(path)}).EscapedPath()
	return loc, ok
}

func (s *shelf) Redirected(_ id.BoxID, n int64) { s.bytes += n }

func (*shelf) Joined(string, id.BoxID, int64) {}

func (*shelf) Complained(id.BoxID, id.Path, netip.Addr) {}

func (s *shelf) Open(path id.Path) (*os.File, error) {
	if !s.locations[path].Own {
		return nil, fs.ErrNotExist
	}
	return os.Open(filepath.Join(s.dir, path.Name()))
}

func newShelf(t *testing.T) (*shelf, *Front, *http.ServeMux) {
	t.Helper()
	s := &shelf{dir: t.TempDir(), locations: map[id.Path]Location{}}
	boxes := []Holder{{"box-a", "http://a"}}
	s.locations["/live/demo/v/0123456789ab/1.ts"] = Location{Size: 1000, Boxes: boxes}
	s.locations["/live/demo/v/0123456789ab/a ?b%2F#é.ts"] = Location{Size: 1000, Boxes: boxes}
	s.locations["/live/demo/v/0123456789ab/init.mp4"] = Location{Size: 10, Boxes: boxes, Own: true}
	s.locations["/gone"] = Location{Size: 10}
	s.locations["/own.html"] = Location{Size: 10, Own: true}
	for _, name := range []string{"init.mp4", "own.html"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte("0123456789"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, mux := New(Config{Content: s, Publisher: "publisher-0", Log: slog.New(slog.DiscardHandler)}), http.NewServeMux()
	f.Register(mux)
	return s, f, mux
}

func TestRoutes(t *testing.T) {
	t.Parallel()
	_, _, mux := newShelf(t)
	for _, tt := range []struct {
		request string // method, target, then "Name: value" lines
		status  int
		want    string // "Name: value" lines of headers, then after an empty line a part of the body
	}{
		{"GET /live/demo/index.m3u8", 200, "Content-Type: application/vnd.apple.mpegurl\nCache-Control: max-age=1\nEtag: \"v1\"\nContent-Length: 8\n\n#EXTM3U"},
		{"HEAD /live/demo/index.m3u8", 200, "Content-Length: 8"},
		{"GET /live/demo/index.m3u8\nIf-None-Match: \"v1\"", 304, "Etag: \"v1\"\nContent-Length: "},
		{"GET /live/demo/index.m3u8\nIf-None-Match: \"v0\", W/\"v1\"", 304, ""},
		{"GET /live/demo/index.m3u8\nIf-None-Match: *", 304, ""},
		{"GET /live/demo/index.m3u8\nIf-None-Match: \"v0\"", 200, ""},
		{"GET /live/other/index.m3u8", 404, "Cache-Control: no-store"},
		{"GET /live/-/index.m3u8", 404, ""},
		{"GET /live/demo/v/0123456789ab/1.ts", 302, "Location: http://a/publisher-0/live/demo/v/0123456789ab/1.ts\nCache-Control: no-store\nContent-Length: 0"},
		{"GET /live/demo/v/0123456789ab/1.ts?x=y", 302, "Location: http://a/publisher-0/live/demo/v/0123456789ab/1.ts"},
		{"GET /live/demo/v/0123456789ab/a%20%3Fb%252F%23%C3%A9.ts", 302, "Location: http://a/publisher-0/live/demo/v/0123456789ab/a%20%3Fb%252F%23%C3%A9.ts"},
		{"GET /publisher-0/live/demo/v/0123456789ab/1.ts", 302, "Location: http://a/publisher-0/live/demo/v/0123456789ab/1.ts"},
		{"GET /live/demo/v/0123456789ab/init.mp4", 200, "Content-Type: video/mp4\nCache-Control: public, max-age=31536000, immutable\nContent-Security-Policy: sandbox\n\n0123456789"},
		{"GET /live/demo/v/0123456789ab/init.mp4\nRange: bytes=2-4", 206, "Content-Range: bytes 2-4/10\n\n234"},
		{"GET /live/demo/v/0123456789ab/init.mp4\nRange: bytes=20-", 416, ""},
		{"GET /publisher-0/own.html", 200, "Content-Type: application/octet-stream\nCache-Control: no-cache\nX-Content-Type-Options: nosniff"},
		{"GET /origin/own.html", 200, "Content-Security-Policy: sandbox\n\n0123456789"},
		{"GET /publisher-0/gone", 404, "Cache-Control: no-store"},
		{"GET /publisher-0/none", 404, "Etag: "},
		{"GET /origin/none", 404, ""},
		{"GET /publisher-0/..%2F..%2Fetc%2Fpasswd", 400, ""},
		{"GET /origin/%2e%2e%2fown.html", 400, ""},
		{"GET /origin/a%5Cb", 400, ""},
		{"GET /origin/a%00b", 400, ""},
		{"GET /live/demo/v/..%2f..%2f1.ts", 400, ""},
		{"GET /live/demo/%ff", 400, ""},
		{"OPTIONS /live/demo/v/0123456789ab/1.ts", 204, "Access-Control-Allow-Headers: Range\nAccess-Control-Allow-Methods: GET, HEAD, OPTIONS"},
		{"OPTIONS /publisher-0/x", 204, ""},
		{"OPTIONS /origin/x", 204, ""},
		{"POST /live/demo/index.m3u8", 405, "-"},
		{"GET /api/v1/locate?path=/live/demo/v/0123456789ab/1.ts", 200, "Content-Type: application/json\nCache-Control: no-store\n\n\"urls\":[\"http://a/publisher-0/live/demo/v/0123456789ab/1.ts\"]"},
		{"GET /api/v1/locate?stream=demo&segment=v/0123456789ab/init.mp4", 200, "\n\nhttp://front.example:1/origin/live/demo/v/0123456789ab/init.mp4\""},
		{"GET /api/v1/locate", 400, "\n\nwant ?path="},
		{"GET /api/v1/locate?stream=demo", 400, ""},
		{"GET /api/v1/locate?path=../x", 400, ""},
		{"GET /api/v1/locate?path=" + strings.Repeat("x", 2000), 400, ""},
		{"GET /api/v1/locate?path=/none", 404, "\n\nnothing is known"},
	} {
		lines := strings.Split(tt.request, "\n")
		method, target, _ := strings.Cut(lines[0], " ")
		r := httptest.NewRequest(method, target, nil)
		r.Host, r.RemoteAddr = "front.example:1", "203.0.113.9:1234"
		for _, line := range lines[1:] {
			name, value, _ := strings.Cut(line, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != tt.status {
			t.Errorf("%s: status %d, want %d", tt.request, w.Code, tt.status)
		}
		if tt.want != "-" && w.Header().Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: other sites may not read it", tt.request)
		}
		headers, body, _ := strings.Cut(tt.want, "\n\n")
		for line := range strings.SplitSeq(headers, "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok && w.Header().Get(name) != value {
				t.Errorf("%s: %s is %q, want %q", tt.request, name, w.Header().Get(name), value)
			}
		}
		if !strings.Contains(w.Body.String(), body) {
			t.Errorf("%s: %q is not in %q", tt.request, body, w.Body)
		}
	}
}

func TestSpanOf(t *testing.T) {
	t.Parallel()
	for span, want := range map[string]int64{
		"": 1000, "bytes=0-": 1000, "bytes=0-0": 1, "bytes=100-199": 100, "bytes=900-5000": 100, "bytes=-10": 10, "bytes=-5000": 1000,
		"bytes=5-4": 1000, "bytes=2000-": 1000, "bytes=0-1,5-6": 1000, "bytes=-": 1000, "bytes=a-b": 1000, "bytes=--5": 1000, "lines=1-2": 1000,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Range", span)
		if got := spanOf(r, 1000); got != want {
			t.Errorf("%q asks for %d bytes, want %d", span, got, want)
		}
	}
}

// TestTotals: what is counted is what was sent, and HEAD asks for nothing.
func TestTotals(t *testing.T) {
	t.Parallel()
	s, f, mux := newShelf(t)
	srv := httptest.NewServer(mux) // sendfile and all
	defer srv.Close()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, ask := range []struct{ method, path, span string }{
		{"HEAD", "/live/demo/v/0123456789ab/1.ts", ""},
		{"GET", "/live/demo/v/0123456789ab/1.ts", "bytes=0-99"},
		{"GET", "/live/demo/v/0123456789ab/1.ts", ""},
		{"HEAD", "/origin/own.html", ""},
		{"GET", "/origin/own.html", ""},
		{"GET", "/origin/own.html", "bytes=0-2"},
		{"GET", "/live/demo/index.m3u8", ""},
	} {
		r, err := http.NewRequest(ask.method, srv.URL+ask.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if ask.span != "" {
			r.Header.Set("Range", ask.span)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if got := f.Totals(); got.Redirects != 3 || got.RedirectBytes != 1100 || s.bytes != 0 || got.OriginBytes != 13 || got.Playlists != 1 {
		t.Errorf("%+v, boxes were told %d", got, s.bytes)
	}
}

// deadlines notes the write deadline of an answer.
type deadlines struct {
	*httptest.ResponseRecorder
	write time.Time
}

func (d *deadlines) SetWriteDeadline(t time.Time) error { d.write = t; return nil }

// TestSlowViewersOfTheOrigin: the time for an answer grows with the file and has an end.
func TestSlowViewersOfTheOrigin(t *testing.T) {
	t.Parallel()
	s, _, mux := newShelf(t)
	if err := os.Truncate(filepath.Join(s.dir, "own.html"), 100*slowestViewer); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]time.Duration{"/origin/own.html": leastPatience + 100*time.Second, "/live/demo/v/0123456789ab/init.mp4": leastPatience} {
		w, begin := &deadlines{ResponseRecorder: httptest.NewRecorder()}, time.Now()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if got := w.write.Sub(begin); got < want || got > want+10*time.Second {
			t.Errorf("%s: cut off after %v, want %v", path, got, want)
		}
	}
}
