package httperr

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWrap(t *testing.T) {
	t.Parallel()
	disk := errors.New("disk on fire")
	tests := map[string]struct {
		path   string
		err    error
		status int
		ctype  string
		body   string
		logged string // in the log; empty: the log stays empty
	}{
		"no error":        {path: "/x", status: 200, ctype: "text/html", body: "fine"},
		"plain text":      {path: "/live/x", err: NotFound("no such stream"), status: 404, ctype: "text/plain; charset=utf-8", body: "no such stream\n"},
		"JSON":            {path: "/api/v1/x", err: BadRequest(`name "x" is bad`, disk), status: 400, ctype: "application/json", body: `{"error":"name \"x\" is bad"}` + "\n"},
		"wrapped":         {path: "/x", err: fmt.Errorf("here: %w", NotFound("gone")), status: 404, ctype: "text/plain; charset=utf-8", body: "gone\n"},
		"5xx with cause":  {path: "/x", err: New(503, "try again", disk), status: 503, ctype: "text/plain; charset=utf-8", body: "try again\n", logged: "disk on fire"},
		"some error":      {path: "/api/x", err: disk, status: 500, ctype: "application/json", body: `{"error":"` + internal + `"}` + "\n", logged: "disk on fire"},
		"no error status": {path: "/x", err: New(200, "public", disk), status: 500, ctype: "text/plain; charset=utf-8", body: internal + "\n", logged: "disk on fire"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			h := Wrap(slog.New(slog.NewTextHandler(&log, nil)), func(w http.ResponseWriter, r *http.Request) error {
				w.Header().Set("Content-Type", "text/html")
				w.Header().Set("Access-Control-Allow-Origin", "*")
				if tt.err == nil {
					io.WriteString(w, "fine")
					return nil
				}
				w.Header().Set("Content-Length", "12345")
				w.Header().Set("Etag", `"x"`)
				return tt.err
			})
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, httptest.NewRequest("GET", tt.path, nil))
			if rec.Code != tt.status || rec.Header().Get("Content-Type") != tt.ctype || rec.Body.String() != tt.body {
				t.Errorf("answered %d %q %q", rec.Code, rec.Header().Get("Content-Type"), rec.Body)
			}
			if rec.Header().Get("Access-Control-Allow-Origin") != "*" {
				t.Error("the handler's CORS header is gone")
			}
			if tt.err != nil && (rec.Header().Get("Etag") != "" || rec.Header().Get("Cache-Control") != "no-store" || rec.Header().Get("Content-Length") != fmt.Sprint(len(tt.body))) {
				t.Errorf("headers of an error: %v", rec.Header())
			}
			if got := log.String(); tt.logged == "" && got != "" || !strings.Contains(got, tt.logged) {
				t.Errorf("log: %q; want %q", got, tt.logged)
			}
		})
	}
}

func TestPanicAndAbort(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		handler Handler
		whole   bool // whether the client gets an answer with its end
		status  int
		logged  string
	}{
		"panic before writing": {
			handler: func(http.ResponseWriter, *http.Request) error { panic("oh no") },
			whole:   true, status: 500, logged: "oh no",
		},
		"panic while writing": {
			handler: func(w http.ResponseWriter, _ *http.Request) error { io.WriteString(w, "half"); panic("oh no") },
			status:  200, logged: "oh no",
		},
		"panic with a length promised": {
			handler: func(w http.ResponseWriter, _ *http.Request) error {
				w.Header().Set("Content-Length", fmt.Sprint(4+len(internal)+1))
				io.WriteString(w, "half")
				http.NewResponseController(w).Flush()
				panic("oh no")
			},
			status: 200, logged: "oh no",
		},
		"abort": {
			handler: func(w http.ResponseWriter, _ *http.Request) error {
				io.WriteString(w, "half")
				http.NewResponseController(w).Flush()
				return fmt.Errorf("source ended: %w", http.ErrAbortHandler)
			},
			status: 200,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			srv := httptest.NewUnstartedServer(Wrap(slog.New(slog.NewTextHandler(&log, nil)), tt.handler))
			srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
			srv.Start()
			resp, err := http.Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || (err == nil) != tt.whole {
				t.Errorf("status %d, body %q, %v; want status %d, whole %v", resp.StatusCode, body, err, tt.status, tt.whole)
			}
			srv.Close()
			if got := log.String(); tt.logged == "" && got != "" || !strings.Contains(got, tt.logged) {
				t.Errorf("log: %q; want %q", got, tt.logged)
			}
		})
	}
}

func TestHandlerGetsTheServersWriter(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(Wrap(slog.New(slog.DiscardHandler), func(w http.ResponseWriter, r *http.Request) error {
		if _, ok := w.(io.ReaderFrom); !ok {
			t.Errorf("%T hides ReadFrom: no sendfile", w)
		}
		return nil
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}
