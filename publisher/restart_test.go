package publisher

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dandelion/pkg/state"
)

// TestStreamsAreThereBeforeViewersAsk: who asks a publisher that has just been started again gets the
// playlists that it got before, from the first request on.
func TestStreamsAreThereBeforeViewersAsk(t *testing.T) {
	t.Parallel()
	source := t.TempDir()
	for name, content := range map[string]string{
		"0.ts": "first", "1.ts": "second",
		"low.m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:2,\n0.ts\n#EXTINF:2,\n1.ts\n",
	} {
		if err := os.WriteFile(filepath.Join(source, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cfg := DefaultConfig()
	cfg.Listen, cfg.DataDir = "127.0.0.1:0", filepath.Join(t.TempDir(), "data")
	cfg.Streams = []StreamConfig{{Name: "demo", Source: "dir:" + source}}
	open := func() *Publisher {
		p, err := New(t.Context(), cfg, state.Default(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	get := func(p *Publisher, target string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		p.server.Handler.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		return w
	}

	p := open()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for get(p, "/live/demo/index.m3u8").Code != 200 {
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			t.Fatal("the stream is never shown")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	again := open()
	defer again.close()
	for _, target := range []string{"/live/demo/index.m3u8", "/live/demo/low/index.m3u8"} {
		before, after := get(p, target), get(again, target)
		if after.Code != 200 || after.Body.String() != before.Body.String() {
			t.Errorf("%s after the restart, before anything runs: %d %s, want %s", target, after.Code, after.Body, before.Body)
		}
	}
}
