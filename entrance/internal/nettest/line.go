// Package nettest is a line between two peers of a test that can be made slow or dead. Only tests
// import it. It must not know what is said over it.
package nettest

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Line leads TCP connections to a target. Its methods may be called concurrently.
type Line struct {
	listener net.Listener
	target   string

	mu      sync.Mutex
	delay   time.Duration
	dead    chan struct{} // not nil: closed when the line lives again
	ended   bool
	conns   map[net.Conn]bool
	running sync.WaitGroup
}

// New returns a line to target, a host:port. It is taken down when the test ends.
func New(tb testing.TB, target string) *Line {
	tb.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	l := &Line{listener: listener, target: target, conns: make(map[net.Conn]bool)}
	l.running.Go(l.accept)
	tb.Cleanup(l.close)
	return l
}

// Addr is the host:port at which the line begins.
func (l *Line) Addr() string { return l.listener.Addr().String() }

// Delay makes what the target answers arrive so much later.
func (l *Line) Delay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// Die lets nothing pass any more and tells nobody, as a pulled plug does.
func (l *Line) Die() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead == nil {
		l.dead = make(chan struct{})
	}
}

// Live ends Die: what was said meanwhile passes.
func (l *Line) Live() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		close(l.dead)
		l.dead = nil
	}
}

func (l *Line) close() {
	l.listener.Close()
	l.mu.Lock()
	l.ended = true
	for conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	l.Live()
	l.running.Wait()
}

// keep has the connection closed with the line; false: that is over already.
func (l *Line) keep(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		conn.Close()
		return false
	}
	l.conns[conn] = true
	return true
}

func (l *Line) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return
		}
		if !l.keep(near) {
			return
		}
		l.running.Go(func() { l.lead(near) })
	}
}

func (l *Line) lead(near net.Conn) {
	defer near.Close()
	l.pass()
	far, err := net.Dial("tcp", l.target)
	if err != nil || !l.keep(far) {
		return
	}
	defer far.Close()
	l.running.Go(func() { l.carry(far, near, false) })
	l.carry(near, far, true)
}

// pass waits until the line lives, and returns its delay.
func (l *Line) pass() time.Duration {
	for {
		l.mu.Lock()
		dead, delay := l.dead, l.delay
		l.mu.Unlock()
		if dead == nil {
			return delay
		}
		<-dead
	}
}

type chunk struct {
	content []byte
	due     time.Time
}

// carry moves bytes until one end closes. Delayed chunks overtake nothing and hold nothing up.
func (l *Line) carry(to, from net.Conn, delayed bool) {
	chunks := make(chan chunk, 1024)
	l.running.Go(func() {
		defer close(chunks)
		for {
			buf := make([]byte, 32<<10)
			n, err := from.Read(buf)
			if n > 0 {
				due := time.Now()
				if delay := l.pass(); delayed {
					due = due.Add(delay)
				}
				chunks <- chunk{buf[:n], due}
			}
			if err != nil {
				return
			}
		}
	})
	broken := false
	for c := range chunks {
		time.Sleep(time.Until(c.due))
		if !broken {
			_, err := to.Write(c.content)
			broken = err != nil
		}
	}
	l.pass() // the end of a connection does not pass a dead line either
	to.Close()
	from.Close()
}
