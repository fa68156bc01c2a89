package push

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const testBox = id.BoxID("box-0123456789abcdef0123456789abcdef")

var own = Own{ID: "publisher-0123456789abcdef0123456789abcdef", IP: "127.0.0.1"}

// fakeBox answers PUBLISH with these features and gives each file to files. The real box is
// tested together with the real publisher in package testfleet; here it is how boxes go wrong.
func fakeBox(t *testing.T, features wire.Features, files func(c *wsconn.Conn, h wire.FileHeader, content []byte)) Target {
	t.Helper()
	peer := wire.Peer{ID: string(testBox), IP: "127.0.0.1", Port: "1", Type: wire.TypeBox}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := wsconn.Accept(w, r, netaddr.Addr(nil))
		if err != nil {
			return
		}
		go func() {
			defer c.Abort()
			if _, err := c.ReadText(wire.MaxMessage); err != nil {
				return
			}
			_ = c.WriteText(wire.Encode(wire.PublishReply{Peer: peer, Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: features}))
			for {
				binary, r, err := c.Next()
				if err != nil {
					return
				}
				if !binary {
					b, _ := io.ReadAll(r)
					if bytes.Contains(b, []byte(wire.CommandHave)) {
						_ = c.WriteText(wire.Encode(wire.HavePageReply{Peer: peer, Command: wire.CommandHave}))
					}
					continue
				}
				br := bufio.NewReader(r)
				h, err := wire.ReadFileHeader(br)
				if err != nil {
					t.Errorf("headers: %v", err)
					return
				}
				content, err := io.ReadAll(br)
				if err != nil {
					return // broken off
				}
				files(c, h, content)
			}
		}()
	}))
	t.Cleanup(srv.Close)
	return Target{Box: testBox, ConnectWS: srv.URL + wire.BoxWSPath(testBox)}
}

func file(content string) File {
	return File{
		Path: "/live/demo/v/0123456789ab/1.ts", Digest: id.DigestOf([]byte(content)), Size: int64(len(content)), TTL: time.Minute,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func stored(h wire.FileHeader) []byte {
	return wire.Encode(wire.Stored{Command: wire.CommandStored, RequestID: h.RequestID, FilePath: h.Path, Size: h.Size, SHA256: h.Digest, Expires: 4_000_000_000})
}

func open(t *testing.T, target Target) *Session {
	t.Helper()
	s, err := Open(t.Context(), target, own, Live, heard{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.conn.Abort)
	return s
}

func TestAcknowledgedPush(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, content []byte) {
		if h.Size != 5 || h.Publisher != own.ID || string(content) != "hello" {
			t.Errorf("%+v %q", h, content)
		}
		_ = c.WriteText(stored(h))
	}))
	r, err := s.Push(t.Context(), file("hello"))
	if err != nil || !r.Acknowledged || r.Expires.Unix() != 4_000_000_000 || s.Sent() != 5 {
		t.Errorf("%+v, %v, sent %d", r, err, s.Sent())
	}
}

// TestOldBox: a box that names no features gets the old headers and no REQUEST_ID; a file
// counts as stored when the socket is healthy one ping later.
func TestOldBox(t *testing.T) {
	t.Parallel()
	got := make(chan wire.FileHeader, 1)
	s := open(t, fakeBox(t, nil, func(c *wsconn.Conn, h wire.FileHeader, content []byte) { got <- h }))
	r, err := s.Push(t.Context(), file("hello"))
	if err != nil || r.Acknowledged || time.Until(r.Expires) > time.Minute {
		t.Errorf("%+v, %v", r, err)
	}
	if h := <-got; h.RequestID != "" || h.Size != -1 || h.TTL != time.Minute {
		t.Errorf("%+v", h)
	}
}

// TestOldBoxDies: the file was written and no pong comes: it is not stored.
func TestOldBoxDies(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBox(t, nil, func(c *wsconn.Conn, h wire.FileHeader, content []byte) { c.Abort() }))
	if r, err := s.Push(t.Context(), file("hello")); !errors.Is(err, ErrClosed) {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRefusalKeepsTheSession(t *testing.T) {
	t.Parallel()
	var count atomic.Int32
	s := open(t, fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, content []byte) {
		if count.Add(1) == 1 {
			_ = c.WriteText(wire.Encode(wire.Refused{Command: wire.CommandRefused, RequestID: h.RequestID, Kind: wire.KindFull, Error: "no room"}))
			return
		}
		_ = c.WriteText(stored(h))
	}))
	var refusal *Refusal
	if _, err := s.Push(t.Context(), file("hello")); !errors.As(err, &refusal) || refusal.Kind != wire.KindFull {
		t.Errorf("%v", err)
	}
	if _, err := s.Push(t.Context(), file("hello")); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
}

// TestLyingBox: a box that acknowledges other bytes is not believed.
func TestLyingBox(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, content []byte) {
		h.Digest = id.DigestOf(nil)
		_ = c.WriteText(stored(h))
	}))
	var refusal *Refusal
	if _, err := s.Push(t.Context(), file("hello")); !errors.As(err, &refusal) || refusal.Kind != wire.KindDigest {
		t.Errorf("%v", err)
	}
}

// TestNoAnswer: the push ends with its context, the session goes on.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 2)
	s := open(t, fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, content []byte) { arrived <- struct{}{} }))
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-arrived; cancel(late) }()
	if _, err := s.Push(ctx, file("hello")); !errors.Is(err, late) {
		t.Errorf("%v", err)
	}
	select {
	case <-s.Done():
		t.Error("the session ended although the file was wholly written")
	default:
	}
}

func TestUnreadableSource(t *testing.T) {
	t.Parallel()
	s := open(t, fakeBox(t, wire.Ours(), func(*wsconn.Conn, wire.FileHeader, []byte) { t.Error("something was sent") }))
	f := file("hello")
	f.Open = func() (io.ReadCloser, error) { return nil, io.ErrNoProgress }
	if _, err := s.Push(t.Context(), f); !errors.Is(err, ErrSource) {
		t.Errorf("%v", err)
	}
}

// TestWrongPeer: the address of one box leads to another.
func TestWrongPeer(t *testing.T) {
	t.Parallel()
	target := fakeBox(t, wire.Ours(), nil)
	target.Box = "box-ffffffffffffffffffffffffffffffff"
	if s, err := Open(t.Context(), target, own, Live, heard{}); err == nil || !strings.Contains(err.Error(), "another peer") {
		t.Errorf("%v, %v", s, err)
	}
}

func TestLinkComesBack(t *testing.T) {
	t.Parallel()
	target := fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, content []byte) {
		if string(content) == "die" {
			c.Abort()
			return
		}
		_ = c.WriteText(stored(h))
	})
	up, down := make(chan struct{}, 10), make(chan string, 10)
	l := NewLink(target, own, Events{
		Up:   func([]wire.HaveFile) { up <- struct{}{} },
		Down: func(reason string) { down <- reason },
	}, slog.New(slog.DiscardHandler))
	if _, err := l.Push(t.Context(), Live, file("hello")); !errors.Is(err, ErrClosed) {
		t.Errorf("pushed while down: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { l.Run(ctx); close(ended) }()
	<-up
	if _, err := l.Push(t.Context(), Live, file("die")); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	<-down
	<-up
	for _, class := range []Class{Live, Bulk} {
		if _, err := l.Push(t.Context(), class, file("hello")); err != nil {
			t.Errorf("class %d: %v", class, err)
		}
	}
	if l.Sent() != 3+5+5 {
		t.Errorf("sent %d", l.Sent())
	}
	cancel()
	<-ended
	if l.Up() {
		t.Error("up after its end")
	}
}
