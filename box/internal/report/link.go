package report

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dandelion/box/internal/traffic"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	// maxUnanswered is how many reports may be without reply before the session is given up.
	maxUnanswered = 3
	// forgetAfter is how long an entrance that was learned of, that nobody names any more and that
	// does not answer is tried.
	forgetAfter = 10 * time.Minute
)

// link is one entrance by its URL, and the session with it. Fields below url are under
// Service.mu, except kick. No method of feed is called under it.
type link struct {
	s   *Service
	url string

	least    netaddr.Scope // the narrowest address that its host may have
	learned  bool          // from another entrance, not from the configuration
	insecure bool
	kick     chan struct{} // report now

	feed  *traffic.Feed // what waits for the entrance; nil: nothing, as while another URL leads there
	cargo cargo         // of the session

	burdened bool // the last report that was answered carried deliveries, not numbered

	conn       *wsconn.Conn // while dialled
	connected  bool         // the session's first reply has come
	since      time.Time    // of connected
	lost       time.Time    // when it was connected last; zero: never
	entrance   id.EntranceID
	old        bool   // names no features: dials for each exchange
	numbers    bool   // counts numbered deliveries
	parked     bool   // another URL leads to the same entrance
	leaving    bool   // we said goodbye, or close a session in favour of another
	nonce      string // of the session
	names      []string
	unanswered int
	lastReply  time.Time
	lastError  string
	reach      reach
	sentence   string // of reach
}

var (
	errOld    = errors.New("an old entrance: one exchange for each connection")
	errParked = errors.New("another URL leads to the same entrance")
)

// run keeps the session until ctx ends or the link is forgotten.
func (l *link) run(ctx context.Context) {
	retry := newRetry(l.s.cfg.Interval)
	began := time.Now()
	for ctx.Err() == nil && !l.s.isDraining() {
		err := l.session(ctx)
		l.arrivedOrNot()
		lasted, forget := l.ended(err, began)
		if forget {
			l.closeFeed()
			return
		}
		var noDial *dialError
		var wait time.Duration
		switch {
		case errors.Is(err, errOld):
			wait = l.s.cfg.Interval
		case errors.Is(err, errParked):
			l.closeFeed() // the other one has it
			if !l.awaitTurn(ctx, retry) {
				return
			}
			continue
		case errors.As(err, &noDial):
			wait = retry.unreachable()
		default:
			wait = retry.ended(lasted)
		}
		if l.s.waitOrDrain(ctx, wait) != nil {
			return
		}
	}
}

// dialError is the failure of a dial: no entrance, or a proxy without one behind it.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

func (s *Service) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

var errDraining = errors.New("this box is about to leave")

// waitOrDrain waits for d, or returns an error as soon as ctx ends or the box drains.
func (s *Service) waitOrDrain(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		s.mu.Lock()
		draining, changed := s.draining, s.changed
		s.mu.Unlock()
		if draining {
			return errDraining
		}
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// disown forgets that this link has the session with its entrance. s.mu is held.
func (l *link) disown() {
	if l.s.owners[l.entrance] == l {
		delete(l.s.owners, l.entrance)
	}
}

// ended notes the end of a session or of a vain attempt, and says how long the session lasted and
// whether to forget the link. began is when the link was made.
func (l *link) ended(err error, began time.Time) (lasted time.Duration, forget bool) {
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.connected {
		lasted = time.Since(l.since)
		l.lost = time.Now()
		s.metrics.connected.Dec()
	}
	connected := l.connected
	l.conn, l.connected, l.nonce = nil, false, ""
	l.disown()
	defer s.notify()
	if s.draining || errors.Is(err, errOld) {
		return lasted, false
	}
	if l.parked {
		// The entrance may have taken our close for the box's end.
		if owner := s.owners[l.entrance]; owner != nil {
			select {
			case owner.kick <- struct{}{}:
			default:
			}
		}
		l.lastError = ""
		return lasted, false
	}
	s.metrics.failures.Inc()
	text := tame(err.Error())
	if connected || text != l.lastError { // not the same sentence every 15 s
		s.cfg.Log.Warn("no session with an entrance; trying again", "url", l.url, "error", text)
	}
	l.lastError = text
	lastSeen := l.lost
	if lastSeen.IsZero() {
		lastSeen = began
	}
	if l.learned && time.Since(lastSeen) > forgetAfter && !s.named(l.url) {
		s.cfg.Log.Info("an entrance that nobody names any more is forgotten", "url", l.url)
		delete(s.links, l.url)
		return lasted, true
	}
	return lasted, false
}

// awaitTurn waits until no other link has, or soon has again, the session with the entrance; false:
// ctx ended or the box drains.
func (l *link) awaitTurn(ctx context.Context, retry *retry) bool {
	waited := false
	for {
		l.s.mu.Lock()
		free := l.s.owners[l.entrance] == nil
		draining, changed := l.s.draining, l.s.changed
		l.s.mu.Unlock()
		switch {
		case draining || ctx.Err() != nil:
			return false
		case free && waited:
			return true
		case free:
			if l.s.waitOrDrain(ctx, retry.turn()) != nil {
				return false
			}
			waited = true
			continue
		}
		waited = false
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// leave says goodbye, closes, and waits until the session has ended. At the end of ctx it breaks the
// session off, also where a report to an entrance that takes nothing is in the way.
func (l *link) leave(ctx context.Context, reason string, seconds float64) {
	s := l.s
	s.mu.Lock()
	conn, say := l.conn, l.connected && !l.old
	l.leaving = true
	s.mu.Unlock()
	if conn == nil {
		return
	}
	defer context.AfterFunc(ctx, conn.Abort)()
	if say {
		host := s.cfg.Host
		if host == "" {
			host = unspecified
		}
		_ = conn.WriteText(wire.Encode(wire.Goodbye{
			Peer:    wire.Peer{ID: string(s.cfg.Box), IP: host, Port: wire.Text(fmt.Sprint(s.cfg.Port)), Type: wire.TypeBox},
			Command: wire.CommandGoodbye, Reason: reason, Seconds: seconds,
		}))
	}
	conn.Close(reason)
	for {
		s.mu.Lock()
		ended, changed := l.conn != conn, s.changed
		s.mu.Unlock()
		if ended {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
