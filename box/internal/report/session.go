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

// session dials, reports and reads replies until the connection ends.
func (l *link) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.s.mu.Lock()
	how := wsconn.Dialing{Least: l.least, InsecureTLS: l.insecure}
	l.s.mu.Unlock()
	conn, err := wsconn.Dial(ctx, l.url, how)
	if err != nil {
		return &dialError{err}
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
	l.cargo = cargo{}
	return true
}

func (l *link) reportLoop(ctx context.Context, conn *wsconn.Conn) error {
	ticker := time.NewTicker(l.s.cfg.Interval)
	defer ticker.Stop()
	for due := 1; ; { // a report out of turn says nothing of how long the entrance has been silent
		l.s.mu.Lock()
		leaving, unanswered := l.leaving, l.unanswered
		l.unanswered += due
		l.s.mu.Unlock()
		if leaving {
			return nil
		}
		if due == 1 && unanswered >= maxUnanswered {
			conn.Abort()
			return fmt.Errorf("%d reports in a row got no reply", unanswered)
		}
		x := l.s.exchange(l)
		l.load(x)
		if err := conn.WriteText(wire.Encode(x)); err != nil {
			conn.Abort()
			return fmt.Errorf("reporting: %w", err)
		}
		l.s.metrics.reports.Inc()
		select {
		case <-ticker.C:
			due = 1
		case <-l.kick:
			due = 0
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
			err = l.replied(conn, reply)
			l.accepted(err)
			if err != nil {
				conn.Close("")
				l.readOut(conn)
				return err
			}
		case message.Command == wire.CommandCounted:
			counted, err := wire.Decode[wire.Counted](raw)
			if err != nil {
				return fmt.Errorf("the entrance's %s: %w", wire.CommandCounted, err)
			}
			l.counted(counted.Mark)
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
		go other.conn.Close("another session") // may take a second, with which nothing else should wait
		s.cfg.Log.Info("two URLs lead to one entrance: one session is enough", "entrance", entrance, "kept", l.url, "left", other.url)
	}
	if l.connected && l.entrance != entrance { // restarted with another identity behind a proxy
		l.disown()
	}
	s.owners[entrance] = l
	first := !l.connected
	l.connected, l.entrance, l.unanswered, l.lastError = true, entrance, 0, ""
	l.lastReply = time.Now()
	l.old, l.numbers = len(reply.Features) == 0, reply.Features.Has(wire.FeatureTraffic)
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
		tls: l.s.cfg.TLS, host: l.s.cfg.Host, port: l.s.cfg.EdgePort, seen: seen.Unmap(), local: conn.LocalAddr(), localPort: l.s.cfg.LocalPort,
	}
	if reply.Reachable == wire.ReachableNo && l.s.cfg.Advice != nil {
		l.reach.advice = l.s.cfg.Advice()
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
