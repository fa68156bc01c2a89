package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
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
// (docs/protocol.md).
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

// TestMemory: what a file takes while it comes in does not depend on its size.
func TestMemory(t *testing.T) { // not parallel: it counts what the whole process allocates
	const size = 40 << 20
	b := newBox(t, nil)
	conn, err := wsconn.Dial(t.Context(), b.url, wsconn.Dialing{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Abort()
	send := func(message []byte) string {
		t.Helper()
		if err := conn.WriteText(message); err != nil {
			t.Fatal(err)
		}
		reply, err := conn.ReadText(wire.MaxMessage)
		if err != nil {
			t.Fatal(err)
		}
		return string(reply)
	}
	own := wire.Peer{ID: string(pubA), IP: "x", Type: wire.TypePublisher}
	send(wire.Encode(wire.Publish{Peer: own, Command: wire.CommandPublish, Features: wire.Ours()}))
	content := io.NewSectionReader(zeros{}, 0, size)
	hash := sha256.New()
	if _, err := io.Copy(hash, content); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	h := wire.FileHeader{Path: "/large", TTL: time.Minute, RequestID: "r", Size: size, Digest: id.Digest(hash.Sum(nil))}
	if err := conn.WriteFile(t.Context(), h.AppendTo(nil), io.NewSectionReader(zeros{}, 0, size), size); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.ReadText(wire.MaxMessage); err != nil || !strings.Contains(string(reply), wire.CommandStored) {
		t.Fatalf("%s, %v", reply, err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 3<<20 {
		t.Errorf("%d bytes were allocated for a file of %d", used, size)
	}
}

type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }

// TestFrontURL: the front is that of the publisher's newest session that named one.
func TestFrontURL(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	open := func(pub id.PublisherID, front string) *client {
		c := b.dial()
		c.text(wire.Publish{
			Peer: wire.Peer{ID: string(pub), IP: "y", Type: wire.TypePublisher}, Command: wire.CommandPublish, FrontURL: front,
		})
		c.read()
		return c
	}
	const first, second = "http://192.0.2.1:7071", "https://show.example.org/"
	open(pubA, first)
	open(pubA, "")
	open(pubB, "")
	if a, other := b.service.FrontURL(pubA), b.service.FrontURL(pubB); a != first || other != "" {
		t.Errorf("%q and %q", a, other)
	}
	c := open(pubA, second)
	if got := b.service.FrontURL(pubA); got != second {
		t.Errorf("%q after a newer session", got)
	}
	c.old(`{"FILE_PATH":"/a.ts","DURATION":2.5}`, []byte("a"))
	c.sync(pubA)
	if e, ok := b.store.Get(pubA, "/a.ts"); !ok || e.Plays != 2500*time.Millisecond {
		t.Errorf("%v, plays %v", ok, e.Plays)
	}
}
