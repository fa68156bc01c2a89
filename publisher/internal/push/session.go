// Package push holds the publisher's sessions with boxes: one websocket each, files out,
// acknowledgements in. It sends what it is told to; which file goes to which box, and what a
// failure means, is placement's to decide.
package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Target is a box as a session needs it.
type Target struct {
	Box       id.BoxID
	ConnectWS string
	Least     netaddr.Scope // the narrowest address that may be dialled for it
}

// File is what is pushed. Open is called once for each attempt.
type File struct {
	Path   id.Path
	Digest id.Digest
	Size   int64
	TTL    time.Duration    // 0: until the box needs the room
	Plays  time.Duration    // 0: nobody knows
	Relay  []wire.RelayNode // boxes that the box passes it on to, if it knows how
	Open   func() (io.ReadCloser, error)
	Sent   func(n int) // called with each piece of the content that is written to the box; nil: nobody asks
}

// Receipt says that a box stored a file.
type Receipt struct {
	// Expires is when the box lets go of it; the zero time: when it needs the room.
	Expires time.Time
	// Acknowledged is false for an old box, which confirms nothing: the file was written and
	// the socket was healthy one ping later.
	Acknowledged bool
	// Took is how long it took, without the wait for its turn.
	Took time.Duration
}

// Refusal is a box's answer that it does not store a file. The session goes on.
type Refusal struct {
	Kind wire.Kind
	Text string
}

func (r *Refusal) Error() string { return fmt.Sprintf("refused (%s): %s", r.Kind, r.Text) }

// ErrClosed is wrapped by what is under way when the session ends.
var ErrClosed = errors.New("the session with the box ended")

// ErrSource is wrapped when the publisher's own file cannot be read: no box's fault.
var ErrSource = errors.New("the publisher's own file cannot be read")

// Own is what the publisher says of itself when it opens a session.
type Own struct {
	ID       id.PublisherID
	IP       string
	FrontURL string
	Uplink   *uplink.Limiter // of all that is sent to boxes; nil: not limited
}

// Weights of transfers to boxes in the uplink: a segment that is late is of no use.
const (
	liveWeight = 16
	bulkWeight = 1
)

// Session is an accepted PUBLISH session. All methods may be called from any goroutine; files
// are written one after another in the order of the calls.
type Session struct {
	own      wire.Peer
	conn     *wsconn.Conn
	features wire.Features
	uplink   *uplink.Limiter
	weight   int

	favours []string // streams that the box's owner wants held also without viewers; "*": all
	seed    int64    // bytes of each

	sent atomic.Int64 // bytes of content written

	mu      sync.Mutex
	next    uint64
	waiting map[string]chan any // by request: wire.Stored, wire.Refused, wire.HavePageReply
	err     error               // why it ended

	ended chan struct{}
	said  heard
}

// heard is what a box may say unasked. Its functions are called from the session's reader, and must
// not block; each may be nil.
type heard struct {
	goodbye func(wire.Goodbye)
	gone    func([]id.Path)
	granted func(wire.Terms)
	// answered: what became of a file that another box was to pass on, a wire.Stored or wire.Refused.
	answered func(any)
}

// Open dials the box, sends PUBLISH and waits for its answer. The session of class Live is the one on
// which the box grants upload, and answers for what other boxes passed on to it.
func Open(ctx context.Context, t Target, own Own, class Class, said heard) (*Session, error) {
	limited := own.Uplink != nil && own.Uplink.Rate() > 0
	conn, err := wsconn.Dial(ctx, t.ConnectWS, wsconn.Dialing{Least: t.Least, Files: true, Paced: limited})
	if err != nil {
		return nil, err
	}
	s := &Session{
		own:      wire.Peer{ID: string(own.ID), IP: own.IP, Type: wire.TypePublisher},
		conn:     conn,
		features: wire.Ours(),
		weight:   liveWeight,
		waiting:  map[string]chan any{},
		ended:    make(chan struct{}),
		said:     said,
	}
	if limited {
		s.uplink = own.Uplink
	}
	if class == Bulk {
		s.features, s.weight = wire.Features{wire.FeatureAck}, bulkWeight
	}
	if s.own.IP == "" {
		s.own.IP = conn.LocalAddr().String()
	}
	if err := s.greet(ctx, t, own); err != nil {
		conn.Abort()
		return nil, fmt.Errorf("opening a session with %s at %s: %w", t.Box, t.ConnectWS, err)
	}
	go s.read()
	return s, nil
}

func (s *Session) greet(ctx context.Context, t Target, own Own) error {
	stop := context.AfterFunc(ctx, s.conn.Abort)
	defer stop()
	err := s.conn.WriteText(wire.Encode(wire.Publish{
		Peer: s.own, Command: wire.CommandPublish, Features: s.features, FrontURL: own.FrontURL,
	}))
	if err != nil {
		return err
	}
	raw, err := s.conn.ReadText(wire.MaxMessage)
	if err != nil {
		return err
	}
	reply, err := wire.Decode[wire.PublishReply](raw)
	switch {
	case err != nil:
		return err
	case reply.Error != "":
		return errors.New(reply.Error)
	case reply.Message != wire.MessageAccepted:
		return fmt.Errorf("the box answered neither %s nor ERROR", wire.MessageAccepted)
	case reply.ID != string(t.Box):
		return fmt.Errorf("another peer answers there: %s", id.Quote(reply.ID))
	}
	s.features = s.features.And(reply.Features)
	s.favours, s.seed = reply.Favours, reply.Seed
	if reply.Grant != nil && s.said.granted != nil && s.features.Has(wire.FeatureGrant) {
		s.said.granted(*reply.Grant)
	}
	if s.acks() {
		s.conn.KeepAlive(wire.SessionPing, wire.SilenceLimit)
	} else {
		s.conn.KeepAlive(wire.PingInterval, oldSilence)
	}
	return nil
}

// oldSilence is how long an old box may answer no ping while it writes a file.
const oldSilence = time.Minute

func (s *Session) acks() bool { return s.features.Has(wire.FeatureAck) }

// Old reports whether the box speaks the old protocol and acknowledges nothing.
func (s *Session) Old() bool { return !s.acks() }

// Sent returns the bytes of content written so far.
func (s *Session) Sent() int64 { return s.sent.Load() }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.ended }

// Push sends the file and waits until the box has answered. Outcomes: a Receipt: the box
// serves the file; a *Refusal: it does not and the session goes on; an error that wraps
// ErrSource: nothing was sent; one that wraps ErrClosed: nobody knows; ctx's error: nobody knows, and when the file was not wholly written
// the session is broken off, so that the box cannot take the part for the whole.
func (s *Session) Push(ctx context.Context, f File) (Receipt, error) {
	content, err := f.Open()
	if err != nil {
		return Receipt{}, fmt.Errorf("%w: %w", ErrSource, err)
	}
	defer content.Close()

	h := wire.FileHeader{Path: f.Path, TTL: f.TTL}
	if !s.acks() {
		return s.pushOld(ctx, h, f, content)
	}
	request, answer, err := s.await("")
	if err != nil {
		return Receipt{}, err
	}
	defer s.forget(request)
	h.RequestID, h.Publisher, h.Size, h.Digest = request, id.PublisherID(s.own.ID), f.Size, f.Digest
	if s.features.Has(wire.FeatureGrant) {
		h.Plays = f.Plays
	}
	if s.features.Has(wire.FeatureRelay) {
		h.Relay = f.Relay
	}
	began, err := s.write(ctx, h, f, content)
	if err != nil {
		return Receipt{}, err
	}
	reply, err := s.take(ctx, answer)
	if err != nil {
		return Receipt{}, err
	}
	r, err := receipt(reply, f)
	r.Took = time.Since(began)
	return r, err
}

func receipt(reply any, f File) (Receipt, error) {
	switch reply := reply.(type) {
	case wire.Stored:
		if reply.SHA256 != f.Digest || reply.Size != f.Size {
			return Receipt{}, &Refusal{wire.KindDigest, fmt.Sprintf("the box stored %d bytes with digest %s", reply.Size, reply.SHA256.Short())}
		}
		r := Receipt{Acknowledged: true}
		if reply.Expires > 0 {
			r.Expires = time.Unix(reply.Expires, 0)
		}
		return r, nil
	case wire.Refused:
		return Receipt{}, &Refusal{reply.Kind, reply.Error}
	}
	return Receipt{}, fmt.Errorf("an answer of type %T to a file", reply)
}

// write sends the file when its turn has come, which is when it began.
func (s *Session) write(ctx context.Context, h wire.FileHeader, f File, content io.Reader) (began time.Time, err error) {
	counted := &countingReader{r: content, n: &s.sent, sent: f.Sent}
	if s.uplink != nil {
		limited := s.uplink.Reader(ctx, content, f.Size, s.weight)
		defer limited.Close()
		// Its wait is ours, and says nothing about the box.
		defer func() { began = began.Add(min(limited.Waited(), max(time.Since(began), 0))) }()
		counted.r = limited
	}
	if err := s.conn.WriteFile(ctx, h.AppendTo(nil), counted, f.Size); err != nil {
		if ctx.Err() != nil {
			return began, context.Cause(ctx)
		}
		return began, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return counted.began, nil
}

type countingReader struct {
	r     io.Reader
	n     *atomic.Int64
	sent  func(n int)
	began time.Time // of the first Read
}

func (c *countingReader) Read(b []byte) (int, error) {
	if c.began.IsZero() {
		c.began = time.Now()
	}
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	if c.sent != nil && n > 0 {
		c.sent(n)
	}
	return n, err
}

// pushOld takes "written, and the socket still healthy one ping later" as stored (docs/protocol.md,
// FEATURES).
func (s *Session) pushOld(ctx context.Context, h wire.FileHeader, f File, content io.Reader) (Receipt, error) {
	began, err := s.write(ctx, h, f, content)
	if err != nil {
		return Receipt{}, err
	}
	alive, err := s.conn.Ping()
	if err != nil {
		return Receipt{}, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	select {
	case <-alive:
		r := Receipt{Took: time.Since(began)}
		if f.TTL > 0 {
			r.Expires = time.Now().Add(f.TTL)
		}
		return r, nil
	case <-s.ended:
		return Receipt{}, s.why()
	case <-ctx.Done():
		return Receipt{}, context.Cause(ctx)
	}
}

// Have asks the box for all that it holds of this publisher. An old box is not asked: nil.
func (s *Session) Have(ctx context.Context) ([]wire.HaveFile, error) {
	if !s.acks() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, haveWithin, errHaveSlow)
	defer cancel()
	var files []wire.HaveFile
	for after := ""; ; {
		page, err := s.havePage(ctx, after)
		if err != nil {
			return nil, err
		}
		files = append(files, page.Files...)
		if page.Next == "" || page.Next <= after || len(files) > maxHave {
			return files, nil
		}
		after = page.Next
	}
}

const (
	maxHave      = 1 << 16          // files of one publisher on one box that are looked at
	haveWithin   = 30 * time.Second // for all pages
	awaitingHave = "HAVE"           // one question at a time; its answer has no REQUEST_ID
)

var errHaveSlow = fmt.Errorf("the box did not tell within %v what it holds", haveWithin)

func (s *Session) havePage(ctx context.Context, after string) (wire.HavePageReply, error) {
	_, answer, err := s.await(awaitingHave)
	if err != nil {
		return wire.HavePageReply{}, err
	}
	defer s.forget(awaitingHave)
	if err := s.conn.WriteText(wire.Encode(wire.Have{Peer: s.own, Command: wire.CommandHave, After: after})); err != nil {
		return wire.HavePageReply{}, fmt.Errorf("%w: %w", ErrClosed, err)
	}
	reply, err := s.take(ctx, answer)
	if err != nil {
		return wire.HavePageReply{}, err
	}
	return reply.(wire.HavePageReply), nil
}

// await makes a place for the answer to a request; with an empty name it makes the name too.
func (s *Session) await(request string) (string, chan any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return "", nil, s.err
	}
	if request == "" {
		s.next++
		request = strconv.FormatUint(s.next, 10)
	} else if s.waiting[request] != nil {
		return "", nil, fmt.Errorf("%s is asked already", request)
	}
	answer := make(chan any, 1)
	s.waiting[request] = answer
	return request, answer, nil
}

func (s *Session) forget(request string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, request)
}

func (s *Session) take(ctx context.Context, answer chan any) (any, error) {
	select {
	case reply := <-answer:
		return reply, nil
	case <-s.ended:
		select {
		case reply := <-answer:
			return reply, nil
		default:
			return nil, s.why()
		}
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (s *Session) why() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Session) read() {
	err := s.readAll()
	s.conn.Abort()
	s.mu.Lock()
	s.err = fmt.Errorf("%w: %w", ErrClosed, err)
	s.mu.Unlock()
	close(s.ended)
}

func (s *Session) readAll() error {
	for {
		raw, err := s.conn.ReadText(wire.MaxMessage)
		if err != nil {
			return err
		}
		envelope, err := wire.Decode[wire.Envelope](raw)
		if err != nil {
			return err
		}
		if err := s.handle(envelope, raw); err != nil {
			return err
		}
	}
}

func (s *Session) handle(e wire.Envelope, raw []byte) error {
	switch e.Command {
	case wire.CommandStored:
		m, err := wire.Decode[wire.Stored](raw)
		if err != nil {
			return err
		}
		s.answer(m.RequestID, m)
	case wire.CommandRefused:
		m, err := wire.Decode[wire.Refused](raw)
		if err != nil {
			return err
		}
		s.answer(m.RequestID, m)
	case wire.CommandHave:
		m, err := wire.Decode[wire.HavePageReply](raw)
		if err != nil {
			return err
		}
		s.answer(awaitingHave, m)
	case wire.CommandGoodbye:
		m, err := wire.Decode[wire.Goodbye](raw)
		if err != nil {
			return err
		}
		if s.said.goodbye != nil {
			s.said.goodbye(m)
		}
	case wire.CommandGone:
		m, err := wire.Decode[wire.Gone](raw)
		if err != nil {
			return err
		}
		if s.said.gone != nil {
			s.said.gone(paths(m.FilePaths[:min(len(m.FilePaths), wire.MaxGone)]))
		}
	case wire.CommandGrant:
		m, err := wire.Decode[wire.Grant](raw)
		if err != nil {
			return err
		}
		if s.said.granted != nil {
			s.said.granted(m.Terms)
		}
	default:
		if e.Error != "" && !s.acks() {
			return errors.New(e.Error)
		}
		// A command of a later version, or an ERROR about one of ours: the session goes on.
	}
	return nil
}

// paths leaves out what is none: nothing of ours is called so.
func paths(raw []string) []id.Path {
	var list []id.Path
	for _, text := range raw {
		if p, err := id.ParsePath(text); err == nil {
			list = append(list, p)
		}
	}
	return list
}

func (s *Session) answer(request string, reply any) {
	s.mu.Lock()
	ch := s.waiting[request]
	s.mu.Unlock()
	switch {
	case ch == nil && s.said.answered != nil:
		s.said.answered(reply)
	case ch != nil:
		select {
		case ch <- reply:
		default: // answered twice: the first counts
		}
	}
}

// tell sends a message that has no answer.
func (s *Session) tell(message any) error {
	if err := s.conn.WriteText(wire.Encode(message)); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// Close says goodbye and ends the session.
func (s *Session) Close(reason string) {
	if s.acks() {
		_ = s.conn.WriteText(wire.Encode(wire.Goodbye{Peer: s.own, Command: wire.CommandGoodbye, Reason: reason}))
	}
	s.conn.Close(reason)
}
