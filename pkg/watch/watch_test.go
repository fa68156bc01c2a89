package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestWatchFollowsRedirectsAndFindsTheCorrupt(t *testing.T) {
	t.Parallel()
	good, bad := strings.Repeat("x", 1000), strings.Repeat("y", 500)
	short := func(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:])[:12] }
	box := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, good) }))
	defer box.Close()
	var failures atomic.Int32
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/index.m3u8":
			fmt.Fprint(w, "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\",URI=\"a/index.m3u8\"\n#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO=\"a\"\nv/index.m3u8\n")
		case strings.HasSuffix(r.URL.Path, "index.m3u8"):
			fmt.Fprintf(w, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.1,\n%s/1.ts\n#EXTINF:0.1,\n%s/2.ts\n#EXT-X-GAP\n#EXTINF:0.1,\ngone.ts\n#EXT-X-ENDLIST\n", short(good), short(bad))
		case failures.Add(1) == 1:
			w.WriteHeader(http.StatusInternalServerError)
		default:
			http.Redirect(w, r, box.URL+r.URL.Path, http.StatusFound)
		}
	}))
	defer front.Close()

	p := New(Config{URL: front.URL + "/index.m3u8", Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := p.Run(ctx); err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	r := p.Report()
	host := strings.TrimPrefix(box.URL, "http://")
	if r.Segments != 4 || r.Redirects != 4 || r.Retries != 1 || r.Corrupt != 2 || r.Missed != 2 || r.Bytes[host] != 4000 || len(r.Bytes) != 1 || r.Startup == 0 {
		t.Errorf("%+v", r)
	}
}

func TestWatchWaitsForTheStream(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case asked.Add(1) == 1:
			http.NotFound(w, r)
		case strings.HasSuffix(r.URL.Path, ".m3u8"):
			fmt.Fprint(w, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.1,\n1.ts\n#EXT-X-ENDLIST\n")
		}
	}))
	defer srv.Close()
	p := New(Config{URL: srv.URL + "/index.m3u8", Log: slog.New(slog.DiscardHandler)})
	if err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := p.Report(); r.Segments != 1 || r.Missed != 0 {
		t.Errorf("%+v", r)
	}
}
