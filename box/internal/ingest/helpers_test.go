package ingest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

var (
	boxID = id.BoxIDOf([]byte("box"))
	pubA  = id.PublisherIDOf([]byte("a"))
	pubB  = id.PublisherIDOf([]byte("b"))
)

// box is an ingest service with a real store behind a real HTTP server.
type box struct {
	t       *testing.T
	dir     string
	store   *segstore.Store
	service *Service
	url     string
	records *recorder
	metrics *prometheus.Registry
}

type recorder struct {
	mu      sync.Mutex
	stored  []segstore.Entry
	deleted []id.Path
}

func (r *recorder) Stored(e segstore.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stored = append(r.stored, e)
}

func (r *recorder) Deleted(_ id.PublisherID, p id.Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deleted = append(r.deleted, p)
}

func (r *recorder) SessionsChanged() {}

func newBox(t *testing.T, change func(*Config, *segstore.Config)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir(), records: &recorder{}, metrics: prometheus.NewRegistry()}
	log := slog.New(slog.DiscardHandler)
	stores := segstore.Config{DataDir: b.dir, StorageLimit: 64 << 20}
	cfg := Config{
		Own: func(netip.Addr) wire.Peer {
			return wire.Peer{ID: string(boxID), IP: "192.0.2.7", Port: "7072", Type: wire.TypeBox}
		},
		Records: b.records, Registerer: b.metrics, Log: log,
	}
	if change != nil {
		change(&cfg, &stores)
	}
	var err error
	if b.store, err = segstore.Open(stores, log); err != nil {
		t.Fatal(err)
	}
	cfg.Store = b.store
	b.service = New(cfg)
	srv := httptest.NewServer(httperr.Wrap(log, b.service.Connect))
	b.url = srv.URL
	t.Cleanup(func() {
		srv.Close()
		b.service.Drain(cancelled(), "the test is over")
		b.store.Close()
	})
	return b
}

// content returns what the box holds at a publisher's path; nil where it holds nothing.
func (b *box) content(pub id.PublisherID, path id.Path) []byte {
	b.t.Helper()
	f, _, err := b.store.Open(pub, path)
	if err != nil {
		return nil
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// visible lists the files below the publishers' directories, as a web server would see them.
func (b *box) visible() (files []string) {
	b.t.Helper()
	err := filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
		rel, _ := filepath.Rel(b.dir, path)
		if err == nil && !d.IsDir() && !strings.HasPrefix(rel, ".") {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return files
}

func (b *box) results(result string) float64 {
	var m dto.Metric
	if err := b.service.metrics.files.WithLabelValues(result).Write(&m); err != nil {
		b.t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// client is a publisher's side, as bare as the old one's.
type client struct {
	t  *testing.T
	ws *websocket.Conn
}

func (b *box) dial() *client {
	b.t.Helper()
	dialer := websocket.Dialer{WriteBufferSize: 256 << 10}
	ws, resp, err := dialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second)) // a bound for a broken test
	b.t.Cleanup(func() { ws.Close() })
	return &client{b.t, ws}
}

// publish opens a session; without features it is an old publisher's.
func (b *box) publish(pub id.PublisherID, features ...wire.Feature) *client {
	b.t.Helper()
	c := b.dial()
	c.text(wire.Publish{Peer: wire.Peer{ID: string(pub), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: features})
	reply := c.read()
	if reply["MESSAGE"] != "ACCEPTED" || reply["COMMAND"] != "PUBLISH" || reply["ID"] != string(boxID) || reply["TYPE"] != "BOX" || reply["IP"] != "192.0.2.7" || reply["PORT"] != "7072" {
		b.t.Fatalf("reply: %v", reply)
	}
	if _, has := reply["FEATURES"]; has != (len(features) > 0) {
		b.t.Fatalf("features %v, and the reply is %v", features, reply)
	}
	return c
}

func (c *client) text(v any) {
	c.t.Helper()
	if s, ok := v.(string); ok {
		c.raw(websocket.TextMessage, []byte(s))
		return
	}
	c.raw(websocket.TextMessage, wire.Encode(v))
}

func (c *client) raw(kind int, b []byte) {
	c.t.Helper()
	if err := c.ws.WriteMessage(kind, b); err != nil {
		c.t.Fatal(err)
	}
}

// old sends a file as the old publisher does.
func (c *client) old(headers string, content []byte) {
	c.t.Helper()
	c.raw(websocket.BinaryMessage, append([]byte("<Dandelion>"+headers+"</Dandelion>"), content...))
}

// send sends an acknowledged file.
func (c *client) send(h wire.FileHeader, content []byte) {
	c.t.Helper()
	c.raw(websocket.BinaryMessage, append(h.AppendTo(nil), content...))
}

func (c *client) read() map[string]any {
	c.t.Helper()
	_, raw, err := c.ws.ReadMessage()
	if err != nil {
		c.t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		c.t.Fatalf("%s: %v", raw, err)
	}
	return m
}

func (c *client) readInto(v any) {
	c.t.Helper()
	_, raw, err := c.ws.ReadMessage()
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		c.t.Fatalf("%s: %v", raw, err)
	}
}

// wantClosed reads the end, which must be a close with that code.
func (c *client) wantClosed(code int) {
	c.t.Helper()
	_, m, err := c.ws.ReadMessage()
	if err == nil {
		c.t.Fatalf("one more message: %s", m)
	}
	if !websocket.IsCloseError(err, code) {
		c.t.Fatalf("ended with %v, want close %d", err, code)
	}
}

// sync returns when the box has taken everything that was sent before.
func (c *client) sync(pub id.PublisherID) {
	c.t.Helper()
	c.text(wire.Publish{Peer: wire.Peer{ID: string(pub), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish})
	if reply := c.read(); reply["MESSAGE"] != "ACCEPTED" {
		c.t.Fatalf("%v", reply)
	}
}

func header(pub id.PublisherID, path id.Path, content []byte) wire.FileHeader {
	return wire.FileHeader{
		Path: path, TTL: time.Minute, RequestID: "r-" + id.DigestOf([]byte(path)).Short(), Publisher: pub,
		Size: int64(len(content)), Digest: id.DigestOf(content),
	}
}

// http10 opens a websocket as the old client behind the old nginx does, and returns the socket.
func http10(t *testing.T, url string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET "+wire.BoxWSPath(boxID)+" HTTP/1.0\r\nHost: x\r\nUpgrade: Websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	return conn, br
}

// frame is one masked frame with a payload below 64 KB.
func frame(final bool, opcode byte, payload []byte) []byte {
	first := opcode
	if final {
		first |= 0x80
	}
	mask := [4]byte{1, 2, 3, 4}
	b := []byte{first}
	if len(payload) < 126 {
		b = append(b, 0x80|byte(len(payload)))
	} else {
		b = append(b, 0x80|126, byte(len(payload)>>8), byte(len(payload)))
	}
	b = append(b, mask[:]...)
	for i, c := range payload {
		b = append(b, c^mask[i%4])
	}
	return b
}

// readFrame reads one short frame of a server.
func readFrame(t *testing.T, br *bufio.Reader) []byte {
	t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(br, head); err != nil {
		t.Fatal(err)
	}
	n := int(head[1])
	if n == 126 {
		if _, err := io.ReadFull(br, head); err != nil {
			t.Fatal(err)
		}
		n = int(head[0])<<8 | int(head[1])
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(br, payload); err != nil {
		t.Fatal(err)
	}
	return payload
}

func pattern(n int) []byte { return bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n] }

// eventually calls f until it succeeds, for what the other side does in its own time.
func eventually[T any](t *testing.T, f func() (T, error)) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		v, err := f()
		if err == nil {
			return v
		}
		select {
		case <-ctx.Done():
			t.Fatalf("still not after 10 s: %v", err)
		case <-tick.C:
		}
	}
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}

func sortedJSON(t *testing.T, raw []byte) string {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	sorted, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(sorted)
}
