package door

import (
	"log/slog"
	"time"
)

// waiting is what a session waits for. Each has its limit: to wsconn a peer that pings, or sends a
// byte a second, is alive, and could hold its place for ever without having said anything.
type waiting int32

const (
	forFirst waiting = iota // from the upgrade to the beginning of the first message
	forRest                 // from the beginning of a message to its end
	forNext                 // from a message to the beginning of the next one
	forClose                // from a GOODBYE to the close, or to another message
)

// patience is for how long a session waits, and how that is counted and told when it ends it.
var patience = [...]struct {
	limit  time.Duration
	reason string // metric label
	why    string // for people
}{
	forFirst: {10 * time.Second, "no_message", "it sent no message"},
	forRest:  {30 * time.Second, "slow", "its message took too long"},
	forNext:  {5 * time.Minute, "idle", "it sent nothing but signs of life"},
	forClose: {30 * time.Second, "idle", "it said goodbye and did not close"},
}

// beginWaiting starts the one timer of a session.
func (d *Door) beginWaiting(s *Session) {
	s.patience = time.AfterFunc(patience[forFirst].limit, func() {
		what := waiting(s.waits.Load())
		s.cutOff.Store(true)
		d.metrics.refused.WithLabelValues(patience[what].reason).Inc()
		d.log.Debug("session cut off", slog.Any("remote", s.Remote), slog.String("why", patience[what].why))
		s.conn.Load().Abort()
	})
}

// wait sets what the session waits for from now on.
func (s *Session) wait(what waiting) {
	s.waits.Store(int32(what))
	s.patience.Reset(patience[what].limit)
}
