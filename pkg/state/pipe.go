package state

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// newPipe returns the two ends of a connection in memory.
//
// net.Pipe will not do: it has no buffer, so a pipeline whose commands and answers do not fit
// into the buffers of both sides stops for ever, each side waiting for the other to read. Here a
// write never waits; what is on its way is as large as the largest pipeline or answer.
func newPipe() (client, server net.Conn) {
	up, down := newStream(), newStream()
	return &pipeEnd{in: down, out: up}, &pipeEnd{in: up, out: down}
}

type pipeEnd struct{ in, out *stream }

func (p *pipeEnd) Read(b []byte) (int, error)         { return p.in.read(b) }
func (p *pipeEnd) Write(b []byte) (int, error)        { return p.out.write(b) }
func (p *pipeEnd) Close() error                       { p.in.close(); p.out.close(); return nil }
func (p *pipeEnd) LocalAddr() net.Addr                { return pipeAddr{} }
func (p *pipeEnd) RemoteAddr() net.Addr               { return pipeAddr{} }
func (p *pipeEnd) SetReadDeadline(t time.Time) error  { p.in.setDeadline(t); return nil }
func (p *pipeEnd) SetWriteDeadline(_ time.Time) error { return nil }
func (p *pipeEnd) SetDeadline(t time.Time) error      { return p.SetReadDeadline(t) }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "memory" }
func (pipeAddr) String() string  { return "embedded" }

// keepBuffer is the largest buffer that an idle stream keeps, in bytes.
const keepBuffer = 16 << 10

// stream is one direction of a pipe. One goroutine reads at a time.
type stream struct {
	mu       sync.Mutex
	buf      []byte // buf[at:] is unread
	at       int
	closed   bool
	deadline time.Time
	waiting  bool          // a reader waits on wake
	wake     chan struct{} // has a value when the reader should look again
}

func newStream() *stream { return &stream{wake: make(chan struct{}, 1)} }

func (s *stream) write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	s.buf = append(s.buf, b...)
	s.signal()
	return len(b), nil
}

func (s *stream) read(b []byte) (int, error) {
	for {
		n, wait, err := s.tryRead(b)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		if wait == 0 {
			<-s.wake
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// tryRead reads what is there. If that is nothing, it returns how long to wait for more, 0 for
// as long as it takes.
func (s *stream) tryRead(b []byte) (n int, wait time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = false
	if n = copy(b, s.buf[s.at:]); n > 0 {
		if s.at += n; s.at == len(s.buf) {
			s.at, s.buf = 0, s.buf[:0]
			if cap(s.buf) > keepBuffer {
				s.buf = nil
			}
		}
		return n, 0, nil
	}
	if s.closed {
		return 0, 0, io.EOF
	}
	if !s.deadline.IsZero() {
		if wait = time.Until(s.deadline); wait <= 0 {
			return 0, 0, os.ErrDeadlineExceeded
		}
	}
	s.waiting = true
	return 0, wait, nil
}

func (s *stream) setDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.signal()
}

func (s *stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.signal()
}

func (s *stream) signal() {
	if !s.waiting {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
