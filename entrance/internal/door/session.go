package door

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	stack "runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	// oldSilence is for how long a peer without features may say nothing: nobody pings in the old
	// code, but it answers pings.
	oldSilence = 5 * time.Minute
	oldPing    = 30 * time.Second

	// A session that sends faster than this is read more slowly.
	messagesPerSecond = 50
	messageBurst      = 100

	keptBuffer = 64 << 10 // a longer message's buffer is not kept

	// Of messages longer than this, only so many are read at a time: the 256 KB that each session
	// may send would be 12 GB when all send them at once.
	shortMessage      = 8 << 10
	longMessages      = 1_024
	longMessagesOfNet = 64 // of one public /24 or /48
)

// Session is the websocket of one peer. Its fields belong to the session's goroutine.
type Session struct {
	Number uint64     // different for each session of this process, never 0
	Remote netip.Addr // the peer's address; the zero Addr where it cannot be told
	*Self             // what this entrance calls itself towards the peer
	// Features are what both sides named; none before the peer named any.
	Features wire.Features
	// Value is the command's own.
	Value any
	// OnEnd, if set, is called once when the session ends by the peer's doing, also by its
	// silence; not when this entrance shuts down. why is for people.
	OnEnd func(why string)

	conn        atomic.Pointer[wsconn.Conn]
	peer        string // the ID of its first message
	hasFeatures atomic.Bool
	draining    atomic.Bool
	kept        bool // KeepAlive was called
	tokens      float32
	refilled    int64 // unix nanoseconds
	patience    *time.Timer
	waits       atomic.Int32 // a waiting
	cutOff      atomic.Bool  // patience ended
}

// Peer returns the ID that all messages of the session carry; not validated.
func (s *Session) Peer() string { return s.peer }

// Refusal is an error whose text is meant for the peer.
type Refusal struct{ Text string }

func (r *Refusal) Error() string { return r.Text }

// Reply sends a message to the peer. Unlike the other methods it may be called by any goroutine, also when the
// session has ended: then it fails. A peer that takes nothing holds it up for 10 s.
func (s *Session) Reply(v any) error { return s.conn.Load().WriteText(wire.Encode(v)) }

// Named takes the features that the peer named, and keeps the connection alive: a peer with
// features is gone after 8 s of silence, another one after 5 minutes. The first message decides;
// later calls do nothing.
func (s *Session) Named(theirs wire.Features) {
	if s.kept {
		return
	}
	s.kept = true
	conn := s.conn.Load()
	if s.Features = wire.Ours().And(theirs); len(s.Features) == 0 {
		conn.KeepAlive(oldPing, oldSilence)
		return
	}
	s.hasFeatures.Store(true)
	conn.KeepAlive(wire.PingInterval, wire.SilenceLimit)
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// serve reads the session's messages until it ends. It is a goroutine's whole life, and nearly
// all of that is spent in Next: what is on the stack then is there for each connected box, so
// everything else is in handle.
func (d *Door) serve(s *Session) {
	conn := s.conn.Load()
	d.beginWaiting(s)
	for {
		binary, r, err := conn.Next()
		if !d.handle(s, binary, r, err) {
			return
		}
	}
}

// handle answers one message, or ends the session and returns false.
func (d *Door) handle(s *Session, binary bool, r io.Reader, err error) (goOn bool) {
	defer func() {
		if p := recover(); p != nil {
			// One peer's message must not end the sessions of all.
			d.log.Error("a command panicked", "panic", fmt.Sprint(p), "stack", string(stack.Stack()))
			err, goOn = errPanic, false
		}
		if !goOn {
			d.end(s, err)
		}
	}()
	if err == nil {
		err = d.read(s, binary, r)
	}
	var bye *goodbye
	if errors.As(err, &bye) {
		s.wait(forClose)
		if s.OnEnd != nil {
			s.OnEnd("it said goodbye: " + bye.reason)
			s.OnEnd = nil
		}
		return true // until it closes
	}
	if err != nil {
		return false
	}
	s.wait(forNext)
	return true
}

// end is the last that happens to a session.
func (d *Door) end(s *Session, err error) {
	s.patience.Stop()
	s.conn.Load().Abort()
	d.release(s)
	if s.OnEnd == nil || s.draining.Load() {
		return
	}
	why := "its connection was lost"
	var timeout net.Error
	switch {
	case s.cutOff.Load():
		why = patience[s.waits.Load()].why
	case errors.Is(err, errRefused):
		why = err.Error()
	case wsconn.SaidGoodbye(err):
		why = "it closed its connection"
	case errors.As(err, &timeout) && timeout.Timeout():
		why = "it gave no sign of life"
	}
	s.OnEnd(why)
}

// goodbye is a GOODBYE, which travels as an error.
type goodbye struct{ reason string }

func (g *goodbye) Error() string { return g.reason }

var errPanic = errors.New("a command panicked")

// read reads one message and answers it. An error other than a goodbye ends the session; the
// peer was told why.
func (d *Door) read(s *Session, binary bool, r io.Reader) error {
	s.slowDown()
	s.wait(forRest)
	buf := buffers.Get().(*bytes.Buffer)
	defer func() {
		if buf.Cap() <= keptBuffer {
			buf.Reset()
			buffers.Put(buf)
		}
	}()
	if binary {
		return d.refuse(s, refusedFormat, wire.NewWrongFormat(s.Own, []byte("(binary)")))
	}
	if n, err := buf.ReadFrom(io.LimitReader(r, shortMessage)); err != nil {
		return err
	} else if n == shortMessage {
		if !d.long.enter(s.Remote) {
			return d.refuse(s, refusedLong, s.errorReply("This entrance reads as many long messages as it can: try again in a moment"))
		}
		defer d.long.leave(s.Remote)
		if n, err := buf.ReadFrom(io.LimitReader(r, wire.MaxExchange-shortMessage+1)); err != nil {
			return err
		} else if n > wire.MaxExchange-shortMessage {
			return d.refuse(s, refusedTooLong, s.errorReply(fmt.Sprintf("Your message is longer than %d bytes", wire.MaxExchange)))
		}
	}
	return d.answer(s, buf.Bytes())
}

// slowDown lets a peer that sends too much wait. It is its own goroutine that sleeps.
func (s *Session) slowDown() {
	now := time.Now().UnixNano()
	passed := time.Duration(now - s.refilled) // since 1970 at first: the bucket is full
	s.refilled = now
	s.tokens = min(messageBurst, s.tokens+float32(max(passed, 0).Seconds()*messagesPerSecond)) - 1
	if s.tokens < 0 {
		time.Sleep(time.Duration(-s.tokens / messagesPerSecond * float32(time.Second)))
	}
}

func (d *Door) answer(s *Session, message []byte) error {
	envelope, err := wire.DecodeEnvelope(message)
	if err != nil {
		return d.refuse(s, refusedFormat, wire.NewWrongFormat(s.Own, message))
	}
	if s.peer == "" {
		s.peer = envelope.ID
	}
	if s.peer != envelope.ID {
		return d.refuse(s, refusedFormat, s.errorReply("Wrong format in your message: ID is another one than before on this connection"))
	}
	if !s.Remote.IsValid() {
		return d.refuse(s, refusedByPolicy, s.errorReply("Your address cannot be told: "+
			"the proxy in front of this entrance must be in its trusted_proxies, and must write X-Forwarded-For"))
	}
	if envelope.Command == wire.CommandGoodbye {
		d.metrics.messages.WithLabelValues(envelope.Command).Inc()
		bye, _ := wire.Decode[wire.Goodbye](message)
		return &goodbye{bye.Reason[:min(len(bye.Reason), wire.MaxField)]}
	}
	command := d.cfg.Commands[envelope.Command]
	if command == nil {
		reply := wire.NewUnknownCommand(s.Own, envelope.Command)
		if len(s.Features) == 0 {
			return d.refuse(s, refusedCommand, reply)
		}
		d.metrics.refused.WithLabelValues(refusedCommand).Inc()
		return s.Reply(reply)
	}
	d.metrics.messages.WithLabelValues(envelope.Command).Inc()
	err = command(s, message)
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		d.log.Debug("refused", "command", envelope.Command, "remote", s.Remote, "error", err)
		return d.refuse(s, refusedByPolicy, s.errorReply(refusal.Text))
	case errors.Is(err, wire.ErrFormat):
		d.log.Debug("wrong format", "command", envelope.Command, "remote", s.Remote, "error", err)
		text := strings.TrimPrefix(err.Error(), wire.ErrFormat.Error()+": ")
		return d.refuse(s, refusedFormat, s.errorReply("Wrong format in your message: "+text[:min(len(text), wire.MaxEcho)]))
	}
	return err
}

func (s *Session) errorReply(text string) wire.ErrorReply {
	return wire.ErrorReply{Peer: s.Own, Error: text}
}

var errRefused = errors.New("the entrance refused its message")

// refuse sends a last message and closes with code 1000.
func (d *Door) refuse(s *Session, reason string, reply wire.ErrorReply) error {
	d.metrics.refused.WithLabelValues(reason).Inc()
	s.conn.Load().Refuse(wire.Encode(reply))
	return errRefused
}
