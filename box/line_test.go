package box

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"dandelion/box/internal/capacity"
	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// TestUploadSettings: what the settings make of the limit, and what entrances are told of the line.
func TestUploadSettings(t *testing.T) {
	t.Parallel()
	auto := config.AutoBitRate{}
	for name, c := range map[string]struct {
		capacity, limit config.AutoBitRate
		want            uploadState
		told            int64
		learns          bool
	}{
		"both":          {config.Fixed(8 * config.Mbit), config.Fixed(2 * config.Mbit), uploadState{Capacity: 1_000_000, Limit: 250_000}, 1_000_000, false},
		"only capacity": {config.Fixed(8 * config.Mbit), auto, uploadState{Capacity: 1_000_000, Limit: 500_000}, 1_000_000, false},
		"only limit":    {auto, config.Fixed(8 * config.Mbit), uploadState{Capacity: capacity.Default, Limit: 1_000_000}, 0, true},
		"nothing":       {auto, auto, uploadState{Capacity: capacity.Default, Limit: capacity.Default / 2}, 0, true},
		"least":         {config.Fixed(minUpload), auto, uploadState{Capacity: minUpload.BytesPerSecond(), Limit: minUpload.BytesPerSecond()}, minUpload.BytesPerSecond(), false},
	} {
		b := &Box{cfg: Config{UploadCapacity: c.capacity, UploadLimit: c.limit}}
		b.openLine()
		if got := b.uploadState(); got != c.want || b.knownCapacity() != c.told || (b.line != nil) != c.learns {
			t.Errorf("%s: %+v, told %d, learns %v", name, got, b.knownCapacity(), b.line != nil)
		}
	}
	if limitOf(0) <= 0 {
		t.Error("a limit of nothing is no limit")
	}
}

// TestUploadIsLimited: a segment that would not arrive in time is not begun, all else waits for its turn.
func TestUploadIsLimited(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.UploadCapacity, cfg.UploadLimit = config.Fixed(8*config.Mbit), config.AutoBitRate{}
	b := start(t, cfg, state.Config{})
	content := make([]byte, 600_000) // 1.2 s at 500 kB/s
	live := id.Path("/live/demo/720p/" + id.DigestOf(content).Short() + "/seg-1.ts")
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	h := wire.FileHeader{
		Path: live, TTL: time.Minute, RequestID: "r", Publisher: pub, Size: int64(len(content)), Digest: id.DigestOf(content),
		Plays: time.Second,
	}
	if err := conn.WriteFile(t.Context(), h.AppendTo(nil), strings.NewReader(string(content)), h.Size); err != nil {
		t.Fatal(err)
	}
	for read[wire.Stored](t, conn).Command != wire.CommandStored { // grants come too
	}
	push(t, conn, "/vod/film.mp4", 0, content)

	resp, err := http.DefaultTransport.RoundTrip(must(http.NewRequest("GET", b.base+"/"+string(pub)+string(live), nil)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	want := "http://198.51.100.1:7071" + string(live) + "?avoid=" + string(b.ID())
	if at := resp.Header.Get("Location"); resp.StatusCode != http.StatusFound || at != want {
		t.Errorf("%s, to %s", resp.Status, at)
	}
	began := time.Now()
	if status, body := b.get("/" + string(pub) + "/vod/film.mp4"); status != 200 || len(body) != len(content) {
		t.Errorf("%d, %d bytes", status, len(body))
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("took %v", took)
	}
	_, body := b.get("/api/v1/box")
	var answer apiBox
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	if u := answer.Upload; u.Capacity != 1_000_000 || u.Limit != 500_000 || u.Peak > 525_000 || u.Peak < 300_000 || answer.Totals.Bounced != 1 {
		t.Errorf("%+v, %+v", u, answer.Totals)
	}
	_, metrics := b.get("/metrics")
	for _, line := range []string{"dandelion_box_upload_limit_bytes 500000", "dandelion_edge_bounced_total 1", "dandelion_box_upload_bytes_total 600000"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("%s is not in the metrics", line)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
