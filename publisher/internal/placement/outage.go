package placement

import (
	"log/slog"
	"sync"
	"time"
)

// stillOut is how long a failure lasts before the log says so again.
const stillOut = 5 * time.Minute

// outage keeps a failure that many meet again and again from flooding the log: it is told when it
// begins, now and then while it lasts, and when it is over. The zero value is ready; its methods
// may be called from any goroutine.
type outage struct {
	mu    sync.Mutex
	since time.Time // zero: all is well
	said  time.Time
}

// failed notes one more failure.
func (o *outage) failed(log *slog.Logger, complaint string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.since.IsZero() {
		o.since, o.said = now, time.Time{}
	}
	if now.Sub(o.said) < stillOut {
		log.Debug(complaint, "reason", err)
		return
	}
	o.said = now
	log.Warn(complaint, "reason", err, "since", o.since.Format(time.TimeOnly))
}

// over notes a success.
func (o *outage) over(log *slog.Logger, relief string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		log.Info(relief, "after", time.Since(o.since).Round(time.Millisecond))
		o.since = time.Time{}
	}
}
