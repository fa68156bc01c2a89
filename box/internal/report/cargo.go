package report

import (
	"context"
	"errors"

	"dandelion/pkg/wire"
)

// cargo is the deliveries that the reports of one session carry.
type cargo struct {
	sent, replies int // reports and replies of the session: each report has its reply, in order

	// To an entrance that does not count by numbers: the batch that is on its way, and with which report.
	mark wire.Mark
	with int // 0: none
}

// openFeed begins to keep deliveries for the entrance, unless it has begun.
func (l *link) openFeed() {
	l.s.mu.Lock()
	has := l.feed != nil
	l.s.mu.Unlock()
	if has || l.s.cfg.Traffic == nil {
		return
	}
	feed := l.s.cfg.Traffic.Feed(l.url) // not under mu: it may wait for a disk
	l.s.mu.Lock()
	l.feed = feed
	l.s.mu.Unlock()
}

func (l *link) closeFeed() {
	l.s.mu.Lock()
	feed := l.feed
	l.feed = nil
	l.s.mu.Unlock()
	if feed != nil {
		feed.Close()
	}
}

// load puts the next batch into a report, where the entrance is known to take one and has taken
// the one before. What it takes is known of this session, of old ones of the session before.
func (l *link) load(x *wire.Exchange) {
	s := l.s
	s.mu.Lock()
	feed, numbers := l.feed, l.connected && l.numbers
	l.cargo.sent++
	report := l.cargo.sent
	may := (l.connected || l.old) && l.cargo.with == 0
	// The original keeps no report that has deliveries: were there some in each, the box would seem to be
	// gone.
	may = may && !(l.old && l.burdened)
	s.mu.Unlock()
	if feed == nil || !may {
		return
	}
	batch, ok := feed.Next()
	if !ok {
		return
	}
	x.Deliveries = batch.Deliveries
	if numbers {
		x.Traffic = &batch.Traffic
		return
	}
	for key, d := range x.Deliveries {
		d.Count, d.Network = 0, ""
		x.Deliveries[key] = d
	}
	s.mu.Lock()
	l.cargo.mark, l.cargo.with = batch.Traffic.Mark, report
	s.mu.Unlock()
}

// accepted notes the reply to a report, of which err says whether the session goes on.
func (l *link) accepted(err error) {
	if err != nil && !errors.Is(err, errOld) {
		return
	}
	l.openFeed()
	s := l.s
	s.mu.Lock()
	l.cargo.replies++
	first, mark := l.cargo.replies == 1, l.cargo.mark
	arrived := l.cargo.with != 0 && l.cargo.replies >= l.cargo.with
	l.burdened = arrived
	if arrived {
		l.cargo.with = 0
	}
	feed := l.feed
	s.mu.Unlock()
	switch {
	case arrived:
		l.counted(mark)
	case first && err == nil && feed != nil && feed.Waiting() > 0:
		l.reportNow()
	}
}

// counted passes an acknowledgement on, and sends what waits behind the batch: all of it where the box is
// about to leave.
func (l *link) counted(mark wire.Mark) {
	s := l.s
	s.mu.Lock()
	feed, old, draining := l.feed, l.old, s.draining
	s.mu.Unlock()
	if feed == nil {
		return
	}
	more := feed.Counted(mark) || draining && feed.Waiting() > 0
	if more && !old { // an old one's session is over
		l.reportNow()
	}
	s.mu.Lock()
	s.notify()
	s.mu.Unlock()
}

func (l *link) reportNow() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// arrivedOrNot notes that the session ended: what was on its way goes again.
func (l *link) arrivedOrNot() {
	l.s.mu.Lock()
	feed := l.feed
	l.s.mu.Unlock()
	if feed != nil {
		feed.Broken()
	}
}

// settle sends what waits for the entrance, until nothing does, the session ends, or ctx does.
func (l *link) settle(ctx context.Context) {
	s := l.s
	s.mu.Lock()
	feed, conn, ready := l.feed, l.conn, l.connected && !l.old
	s.mu.Unlock()
	if feed == nil || !ready {
		return
	}
	l.reportNow()
	for {
		s.mu.Lock()
		ended, changed := l.conn != conn, s.changed
		s.mu.Unlock()
		if ended || feed.Waiting() == 0 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
