package report

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 15 * time.Second
	// steady is how long a session must last before its failure counts as the first one.
	steady = 10 * time.Second
	// maxUnanswered is how many reports may be without reply before the session is given up.
	maxUnanswered = 3
	// forgetAfter is how long an entrance that was learned of, that nobody names any more and that
	// does not answer is tried.
	forgetAfter = 10 * time.Minute
)

// link is one entrance by its URL, and the session with it. Fields below url are under
// Service.mu, except kick.
type link struct {
	s   *Service
	url string

	least    netaddr.Scope // the narrowest address that its host may have
	learned  bool          // from another entrance, not from the configuration
	insecure bool
	kick     chan struct{} // report now

	conn       *wsconn.Conn // while dialled
	connected  bool         // the session's first reply has come
	since      time.Time    // of connected
	lost       time.Time    // when it was connected last; zero: never
	entrance   id.EntranceID
	old        bool   // names no features: dials for each exchange
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
	backoff := wsconn.Backoff{Min: backoffMin, Max: backoffMax}
	began := time.Now()
	for ctx.Err() == nil && !l.s.isDraining() {
		err := l.session(ctx)
		lasted, forget := l.ended(err, began)
		if forget {
			return
		}
		switch {
		case errors.Is(err, errOld):
			if wait(ctx, l.s.cfg.Interval) != nil {
				return
			}
			continue
		case errors.Is(err, errParked):
			if !l.awaitTurn(ctx) {
				return
			}
			continue
		case lasted >= steady:
			backoff.Reset()
		}
		if l.s.waitOrDrain(ctx, backoff.Next()) != nil {
			return
		}
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

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

// session dials, reports and reads replies until the connection ends.
func (l *link) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.s.mu.Lock()
	how := wsconn.Dialing{Least: l.least, InsecureTLS: l.insecure}
	l.s.mu.Unlock()
	conn, err := wsconn.Dial(ctx, l.url, how)
	if err != nil {
		return err
	}
	defer conn.Abort()
	defer context.AfterFunc(ctx, conn.Abort)()
	if !l.opened(conn) {
		return errDraining
	}
	// Reports go out beside the reading, so that a slow entrance does not delay the close.
	written := make(chan error, 1)
	go func() { written <- l.reportLoop(ctx, conn) }()
	err = l.readLoop(conn)
	cancel()
	if writeErr := <-written; writeErr != nil && !errors.Is(writeErr, context.Canceled) {
		return writeErr
	}
	return err
}

// opened notes the connection; false: it is too late for one.
func (l *link) opened(conn *wsconn.Conn) bool {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.s.draining {
		return false
	}
	l.conn, l.unanswered, l.leaving, l.parked = conn, 0, false, false
	return true
}

func (l *link) reportLoop(ctx context.Context, conn *wsconn.Conn) error {
	ticker := time.NewTicker(l.s.cfg.Interval)
	defer ticker.Stop()
	for {
		l.s.mu.Lock()
		leaving, unanswered := l.leaving, l.unanswered
		l.unanswered++
		l.s.mu.Unlock()
		if leaving {
			return nil
		}
		if unanswered >= maxUnanswered {
			conn.Abort()
			return fmt.Errorf("%d reports in a row got no reply", unanswered)
		}
		if err := conn.WriteText(wire.Encode(l.s.exchange(l))); err != nil {
			conn.Abort()
			return fmt.Errorf("reporting: %w", err)
		}
		l.s.metrics.reports.Inc()
		select {
		case <-ticker.C:
		case <-l.kick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *link) readLoop(conn *wsconn.Conn) error {
	for {
		raw, err := conn.ReadText(wire.MaxMessage)
		if err != nil {
			return l.whyEnded(err)
		}
		message, err := wire.Decode[wire.Envelope](raw)
		if err != nil {
			return fmt.Errorf("what the entrance sent is no message: %w", err)
		}
		switch {
		case message.Error != "":
			return fmt.Errorf("the entrance refuses our report: %s", tame(message.Error))
		case message.Command == wire.CommandGoodbye:
			goodbye, _ := wire.Decode[wire.Goodbye](raw)
			l.s.cfg.Log.Info("an entrance says goodbye", "entrance", l.url, "reason", tame(goodbye.Reason))
		case message.Command == wire.CommandExchange:
			reply, err := wire.Decode[wire.ExchangeReply](raw)
			if err != nil {
				return fmt.Errorf("the entrance's reply: %w", err)
			}
			if err := l.replied(conn, reply); err != nil {
				conn.Close("")
				l.readOut(conn)
				return err
			}
		}
	}
}

// readOut reads until the peer has closed too, a second at most, so that the entrance has seen our
// close before another session goes on.
func (l *link) readOut(conn *wsconn.Conn) {
	for {
		if _, _, err := conn.Next(); err != nil {
			return
		}
	}
}

// whyEnded gives an error its reason where it was our own doing.
func (l *link) whyEnded(err error) error {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	if l.parked {
		return errParked
	}
	return err
}

// replied takes a reply. An error ends the session.
func (l *link) replied(conn *wsconn.Conn, reply wire.ExchangeReply) error {
	entrance, err := id.ParseEntranceID(reply.ID)
	if err != nil {
		return fmt.Errorf("the entrance's reply: ID: %w", err)
	}
	if reply.Message != wire.MessageAccepted {
		return fmt.Errorf("the entrance answered neither %s nor ERROR", wire.MessageAccepted)
	}
	s := l.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.leaving {
		return l.leavingError()
	}
	if other := s.owners[entrance]; other != nil && other != l {
		if loser := l.yields(other); loser {
			l.parked, l.entrance = true, entrance
			s.cfg.Log.Info("two URLs lead to one entrance: one session is enough", "entrance", entrance, "kept", other.url, "left", l.url)
			return errParked
		}
		other.parked, other.leaving = true, true
		other.conn.Close("another session")
		s.cfg.Log.Info("two URLs lead to one entrance: one session is enough", "entrance", entrance, "kept", l.url, "left", other.url)
	}
	if l.connected && l.entrance != entrance { // restarted with another identity behind a proxy
		l.disown()
	}
	s.owners[entrance] = l
	first := !l.connected
	l.connected, l.entrance, l.unanswered, l.lastError = true, entrance, 0, ""
	l.lastReply = time.Now()
	l.old = len(reply.Features) == 0
	if first {
		l.since = time.Now()
		s.metrics.connected.Inc()
		if !l.old { // our server pings; an old one does not
			conn.SetSilence(wire.SilenceLimit)
		}
		s.cfg.Log.Info("connected to an entrance", "entrance", entrance, "url", l.url)
	}
	l.takeReach(conn, reply)
	if len(reply.Nonce) <= wire.MaxField && reply.Nonce != "" {
		l.nonce = reply.Nonce
	}
	s.learn(l, reply.EntranceURLs, netaddr.ScopeOf(conn.Remote()))
	s.notify()
	s.cfg.Records.Answered(entrance, map[string]string{
		"ID": reply.ID, "IP": clip(reply.IP), "PORT": clip(string(reply.Port)), "TYPE": clip(reply.Type),
		"COMMAND": wire.CommandExchange, "MESSAGE": reply.Message, "URL": l.url,
	})
	if l.old {
		return errOld
	}
	return nil
}

// yields reports whether this link gives way to another one to the same entrance: what the
// configuration names stays, then what came first.
func (l *link) yields(other *link) bool { return l.learned || !other.learned }

func (l *link) leavingError() error {
	if l.parked {
		return errParked
	}
	return errDraining
}

// takeReach notes what the entrance says of our reachability. s.mu is held.
func (l *link) takeReach(conn *wsconn.Conn, reply wire.ExchangeReply) {
	seen, err := netip.ParseAddr(reply.Address)
	if err == nil && netaddr.ScopeOf(seen) == netaddr.Public {
		l.s.address = seen.Unmap()
	}
	l.reach = reach{
		verdict: reply.Reachable, reason: tame(reply.Reason), old: l.old,
		host: l.s.cfg.Host, port: l.s.cfg.EdgePort, seen: seen.Unmap(), local: conn.LocalAddr(), localPort: l.s.cfg.LocalPort,
	}
	sentence := l.reach.String()
	if sentence == l.sentence {
		return
	}
	l.sentence = sentence
	switch reply.Reachable {
	case wire.ReachableYes:
		l.s.cfg.Log.Info(sentence, "entrance", l.url)
	case wire.ReachableNo:
		l.s.cfg.Log.Warn(sentence, "entrance", l.url)
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

// awaitTurn waits until no other link has the session with the entrance; false: ctx ended.
func (l *link) awaitTurn(ctx context.Context) bool {
	for {
		l.s.mu.Lock()
		free := l.s.owners[l.entrance] == nil
		draining, changed := l.s.draining, l.s.changed
		l.s.mu.Unlock()
		switch {
		case draining || ctx.Err() != nil:
			return false
		case free:
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// leave says goodbye, closes, and waits until the session has ended.
func (l *link) leave(ctx context.Context, reason string, seconds float64) {
	s := l.s
	s.mu.Lock()
	conn, say := l.conn, l.connected && !l.old
	l.leaving = true
	s.mu.Unlock()
	if conn == nil {
		return
	}
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
			conn.Abort()
			return
		}
	}
}

// tame makes text of a peer fit for a log line: one line, printable, short.
func tame(s string) string {
	const limit = 300
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, clipTo(s, limit))
	return strings.TrimSpace(s)
}

func clip(s string) string { return clipTo(s, wire.MaxField) }

func clipTo(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
