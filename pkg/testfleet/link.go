package testfleet

import (
	"net"
	"sync"
	"testing"
	"time"
)

// Link is the network before a box: a proxy that can be cut or slowed.
type Link struct {
	tb testing.TB
	ln net.Listener

	mu     sync.Mutex
	target string
	state  linkState
	rate   int // bytes/s in each direction; 0: no limit
	conns  map[net.Conn]bool
	change chan struct{} // closed at each change of state
}

type linkState int

const (
	linkWhole linkState = iota
	linkCut             // connections are reset and refused
	linkDead            // nothing passes and nobody is told: a pulled plug
)

func newLink(tb testing.TB) *Link {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	l := &Link{tb: tb, ln: ln, conns: map[net.Conn]bool{}, change: make(chan struct{})}
	go l.accept()
	tb.Cleanup(func() {
		ln.Close()
		l.set(linkCut)
	})
	return l
}

// Addr is the host:port at which the box behind the link is reached.
func (l *Link) Addr() string { return l.ln.Addr().String() }

func (l *Link) lead(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
}

// Cut resets all connections and refuses new ones.
func (l *Link) Cut() { l.set(linkCut) }

// Unplug lets nothing pass and tells nobody, as a pulled plug does.
func (l *Link) Unplug() { l.set(linkDead) }

// Mend makes the link whole again, for new connections.
func (l *Link) Mend() {
	l.set(linkCut)
	l.set(linkWhole)
}

// Slow limits each direction of each connection to so many bytes/s; 0: no limit.
func (l *Link) Slow(rate int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate = rate
}

func (l *Link) set(s linkState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	close(l.change)
	l.change = make(chan struct{})
	if s == linkCut {
		for c := range l.conns {
			_ = c.(*net.TCPConn).SetLinger(0) // a reset, not an orderly end
			c.Close()
		}
		clear(l.conns)
	}
}

// now returns the state, the rate, and a channel that is closed when the state changes.
func (l *Link) now() (linkState, int, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.rate, l.change
}

func (l *Link) accept() {
	for {
		outer, err := l.ln.Accept()
		if err != nil {
			return
		}
		go l.serve(outer)
	}
}

func (l *Link) serve(outer net.Conn) {
	l.mu.Lock()
	state, target := l.state, l.target
	if state != linkCut {
		l.conns[outer] = true
	}
	l.mu.Unlock()
	if state == linkCut {
		_ = outer.(*net.TCPConn).SetLinger(0)
		outer.Close()
		return
	}
	if !l.wait() {
		outer.Close()
		return
	}
	inner, err := net.Dial("tcp", target)
	if err != nil {
		_ = outer.(*net.TCPConn).SetLinger(0)
		outer.Close()
		return
	}
	l.mu.Lock()
	l.conns[inner] = true
	l.mu.Unlock()
	go l.copy(inner, outer)
	l.copy(outer, inner)
}

// wait returns when something may pass; false when the link was cut meanwhile.
func (l *Link) wait() bool {
	for {
		state, _, change := l.now()
		switch state {
		case linkWhole:
			return true
		case linkCut:
			return false
		}
		<-change
	}
}

func (l *Link) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if !l.wait() {
			return
		}
		if _, rate, _ := l.now(); rate > 0 {
			timer := time.NewTimer(time.Duration(n) * time.Second / time.Duration(rate))
			<-timer.C
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			l.mu.Lock()
			delete(l.conns, to)
			delete(l.conns, from)
			l.mu.Unlock()
			return
		}
	}
}
