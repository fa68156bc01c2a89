package web

import (
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

const script = "console.log('a script long enough to be worth packing');"

func built(t *testing.T) fs.FS {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte(script)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return fstest.MapFS{
		".gitkeep":                      {},
		"index.html":                    {Data: []byte("<!doctype html>page")},
		"assets/index-AbC_1-9z.js":      {Data: []byte(script)},
		"assets/index-AbC_1-9z.js.gz":   {Data: packed.Bytes()},
		"assets/dandelion-01234567.svg": {Data: []byte("<svg/>")},
		"assets/plain.css":              {Data: []byte("a{}")},
	}
}

func request(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHandlerAnswers(t *testing.T) {
	t.Parallel()
	const immutable = "public, max-age=31536000, immutable"
	h := newHandler(built(t))
	for _, test := range []struct {
		method, path string
		status       int
		contentType  string
		cache        string
		body         string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "no-cache", "<!doctype html>page"},
		{"GET", "/index.html", 200, "text/html; charset=utf-8", "no-cache", "<!doctype html>page"},
		{"HEAD", "/", 200, "text/html; charset=utf-8", "no-cache", ""},
		{"GET", "/assets/index-AbC_1-9z.js", 200, "text/javascript; charset=utf-8", immutable, script},
		{"GET", "/assets/dandelion-01234567.svg", 200, "image/svg+xml", immutable, "<svg/>"},
		{"GET", "/assets/plain.css", 200, "text/css; charset=utf-8", "no-cache", "a{}"},
		{"POST", "/", 405, "text/plain; charset=utf-8", "", "method not allowed: use GET\n"},
		{"GET", "/assets/", 404, "text/plain; charset=utf-8", "", "404 page not found\n"},
		{"GET", "/assets/index-AbC_1-9z.js.gz", 404, "text/plain; charset=utf-8", "", "404 page not found\n"},
		{"GET", "/.gitkeep", 404, "text/plain; charset=utf-8", "", "404 page not found\n"},
		{"GET", "/assets/../index.html", 404, "text/plain; charset=utf-8", "", "404 page not found\n"},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			t.Parallel()
			w := request(h, test.method, test.path)
			if w.Code != test.status {
				t.Errorf("status %d, want %d", w.Code, test.status)
			}
			if got := w.Header().Get("Content-Type"); got != test.contentType {
				t.Errorf("Content-Type %q, want %q", got, test.contentType)
			}
			if got := w.Header().Get("Cache-Control"); got != test.cache {
				t.Errorf("Cache-Control %q, want %q", got, test.cache)
			}
			if got := w.Body.String(); got != test.body {
				t.Errorf("body %q, want %q", got, test.body)
			}
			if w.Code == 200 && w.Header().Get("Content-Security-Policy") != contentPolicy {
				t.Error("no content security policy")
			}
		})
	}
}

func TestHandlerSendsGzipToThoseWhoTakeIt(t *testing.T) {
	t.Parallel()
	h := newHandler(built(t))
	for _, test := range []struct {
		accept  string
		gzipped bool
	}{
		{"", false},
		{"br", false},
		{"gzip", true},
		{"br, GZIP", true},
		{"deflate, gzip;q=0.5", true},
		{"gzip; q=0", false},
		{"gzip;q=nonsense", false},
		{"xgzip", false},
	} {
		w := request(h, "GET", "/assets/index-AbC_1-9z.js", "Accept-Encoding", test.accept)
		if got := w.Header().Get("Content-Encoding") == "gzip"; got != test.gzipped {
			t.Errorf("Accept-Encoding %q: gzip %v, want %v", test.accept, got, test.gzipped)
		}
		if w.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("Accept-Encoding %q: no Vary", test.accept)
		}
		body := io.Reader(w.Body)
		if test.gzipped {
			unpacked, err := gzip.NewReader(w.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = unpacked
		}
		content, err := io.ReadAll(body)
		if err != nil || string(content) != script {
			t.Errorf("Accept-Encoding %q: body %q, %v", test.accept, content, err)
		}
	}
}

func TestHandlerRevalidates(t *testing.T) {
	t.Parallel()
	h := newHandler(built(t))
	plain := request(h, "GET", "/assets/index-AbC_1-9z.js").Header().Get("ETag")
	packed := request(h, "GET", "/assets/index-AbC_1-9z.js", "Accept-Encoding", "gzip").Header().Get("ETag")
	if plain == "" || plain == packed {
		t.Fatalf("ETags %q and %q: want two different ones", plain, packed)
	}
	if w := request(h, "GET", "/assets/index-AbC_1-9z.js", "If-None-Match", `"other", W/`+plain); w.Code != 304 || w.Body.Len() != 0 {
		t.Errorf("status %d with %d bytes, want 304 and none", w.Code, w.Body.Len())
	}
	if w := request(h, "GET", "/assets/index-AbC_1-9z.js", "If-None-Match", packed); w.Code != 200 {
		t.Errorf("the packed form's ETag got %d for the plain form, want 200", w.Code)
	}
}

// The page must be whole in both forms: what index.html names is there, and nothing comes from elsewhere or
// stands inline, which the content security policy would block.
func TestPagesAreWhole(t *testing.T) {
	t.Parallel()
	pages := map[string]fs.FS{"fallback": sub(fallback, "fallback"), "served": Files()}
	references := regexp.MustCompile(`(?:src|href)="([^#"][^"]*)"`)
	inline := regexp.MustCompile(`(?i)<style|\sstyle=|\son[a-z]+=|<script(?:[^>]*)>[^<]`)
	for name, files := range pages {
		h := newHandler(files)
		index := request(h, "GET", "/").Body.String()
		if found := inline.FindString(index); found != "" {
			t.Errorf("%s: inline %q", name, found)
		}
		matches := references.FindAllStringSubmatch(index, -1)
		if len(matches) < 3 {
			t.Errorf("%s: %d references, want at least script, style and icon", name, len(matches))
		}
		for _, match := range matches {
			if !strings.HasPrefix(match[1], "/") || strings.HasPrefix(match[1], "//") {
				t.Errorf("%s: %s comes from elsewhere", name, match[1])
			} else if w := request(h, "GET", match[1]); w.Code != 200 {
				t.Errorf("%s: %s is %d", name, match[1], w.Code)
			}
		}
	}
}

func TestFilesFallsBack(t *testing.T) {
	t.Parallel()
	index, err := fs.ReadFile(Files(), "index.html")
	if err != nil {
		t.Fatal(err)
	}
	if usesFallback := bytes.Contains(index, []byte("/assets/page.js")); usesFallback == Built() {
		t.Errorf("Built is %v, but the page without the library is served: %v", Built(), usesFallback)
	}
}
