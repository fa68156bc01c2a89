package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// TestOldPublisher: a single masked frame or fragments over an HTTP/1.0 upgrade, no FEATURES, and
// no word back for a file (wire.md sections 1 and 2).
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
	c := b.publish(pubA, wire.FeatureAck, "grant")
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

// TestFirstMessage: what is no PUBLISH of a publisher gets an ERROR and close 1000.
func TestFirstMessage(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	hello := func(idText, kind, command string) string {
		return fmt.Sprintf(`{"ID": %q, "IP": "127.0.0.1", "TYPE": %q, "COMMAND": %q}`, idText, kind, command)
	}
	tests := map[string]struct {
		message string
		want    string // in the ERROR
	}{
		"not JSON":         {"hello", "Wrong format in your message. Your message: hello"},
		"no COMMAND":       {hello(string(pubA), "PUBLISHER", ""), "Wrong format in your message. Your message: {"},
		"long":             {strings.Repeat("x", 5000), "Wrong format"},
		"too long":         {strings.Repeat("x", wire.MaxMessage+1), "Wrong format"},
		"unknown COMMAND":  {hello(string(pubA), "PUBLISHER", "DANCE"), "Unknown COMMAND: DANCE"},
		"not for a box":    {hello(string(pubA), "PUBLISHER", "SEARCH"), "Unknown COMMAND: SEARCH"},
		"a box publishes":  {`{"ID":"x","IP":"y","PORT":"1","TYPE":"BOX","COMMAND":"PUBLISH"}`, "TYPE"},
		"absolute ID":      {hello("/etc", "PUBLISHER", "PUBLISH"), "ID"},
		"ID leaves":        {hello("../../../tmp/x", "PUBLISHER", "PUBLISH"), "ID"},
		"ID of a box":      {hello(string(boxID), "PUBLISHER", "PUBLISH"), "ID"},
		"a FRONT_URL":      {`{"ID":"` + string(pubA) + `","IP":"y","TYPE":"PUBLISHER","COMMAND":"PUBLISH","FRONT_URL":"file:///etc/passwd"}`, "FRONT_URL"},
		"FEATURES no list": {`{"ID":"` + string(pubA) + `","IP":"y","TYPE":"PUBLISHER","COMMAND":"PUBLISH","FEATURES":{"ack":1}}`, "Wrong format"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := b.dial()
			c.t = t
			c.text(tt.message)
			reply := c.read()
			text, _ := reply["ERROR"].(string)
			if !strings.Contains(text, tt.want) || len(text) > 1100 || reply["ID"] != string(boxID) || reply["MESSAGE"] != nil {
				t.Errorf("%v", reply)
			}
			c.wantClosed(websocket.CloseNormalClosure)
		})
	}
	t.Run("binary", func(t *testing.T) {
		c := b.dial()
		c.t = t
		c.raw(websocket.BinaryMessage, pattern(1<<20))
		if reply := c.read(); !strings.Contains(fmt.Sprint(reply["ERROR"]), "Wrong format") {
			t.Errorf("%v", reply)
		}
		c.wantClosed(websocket.CloseNormalClosure)
	})
	if got := b.visible(); len(got) != 0 {
		t.Errorf("on disk: %v", got)
	}
}

// TestLaterMessages: after both sides named a feature an unknown COMMAND leaves the connection
// open; else it ends it.
func TestLaterMessages(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	unknown := fmt.Sprintf(`{"ID":"%s","IP":"y","TYPE":"PUBLISHER","COMMAND":"DANCE"}`, pubA)

	c := b.publish(pubA, wire.FeatureAck)
	c.text(unknown)
	if reply := c.read(); reply["ERROR"] != "Unknown COMMAND: DANCE" {
		t.Errorf("%v", reply)
	}
	c.sync(pubA)
	c.text(wire.Goodbye{Peer: wire.Peer{ID: string(pubA), IP: "y", Type: wire.TypePublisher}, Command: wire.CommandGoodbye, Reason: "so long"})
	c.sync(pubA)
	c.text("not JSON")
	if reply := c.read(); !strings.Contains(fmt.Sprint(reply["ERROR"]), "Wrong format") {
		t.Errorf("%v", reply)
	}
	c.wantClosed(websocket.CloseNormalClosure)

	for name, message := range map[string]string{
		"unknown": unknown,
		"have":    strings.Replace(unknown, "DANCE", "HAVE", 1), // needs ack
	} {
		old := b.publish(pubA)
		old.text(message)
		if reply := old.read(); !strings.Contains(fmt.Sprint(reply["ERROR"]), "Unknown COMMAND") {
			t.Errorf("%s: %v", name, reply)
		}
		old.wantClosed(websocket.CloseNormalClosure)
	}
}

// TestPublishersDoNotMix: a second connection must not take over the first one's directory
// (wire.md section 3, lesson 2).
func TestPublishersDoNotMix(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	first := b.publish(pubA)
	second := b.publish(pubB)
	for i := range 20 {
		first.old(fmt.Sprintf(`{"FILE_PATH":"/seg-%d.ts"}`, i), []byte("of a"))
		second.old(fmt.Sprintf(`{"FILE_PATH":"/seg-%d.ts"}`, i), []byte("of b"))
	}
	first.sync(pubA)
	second.sync(pubB)
	for i := range 20 {
		path := id.Path(fmt.Sprintf("/seg-%d.ts", i))
		if a, bb := b.content(pubA, path), b.content(pubB, path); string(a) != "of a" || string(bb) != "of b" {
			t.Fatalf("%s: %q and %q", path, a, bb)
		}
	}
	// Nor can a session be turned into another publisher's.
	first.text(wire.Publish{Peer: wire.Peer{ID: string(pubB), IP: "y", Type: wire.TypePublisher}, Command: wire.CommandPublish})
	if reply := first.read(); !strings.Contains(fmt.Sprint(reply["ERROR"]), string(pubA)) {
		t.Errorf("%v", reply)
	}
	first.wantClosed(websocket.CloseNormalClosure)
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

func (b *box) drain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b.service.Drain(ctx, "the test wants it")
	if ctx.Err() != nil {
		t.Error("the drain took all its time")
	}
}

func TestHaveAndDelete(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA, wire.FeatureAck)
	own := wire.Peer{ID: string(pubA), IP: "y", Type: wire.TypePublisher}
	// Long paths, so that a page of them is above a message's limit.
	const files = 700
	long := strings.Repeat("<", 250)
	path := func(i int) id.Path { return id.Path(fmt.Sprintf("/%s/%s/%s/%04d", long, long, long, i)) }
	for i := range files {
		c.send(header(pubA, path(i), nil), nil)
		if reply := c.read(); reply["COMMAND"] != "STORED" {
			t.Fatal(reply)
		}
	}
	other := b.publish(pubB, wire.FeatureAck)
	other.send(header(pubB, "/b", []byte("b")), []byte("b"))
	other.read()

	var got []wire.HaveFile
	after, pages := "", 0
	for {
		c.text(wire.Have{Peer: own, Command: wire.CommandHave, After: after})
		var page wire.HavePageReply
		c.readInto(&page)
		got = append(got, page.Files...)
		pages++
		if after = page.Next; after == "" {
			break
		}
	}
	if len(got) != files || pages < 2 {
		t.Fatalf("%d files in %d pages, want %d", len(got), pages, files)
	}
	for i, f := range got {
		if f.FilePath != path(i) || f.SHA256 != id.DigestOf(nil) || f.Size != 0 || f.Expires == 0 {
			t.Fatalf("%d: %+v", i, f)
		}
	}
	c.text(wire.Have{Peer: own, Command: wire.CommandHave, After: "../x"})
	if reply := c.read(); reply["ERROR"] == nil {
		t.Errorf("%v", reply)
	}

	c.text(wire.Delete{Peer: own, Command: wire.CommandDelete, RequestID: "d", FilePaths: []string{string(path(0)), "/b", "../b", string(path(1))}})
	var deleted wire.Deleted
	if c.readInto(&deleted); deleted.Command != wire.CommandDeleted || deleted.Count != 2 || deleted.RequestID != "d" {
		t.Errorf("%+v", deleted)
	}
	if b.content(pubA, path(0)) != nil || b.content(pubB, "/b") == nil || len(b.records.deleted) != 2 {
		t.Error("not the right files were deleted")
	}
}

// TestLimits: connections beyond the limits are turned away, and give their place back.
func TestLimits(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(c *Config, _ *segstore.Config) { c.Limits = Limits{Connections: 3, PerAddress: 1, PerPublisher: 2} })
	first, second := b.publish(pubA), b.publish(pubA) // loopback: no limit for each address
	third := b.dial()
	third.text(wire.Publish{Peer: wire.Peer{ID: string(pubA), IP: "y", Type: wire.TypePublisher}, Command: wire.CommandPublish})
	if reply := third.read(); !strings.Contains(fmt.Sprint(reply["ERROR"]), "too many sessions") {
		t.Errorf("%v", reply)
	}
	third.wantClosed(websocket.CloseNormalClosure)
	first.sync(pubA)

	// Its place is free again once the box has seen it end, which takes a moment.
	fourth := eventually(t, func() (*websocket.Conn, error) {
		ws, _, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), nil)
		return ws, err
	})
	defer fourth.Close()
	_, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), nil)
	if !errors.Is(err, websocket.ErrBadHandshake) || resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("%v, %v", resp, err)
	}
	text, _ := io.ReadAll(resp.Body)
	if !strings.Contains(string(text), "no more connections") {
		t.Errorf("%s", text)
	}
	second.sync(pubA)
}

func TestLimitForEachAddress(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(c *Config, _ *segstore.Config) {
		c.Limits = Limits{Connections: 10, PerAddress: 1, PerPublisher: 2}
		c.Trusted = prefixes("127.0.0.0/8")
	})
	from := func(address string) (*websocket.Conn, *http.Response, error) {
		return websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), http.Header{"X-Forwarded-For": {address}})
	}
	one, _, err := from("192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	if _, resp, err := from("192.0.2.1"); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a second one from there: %v", err)
	}
	two, _, err := from("192.0.2.2")
	if err != nil {
		t.Fatal(err)
	}
	two.Close()
}

// TestDrain: publishers are told, a file under way arrives, a new one is refused, and then the
// connections are closed.
func TestDrain(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c, old := b.publish(pubA, wire.FeatureAck), b.publish(pubB)
	content := pattern(600_000)
	underWay := header(pubA, "/under-way", content)
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append(underWay.AppendTo(nil), content[:500_000]...)); err != nil {
		t.Fatal(err)
	}
	// The drain begins when the box has begun to store it.
	eventually(t, func() (int64, error) {
		if n := b.store.Usage().Data.Incoming; n > 0 {
			return n, nil
		}
		return 0, errors.New("nothing comes in")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	drained := make(chan struct{})
	go func() { b.service.Drain(ctx, "the box restarts"); close(drained) }()

	var goodbye wire.Goodbye
	if c.readInto(&goodbye); goodbye.Command != wire.CommandGoodbye || goodbye.Reason != "the box restarts" || goodbye.Seconds < 15 || goodbye.Seconds > 20 {
		t.Errorf("%+v", goodbye)
	}
	old.wantClosed(websocket.CloseNormalClosure)
	if _, err := w.Write(content[500_000:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var stored wire.Stored
	if c.readInto(&stored); stored.RequestID != underWay.RequestID {
		t.Errorf("%+v", stored)
	}
	late := header(pubA, "/late", content)
	c.send(late, content)
	var refused wire.Refused
	if c.readInto(&refused); refused.Kind != wire.KindDraining || refused.RequestID != late.RequestID {
		t.Errorf("%+v", refused)
	}
	if _, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), nil); err == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a new connection: %v", err)
	}
	c.wantClosed(websocket.CloseNormalClosure)
	<-drained
	if !bytes.Equal(b.content(pubA, "/under-way"), content) || b.content(pubA, "/late") != nil {
		t.Error("not the right files are there")
	}
}

// TestDrainLimit: a publisher that does not end its file is cut off at the limit.
func TestDrainLimit(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA, wire.FeatureAck)
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append(header(pubA, "/x", pattern(1<<20)).AppendTo(nil), pattern(300_000)...)); err != nil {
		t.Fatal(err)
	}
	b.service.Drain(cancelled(), "now")
	if got := b.visible(); len(got) != 0 {
		t.Errorf("on disk: %v", got)
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

// TestPacedReader: a sender that drips is cut, one that pauses is not.
func TestPacedReader(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		elapsed time.Duration
		n       int64
		want    error
	}{
		{slowAfter - time.Second, 0, nil},
		{slowAfter + time.Second, 1000, errTooSlow},
		{slowAfter + time.Second, 70 * minRate, nil},
		{time.Hour, 100 * minRate, errTooSlow},
	} {
		p := pacedReader{r: strings.NewReader("x"), began: time.Now().Add(-tt.elapsed), n: tt.n}
		if n, err := p.Read(make([]byte, 1)); n != 1 || !errors.Is(err, tt.want) {
			t.Errorf("%d bytes in %v: %v", tt.n, tt.elapsed, err)
		}
	}
}
