package capacity

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestEstimate(t *testing.T) {
	t.Parallel()
	var e estimate
	for i := range enough {
		if rate, learned := e.capacity(); rate != Default || learned {
			t.Errorf("%d and %v after %d samples", rate, learned, i)
		}
		e.add(5_000_000)
	}
	if rate, learned := e.capacity(); rate != 5_000_000 || !learned {
		t.Errorf("%d, %v", rate, learned)
	}
	// Slow viewers do not lower it, nor do a few accidents raise it.
	e = estimate{}
	for i := range kept {
		switch {
		case i%32 == 0:
			e.add(1_000_000_000)
		case i%4 == 0:
			e.add(2_500_000)
		default:
			e.add(100_000)
		}
	}
	if rate, _ := e.capacity(); rate != 2_500_000 {
		t.Errorf("%d among slow viewers", rate)
	}
	for range kept {
		e.add(700_000) // the line became slower
	}
	if rate, _ := e.capacity(); rate != 700_000 {
		t.Errorf("%d after the line changed", rate)
	}
}

// pair is a connection through loopback whose other end reads everything.
func pair(t *testing.T) (conn net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		other, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			return
		}
		defer other.Close()
		_, _ = io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{other})
	}()
	if conn, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		<-ended
	})
	return conn
}

func send(t *testing.T, l *Line, conn net.Conn, n, piece int) {
	t.Helper()
	transfer := l.Begin(conn, int64(n), true)
	defer transfer.End()
	for ; n > 0; n -= piece {
		if _, err := conn.Write(make([]byte, min(n, piece))); err != nil {
			t.Fatal(err)
		}
	}
}

// await waits until something holds that the line's samples bring about.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for limit := time.After(time.Minute); !holds(); {
		select {
		case <-ticker.C:
		case <-limit:
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func (l *Line) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.estimate.n
}

// TestAllHasArrived: the kernel takes a transfer at once, and the other side does not read yet: the sample is taken
// when it has.
func TestAllHasArrived(t *testing.T) {
	t.Parallel()
	l := New(Config{Tells: func(_, _ netip.Addr) bool { return true }})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10) })
	}}
	reader, err := dialer.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 2 * MinBytes
	if err := conn.(*net.TCPConn).SetWriteBuffer(2 * size); err != nil {
		t.Fatal(err)
	}
	transfer := l.Begin(conn, size, true)
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if info, ok := read(conn.(*net.TCPConn)); !ok || info.Bytes_acked >= MinBytes {
		t.Fatalf("%d bytes arrived already, %v: this proves nothing", info.Bytes_acked, ok)
	}
	transfer.End()
	if _, err := io.CopyN(io.Discard, reader, size); err != nil {
		t.Fatal(err)
	}
	await(t, "a sample", func() bool { return l.count() == 1 })
}

// TestLine: transfers on a real connection become samples, those to where no line is do not.
func TestLine(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var changed []int64
	everywhere := func(local, peer netip.Addr) bool { return local.IsValid() && peer.IsValid() }
	l := New(Config{Tells: everywhere, Changed: func(rate int64) {
		mu.Lock()
		defer mu.Unlock()
		changed = append(changed, rate)
	}})
	await(t, "an estimate", func() bool { // a transfer that this machine interrupts may become none
		send(t, l, pair(t), 8<<20, 1<<20)
		_, learned := l.Capacity()
		return learned
	})
	if rate, _ := l.Capacity(); rate < 10*Default {
		t.Errorf("%d: loopback is faster than that", rate)
	}
	await(t, "word of the estimate", func() bool {
		rate, _ := l.Capacity()
		mu.Lock()
		defer mu.Unlock()
		return len(changed) > 0 && changed[len(changed)-1] == rate
	})
	if l.Begin(pair(t), MinBytes-1, true) != nil {
		t.Error("a small transfer became a sample")
	}
	none := New(Config{})
	send(t, none, pair(t), 8<<20, 1<<20)
	if none.estimate.n != 0 {
		t.Error("a transfer on this machine says nothing of the line")
	}
	var nobody *Line
	nobody.Begin(pair(t), 1<<20, true).End()
	if rate, learned := nobody.Capacity(); rate != Default || learned {
		t.Errorf("%d, %v of no line", rate, learned)
	}
}

// TestThrottled: a sender that pauses shows its own rate, which must not pass for the line's.
func TestThrottled(t *testing.T) {
	t.Parallel()
	l := New(Config{Tells: func(_, _ netip.Addr) bool { return true }})
	for range enough {
		l.estimate.add(1 << 40)
	}
	conn := pair(t)
	transfer := l.Begin(conn, 1<<20, true)
	for info, _ := read(conn.(*net.TCPConn)); info.Bytes_acked < 2*MinBytes; info, _ = read(conn.(*net.TCPConn)) {
		if info.Unacked == 0 && info.Notsent_bytes == 0 { // the other side has all
			conn.Write(make([]byte, 32<<10))
		}
	}
	if info, ok := read(conn.(*net.TCPConn)); !ok || !info.appLimited {
		t.Errorf("%v, limited by the sender: %v", ok, info.appLimited)
	}
	transfer.End()
	if l.estimate.n != enough {
		t.Error("it became a sample")
	}
}

// TestTrials: one transfer at a time goes ahead of the limit, for a part, and not often.
func TestTrials(t *testing.T) {
	t.Parallel()
	l := New(Config{Tells: func(_, _ netip.Addr) bool { return true }, Trials: true})
	arriving := l.Begin(pair(t), 1<<30, false)
	first, second := l.Begin(pair(t), 1<<30, true), l.Begin(pair(t), 1<<30, true)
	if n, m := first.Ahead(1000), second.Ahead(1000); n != 1000 || m != 0 {
		t.Errorf("%d and %d bytes ahead", n, m)
	}
	if n := first.Ahead(1 << 30); n != trial-1000 || first.Ahead(1) != 0 {
		t.Errorf("%d more", n)
	}
	if n := arriving.Ahead(1000); n != 0 {
		t.Errorf("%d bytes ahead of what is on its way here", n)
	}
	for _, transfer := range []*Transfer{arriving, first, second} {
		transfer.End()
	}
	now := l.tried
	if l.try(now.Add(trialsEvery - 1)) {
		t.Error("too soon")
	}
	if now = now.Add(trialsEvery); !l.try(now) || l.try(now.Add(time.Hour)) {
		t.Error("not one at a time")
	}
	l.trying = false
	for range enough {
		l.estimate.add(Default)
	}
	if l.try(now.Add(laterEvery-1)) || !l.try(now.Add(laterEvery)) {
		t.Error("not seldom once the line is known")
	}
	if New(Config{}).try(now) {
		t.Error("nobody asked for trials")
	}
}
