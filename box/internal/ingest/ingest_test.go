package ingest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestOldPublisher: a single masked frame or fragments over an HTTP/1.0 upgrade, no FEATURES, and
// no word back for a file (docs/protocol.md).
func TestOldPublisher(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	conn, br := http10(t, b.url)
	write := func(p []byte) {
		t.Helper()
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	hello := fmt.Sprintf(`{"ID": "%s", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "PUBLISH"}`, pubA)
	write(frame(true, 1, []byte(hello)))
	want := fmt.Sprintf(`{"COMMAND":"PUBLISH","ID":"%s","IP":"192.0.2.7","MESSAGE":"ACCEPTED","PORT":"7072","TYPE":"BOX"}`, boxID)
	if got := sortedJSON(t, readFrame(t, br)); got != want {
		t.Errorf("reply %s\nwant  %s", got, want)
	}
	content := pattern(30_000)
	file := func(path string, ttl int) []byte {
		return append(fmt.Appendf(nil, `<Dandelion>{"FILE_PATH": "%s", "TTL": %d}</Dandelion>`, path, ttl), content...)
	}
	write(frame(true, 2, file("/tmp/hls/output/ch1/seg-0.ts", 60)))
	fragments := file("/tmp/hls/output/ch1/seg-1.ts", 60)
	write(frame(false, 2, fragments[:5])) // within the opening tag
	write(frame(false, 0, fragments[5:1000]))
	write(frame(true, 9, []byte("ping")))
	write(frame(true, 0, fragments[1000:]))
	if got := readFrame(t, br); string(got) != "ping" {
		t.Fatalf("between the fragments: %q", got)
	}
	// The next frame that comes answers this, so nothing came for the files.
	write(frame(true, 1, []byte(hello)))
	if got := sortedJSON(t, readFrame(t, br)); got != want {
		t.Errorf("after the files: %s", got)
	}
	for _, name := range []id.Path{"/tmp/hls/output/ch1/seg-0.ts", "/tmp/hls/output/ch1/seg-1.ts"} {
		if !bytes.Equal(b.content(pubA, name), content) {
			t.Errorf("%s is not what was sent", name)
		}
	}
	if got := b.service.Totals(); got != (Totals{2, 60_000}) {
		t.Errorf("totals %+v", got)
	}
}

func TestAcknowledgedFile(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA, wire.FeatureAck, "later")
	for _, size := range []int{0, 1, 4096, 300_000, 3 << 20} {
		content := pattern(size)
		h := header(pubA, id.Path(fmt.Sprintf("/live/demo/720p/0123456789ab/seg-%d.ts", size)), content)
		c.send(h, content)
		var stored wire.Stored
		c.readInto(&stored)
		if stored.Command != wire.CommandStored || stored.RequestID != h.RequestID || stored.FilePath != h.Path ||
			stored.Size != h.Size || stored.SHA256 != h.Digest || stored.ID != string(boxID) {
			t.Errorf("%+v", stored)
		}
		if left := time.Until(time.Unix(stored.Expires, 0)); left < 55*time.Second || left > 61*time.Second {
			t.Errorf("expires in %v, TTL was a minute", left)
		}
		if !bytes.Equal(b.content(pubA, h.Path), content) {
			t.Errorf("%d bytes: not what was sent", size)
		}
	}
	if len(b.records.stored) != 5 || b.results("stored") != 5 {
		t.Errorf("recorded %d, counted %v", len(b.records.stored), b.results("stored"))
	}
	sessions := b.service.Sessions()
	if len(sessions) != 1 || sessions[0].Publisher != pubA || sessions[0].IP != "198.51.100.1" ||
		sessions[0].Files != 5 || !slices.Equal(sessions[0].Features, wire.Features{wire.FeatureAck}) {
		t.Errorf("%+v", sessions)
	}
}

// TestRefusedFiles: each refusal has its kind, nothing becomes visible, and the session goes on.
func TestRefusedFiles(t *testing.T) {
	t.Parallel()
	content := pattern(300_000)
	good := header(pubA, "/ok.ts", content)
	with := func(change func(*wire.FileHeader)) []byte {
		h := good
		change(&h)
		return append(h.AppendTo(nil), content...)
	}
	raw := func(headers string) []byte {
		return append([]byte("<Dandelion>"+headers+"</Dandelion>"), content...)
	}
	ack := fmt.Sprintf(`"REQUEST_ID":"r","SIZE":%d,"SHA256":"%s"`, len(content), good.Digest)
	tests := map[string]struct {
		message []byte
		kind    wire.Kind
		request string
	}{
		"garbage":             {bytes.Repeat([]byte{0, 0xff, '<'}, 200_000), wire.KindMalformed, ""},
		"empty":               {nil, wire.KindMalformed, ""},
		"headers without end": {append([]byte("<Dandelion>{"), bytes.Repeat([]byte(" "), 1<<20)...), wire.KindMalformed, ""},
		"headers not JSON":    {raw(`FILE_PATH=/a`), wire.KindMalformed, ""},
		"no FILE_PATH":        {raw(`{"TTL":1,` + ack + `}`), wire.KindMalformed, "r"},
		"no REQUEST_ID":       {raw(`{"FILE_PATH":"/a","SIZE":300000,"SHA256":"` + good.Digest.String() + `"}`), wire.KindMalformed, ""},
		"no SIZE":             {raw(`{"FILE_PATH":"/a","REQUEST_ID":"r","SHA256":"` + good.Digest.String() + `"}`), wire.KindMalformed, "r"},
		"no SHA256":           {raw(`{"FILE_PATH":"/a","REQUEST_ID":"r","SIZE":300000}`), wire.KindMalformed, "r"},
		"path leaves":         {raw(`{"FILE_PATH":"/../../etc/cron.d/x",` + ack + `}`), wire.KindPath, "r"},
		"path of the host":    {raw(`{"FILE_PATH":"//etc/cron.d/x",` + ack + `}`), wire.KindPath, "r"},
		"TTL null":            {raw(`{"FILE_PATH":"/a","TTL":null,` + ack + `}`), wire.KindTTL, "r"},
		"TTL negative":        {raw(`{"FILE_PATH":"/a","TTL":-5,` + ack + `}`), wire.KindTTL, "r"},
		"TTL text":            {raw(`{"FILE_PATH":"/a","TTL":"soon",` + ack + `}`), wire.KindTTL, "r"},
		"longer than SIZE":    {with(func(h *wire.FileHeader) { h.Size-- }), wire.KindSize, good.RequestID},
		"shorter than SIZE":   {with(func(h *wire.FileHeader) { h.Size++ }), wire.KindSize, good.RequestID},
		"SIZE negative":       {raw(`{"FILE_PATH":"/a","REQUEST_ID":"r","SIZE":-1}`), wire.KindSize, "r"},
		"other bytes":         {with(func(h *wire.FileHeader) { h.Digest = id.DigestOf(nil) }), wire.KindDigest, good.RequestID},
		"SHA256 malformed":    {raw(`{"FILE_PATH":"/a","REQUEST_ID":"r","SIZE":1,"SHA256":"00"}`), wire.KindDigest, "r"},
		"another publisher":   {with(func(h *wire.FileHeader) { h.Publisher = pubB }), wire.KindDenied, good.RequestID},
		"PUBLISHER a path":    {raw(`{"FILE_PATH":"/a","PUBLISHER":"../../root",` + ack + `}`), wire.KindMalformed, "r"},
		"larger than the box": {with(func(h *wire.FileHeader) { h.Size = 1 << 40 }), wire.KindTooLarge, good.RequestID},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBox(t, nil)
			c := b.publish(pubA, wire.FeatureAck)
			c.raw(websocket.BinaryMessage, tt.message)
			var refused wire.Refused
			c.readInto(&refused)
			if refused.Command != wire.CommandRefused || refused.Kind != tt.kind || refused.RequestID != tt.request || refused.Error == "" {
				t.Errorf("%+v", refused)
			}
			if strings.Contains(refused.Error, b.dir) {
				t.Errorf("names a directory of this machine: %s", refused.Error)
			}
			c.send(good, content)
			var stored wire.Stored
			if c.readInto(&stored); stored.SHA256 != good.Digest {
				t.Errorf("the session does not go on: %+v", stored)
			}
			if got := b.visible(); !slices.Equal(got, []string{string(pubA) + "/ok.ts"}) {
				t.Errorf("on disk: %v", got)
			}
			if got := b.results(string(tt.kind)); got != 1 {
				t.Errorf("counted %v", got)
			}
		})
	}
}

// TestOldRefusals: an old publisher gets no word, and its session goes on.
func TestOldRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA)
	for range 2 * maxComplaints {
		c.old(`{"FILE_PATH":"../../x","TTL":60}`, []byte("x"))
	}
	c.old(`{"FILE_PATH":"/a","TTL":null}`, []byte("x"))
	c.raw(websocket.BinaryMessage, pattern(100_000))
	c.old(`{"FILE_PATH":"/ok","TTL":60}`, []byte("ok"))
	c.sync(pubA)
	if got := b.visible(); !slices.Equal(got, []string{string(pubA) + "/ok"}) {
		t.Errorf("on disk: %v", got)
	}
	if b.results("path") != 2*maxComplaints || b.results("ttl") != 1 || b.results("malformed") != 1 {
		t.Error("refusals are not counted")
	}
}

func TestTTL(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA)
	tests := map[string]time.Duration{ // 0: kept
		``: time.Minute, `,"TTL":0`: 0, `,"TTL":"30"`: 30 * time.Second, `,"TTL":1.9`: time.Second,
		`,"TTL":"120"`: 2 * time.Minute, `,"TTL":1e300`: wire.MaxTTL,
	}
	for field := range tests {
		c.old(fmt.Sprintf(`{"FILE_PATH":"/f%x"%s}`, field, field), []byte("x"))
	}
	c.sync(pubA)
	now := time.Now()
	for field, want := range tests {
		path := fmt.Sprintf("/f%x", field)
		i := slices.IndexFunc(b.records.stored, func(e segstore.Entry) bool { return string(e.Path) == path })
		if i < 0 {
			t.Errorf("%q was not stored", field)
			continue
		}
		e := b.records.stored[i]
		if want == 0 {
			if !e.Expires.IsZero() {
				t.Errorf("%q expires at %v", field, e.Expires)
			}
		} else if off := e.Expires.Sub(now) - want; off > 0 || off < -10*time.Second {
			t.Errorf("%q expires in %v, want %v", field, e.Expires.Sub(now), want)
		}
	}
}

// TestSenderGivesUp: a connection that ends in the middle of a file leaves nothing.
func TestSenderGivesUp(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	content := pattern(1 << 20)
	for name, features := range map[string][]wire.Feature{"old": nil, "ack": {wire.FeatureAck}} {
		c := b.publish(pubA, features...)
		w, err := c.ws.NextWriter(websocket.BinaryMessage)
		if err != nil {
			t.Fatal(err)
		}
		h := header(pubA, id.Path("/"+name), content)
		if _, err := w.Write(append(h.AppendTo(nil), content[:900_000]...)); err != nil {
			t.Fatal(err)
		}
		c.ws.Close() // without the final frame
	}
	eventually(t, func() (float64, error) {
		if n := b.results("broken"); n != 2 {
			return n, fmt.Errorf("%v broken files are counted", n)
		}
		return 2, nil
	})
	b.drain(t)
	if got := b.visible(); len(got) != 0 {
		t.Errorf("on disk: %v", got)
	}
	left, err := filepath.Glob(filepath.Join(b.dir, ".*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if used := b.store.Usage().Data; used.Used != 0 || used.Incoming != 0 {
		t.Errorf("%+v", used)
	}
}

// TestFilesSurvive: what was acknowledged is there for the next process.
func TestFilesSurvive(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	content := pattern(100_000)
	b := newBox(t, func(_ *Config, s *segstore.Config) { s.DataDir = dir })
	c := b.publish(pubA, wire.FeatureAck)
	c.send(header(pubA, "/a", content), content)
	c.read()
	b.drain(t)
	b.store.Close()

	next := newBox(t, func(_ *Config, s *segstore.Config) { s.DataDir = dir })
	if !bytes.Equal(next.content(pubA, "/a"), content) {
		t.Error("the file is gone")
	}
	if _, err := os.Stat(filepath.Join(dir, string(pubA), "a")); err != nil {
		t.Error(err)
	}
}
