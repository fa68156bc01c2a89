package push

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// runLink runs a link until the test ends and returns it when it is up; downs gets each reason.
func runLink(t *testing.T, target Target) (l *Link, downs chan string) {
	t.Helper()
	up := make(chan struct{}, 100)
	downs = make(chan string, 100)
	l = NewLink(target, own, Events{
		Up:   func([]wire.HaveFile) { up <- struct{}{} },
		Down: func(reason string) { downs <- reason },
	}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { l.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	<-up
	return l, downs
}

func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// TestGivingUpIsNotTheBoxesEnd: a file that this side gives up in the middle ends the session, as
// it must, and the box counts as up while the next one is opened.
func TestGivingUpIsNotTheBoxesEnd(t *testing.T) {
	t.Parallel()
	l, downs := runLink(t, fakeBox(t, wire.Ours(), func(c *wsconn.Conn, h wire.FileHeader, _ []byte) { _ = c.WriteText(stored(h)) }))
	sent, endless := make(chan struct{}), file("half of it")
	endless.Size = 1 << 20
	content, more := io.Pipe()
	endless.Open = func() (io.ReadCloser, error) { return content, nil }
	go func() { _, _ = more.Write([]byte("half of it")); close(sent) }()
	late := errors.New("late")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-sent; cancel(late) }()
	go func() { <-ctx.Done(); more.Close() }() // a real file's Read does not block
	if _, err := l.Push(ctx, Live, endless); !errors.Is(err, late) {
		t.Fatalf("%v", err)
	}
	await(t, "a push over a new session", func() bool {
		if !l.Up() {
			t.Fatal("the box counts as down")
		}
		_, err := l.Push(t.Context(), Live, file("hello"))
		return err == nil
	})
	select {
	case reason := <-downs:
		t.Errorf("the box was said to be down: %s", reason)
	default:
	}
}

// TestSilence: a box that gives no sign of life is not up, long before its session ends, and is up
// again with the next sign.
func TestSilence(t *testing.T) {
	t.Parallel()
	target := fakeBox(t, wire.Ours(), nil)
	cable := newPlug(t, &target)
	l, downs := runLink(t, target)
	begin := time.Now()
	cable.pull()
	await(t, "the box is not up", func() bool { return !l.Up() })
	t.Logf("not up after %v", time.Since(begin))
	if _, err := l.Push(t.Context(), Live, file("hello")); !errors.Is(err, ErrClosed) {
		t.Errorf("a push to a silent box: %v", err)
	}
	if len(downs) > 0 {
		t.Errorf("the session ended: %s", <-downs)
	}
	cable.push()
	await(t, "the box is up again", l.Up)
	if len(downs) > 0 {
		t.Errorf("the session ended: %s", <-downs)
	}
}

// plug is a wire to a box that can be pulled: nothing passes and nobody is told.
type plug struct{ gate sync.RWMutex }

func newPlug(t *testing.T, target *Target) *plug {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	to, err := url.Parse(target.ConnectWS)
	if err != nil {
		t.Fatal(err)
	}
	p, box := &plug{}, to.Host
	target.ConnectWS = "http://" + ln.Addr().String() + wire.BoxWSPath(target.Box)
	go func() {
		for {
			outer, err := ln.Accept()
			if err != nil {
				return
			}
			inner, err := net.Dial("tcp", box)
			if err != nil {
				outer.Close()
				continue
			}
			go p.copy(outer, inner)
			go p.copy(inner, outer)
		}
	}()
	return p
}

func (p *plug) pull() { p.gate.Lock() }
func (p *plug) push() { p.gate.Unlock() }

func (p *plug) copy(to, from net.Conn) {
	defer to.Close()
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		p.gate.RLock()
		_, failed := to.Write(b[:n])
		p.gate.RUnlock()
		if err != nil || failed != nil {
			return
		}
	}
}
