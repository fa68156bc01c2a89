package push

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Times of a link.
const (
	firstRetry  = 250 * time.Millisecond
	lastRetry   = 3 * time.Second  // a box that is back is used again soon; one that no entrance names is given up
	steadyAfter = 10 * time.Second // a session this old makes the next retry quick again
	openWithin  = 5 * time.Second  // for a session, or the next attempt
	bulkIdle    = 30 * time.Second
)

// Class says which of a link's two sessions a file takes, so that no bulk file delays a live one.
type Class int

const (
	Live Class = iota
	Bulk
)

// Events tell what happens to a link. They are called from goroutines of the link, and must not
// block for long.
type Events struct {
	// Holds, just before Up: what the box says it holds. No push is under way then, so that nothing
	// stored after the answer is missing from it. Not called for an old box.
	Holds func(have []wire.HaveFile)
	// Up: a session was accepted; have is what the box says it holds (nil from an old box).
	Up func(have []wire.HaveFile)
	// Down: the session ended, or the box announced that it leaves. A session that this side broke
	// off is opened again without it.
	Down func(reason string)
	// Gone: files that the box held went before their time.
	Gone func(paths []id.Path)
	// Answered: what became of a file that another box was to pass on to this one, or this one to an
	// old one: a wire.Stored or wire.Refused with the RequestID of its wire.RelayNode. nil: nobody asks.
	Answered func(answer any)
}

// Link keeps a live session with one box, dialling again when it ends, and opens a second one
// for bulk files when they come.
type Link struct {
	target Target
	own    Own
	events Events
	log    *slog.Logger

	mu       sync.Mutex
	live     *Session  // nil while there is none
	leaving  bool      // the box said goodbye
	reopen   time.Time // until then a session that this side broke off is opened again, and the box counts as up
	bulk     *Session
	bulkUse  int
	bulkEnd  *time.Timer
	ended    bool  // Run has
	sentGone int64 // content bytes of sessions that ended
	terms    wire.Terms
	termsAt  time.Time

	bulkOpen sync.Mutex // one goroutine opens the bulk session
}

// NewLink returns a link that is down until Run.
func NewLink(t Target, own Own, events Events, log *slog.Logger) *Link {
	return &Link{target: t, own: own, events: events, log: log.With("box", t.Box)}
}

// Target returns what the link dials.
func (l *Link) Target() Target { return l.target }

// Up reports whether the box is there: it has a session and gave a sign of life of late. A box
// that nobody unplugged may fall silent for a moment; it is up again with its next ping.
func (l *Link) Up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.leaving:
		return false
	case l.live == nil:
		return time.Now().Before(l.reopen)
	}
	return l.live.Old() || l.live.conn.Unheard() < wire.DoubtAfter
}

// Old reports whether the box speaks the old protocol. It is only known while the link is up.
func (l *Link) Old() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live != nil && l.live.Old()
}

// Sent returns the bytes of content written to the box so far, failed attempts included.
func (l *Link) Sent() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	sent := l.sentGone
	for _, s := range []*Session{l.live, l.bulk} {
		if s != nil {
			sent += s.Sent()
		}
	}
	return sent
}

// Run keeps the session until ctx ends; then it says goodbye.
func (l *Link) Run(ctx context.Context) {
	defer l.closeBulk(false) // also when the live session was down at the end
	retry := wsconn.Backoff{Min: firstRetry, Max: lastRetry}
	said := ""
	for ctx.Err() == nil {
		opened := time.Now()
		err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errBrokenOff) {
			continue
		}
		if time.Since(opened) > steadyAfter {
			retry.Reset()
			said = ""
		}
		if text := err.Error(); text != said { // once, not at every retry
			l.log.Warn("no session with the box; trying again until it answers", "reason", text)
			said = text
		}
		if retry.Wait(ctx) != nil {
			return
		}
	}
}

// errBrokenOff is why a session ended that this side broke off: a file took too long. The box is
// as well as it was a moment ago.
var errBrokenOff = errors.New("a file was given up in the middle")

// session opens a session and keeps it until it ends. The error says why.
func (l *Link) session(ctx context.Context) error {
	l.mu.Lock()
	l.leaving = false
	l.mu.Unlock()
	s, have, err := l.open(ctx)
	l.mu.Lock()
	again := !l.reopen.IsZero()
	l.reopen = time.Time{}
	if err == nil {
		l.live = s
	}
	leaving := l.leaving // it may have said so already
	l.mu.Unlock()
	if err != nil {
		if again {
			l.events.Down(err.Error())
		}
		return err
	}
	if !leaving {
		l.events.Up(have)
	}

	select {
	case <-s.Done():
		err = s.why()
	case <-ctx.Done():
		err = ctx.Err()
		s.Close("the publisher ends")
	}
	l.mu.Lock()
	l.live = nil
	l.sentGone += s.Sent()
	brokenOff := s.conn.GaveUp() && ctx.Err() == nil && !l.leaving && s.conn.Unheard() < wire.DoubtAfter
	if brokenOff {
		l.reopen = time.Now().Add(wire.DoubtAfter - s.conn.Unheard())
	}
	l.mu.Unlock()
	if brokenOff {
		return errBrokenOff
	}
	l.events.Down(err.Error())
	return err
}

func (l *Link) open(ctx context.Context) (*Session, []wire.HaveFile, error) {
	open, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	s, err := Open(open, l.target, l.own, Live, heard{l.left, l.events.Gone, l.granted, l.events.Answered})
	if err != nil {
		return nil, nil, err
	}
	have, err := s.Have(ctx)
	if err != nil {
		s.conn.Abort()
		return nil, nil, err
	}
	if l.events.Holds != nil && !s.Old() {
		l.events.Holds(have)
	}
	return s, have, nil
}

func (l *Link) left(g wire.Goodbye) {
	l.mu.Lock()
	l.leaving = true
	l.mu.Unlock()
	l.log.Info("the box leaves", "reason", g.Reason, "in", g.Finish())
	l.events.Down("the box leaves: " + g.Reason)
}

func (l *Link) granted(t wire.Terms) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.terms, l.termsAt = t, time.Now()
}

// cautious is what an old box is planned with, which grants nothing: 2 Mbit/s.
const cautious = 250_000

// Standing is what a link knows of its box, for plans.
type Standing struct {
	Grant   int64 // bytes/s that may be planned with
	Grants  bool  // the box grants: what it says may be asked for with Demand
	Relays  bool  // it passes files on
	Favours []string
	Seed    int64 // bytes of each favoured stream
}

// Standing returns what the box grants and can. It is nothing while the link is down.
func (l *Link) Standing() Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live == nil {
		return Standing{}
	}
	s := Standing{
		Grant: cautious, Grants: l.live.features.Has(wire.FeatureGrant), Relays: l.live.features.Has(wire.FeatureRelay),
		Favours: l.live.favours, Seed: l.live.seed,
	}
	if s.Grants {
		s.Grant = 0
		if time.Since(l.termsAt) <= l.terms.Lasts() {
			s.Grant = max(l.terms.Rate, 0)
		}
	}
	return s
}

// Demand tells the box how much of its upload could be used, bytes/s.
func (l *Link) Demand(rate int64) error {
	return l.tell(wire.FeatureGrant, func(own wire.Peer) any {
		return wire.Demand{Peer: own, Command: wire.CommandDemand, Rate: rate}
	})
}

// Copy asks the box to pass on a file that it holds. Who should get it answers through
// Events.Answered.
func (l *Link) Copy(f File, nodes []wire.RelayNode) error {
	return l.tell(wire.FeatureRelay, func(own wire.Peer) any {
		return wire.Copy{
			Peer: own, Command: wire.CommandCopy, FilePath: string(f.Path), SHA256: f.Digest,
			TTL: int64(f.TTL / time.Second), Duration: f.Plays.Seconds(), Relay: nodes,
		}
	})
}

func (l *Link) tell(needs wire.Feature, message func(own wire.Peer) any) error {
	l.mu.Lock()
	live := l.live
	l.mu.Unlock()
	if live == nil || !live.features.Has(needs) {
		return ErrClosed
	}
	return live.tell(message(live.own))
}

// Push sends a file over the class's session; see Session.Push for the outcomes. While the
// link is down it fails at once with an error that wraps ErrClosed.
func (l *Link) Push(ctx context.Context, class Class, f File) (Receipt, error) {
	if !l.Up() {
		return Receipt{}, ErrClosed
	}
	l.mu.Lock()
	live := l.live
	l.mu.Unlock()
	if live == nil {
		return Receipt{}, ErrClosed
	}
	if class == Live {
		return live.Push(ctx, f)
	}
	bulk, err := l.openBulk(ctx)
	if err != nil {
		return Receipt{}, err
	}
	defer l.releaseBulk()
	return bulk.Push(ctx, f)
}

func (l *Link) openBulk(ctx context.Context) (*Session, error) {
	l.bulkOpen.Lock()
	defer l.bulkOpen.Unlock()
	if s := l.holdBulk(nil); s != nil {
		return s, nil
	}
	s, err := Open(ctx, l.target, l.own, Bulk, heard{gone: l.events.Gone})
	if err != nil {
		return nil, errors.Join(ErrClosed, err)
	}
	held := l.holdBulk(s)
	if held == nil { // the link ended while it was opened
		s.Close("the publisher ends")
		return nil, ErrClosed
	}
	return held, nil
}

// holdBulk takes the bulk session into use: the one that is open, or fresh where none is. nil when
// there is neither, or the link has ended.
func (l *Link) holdBulk(fresh *Session) *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bulk != nil {
		select {
		case <-l.bulk.Done():
			l.sentGone += l.bulk.Sent()
			l.bulk = nil
		default:
		}
	}
	if l.bulk == nil && !l.ended {
		l.bulk = fresh
	}
	if l.bulk != nil {
		l.bulkUse++
		if l.bulkEnd != nil {
			l.bulkEnd.Stop()
		}
	}
	return l.bulk
}

func (l *Link) releaseBulk() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.bulkUse--; l.bulkUse == 0 {
		l.bulkEnd = time.AfterFunc(bulkIdle, func() { l.closeBulk(true) })
	}
}

// closeBulk ends the bulk session: with onlyIdle unless it is in use, without for good.
func (l *Link) closeBulk(onlyIdle bool) {
	l.mu.Lock()
	if onlyIdle && l.bulkUse > 0 {
		l.mu.Unlock()
		return
	}
	s := l.bulk
	l.bulk, l.ended = nil, l.ended || !onlyIdle
	if s != nil {
		l.sentGone += s.Sent()
	}
	l.mu.Unlock()
	if s != nil {
		s.Close("no more files for now")
	}
}
