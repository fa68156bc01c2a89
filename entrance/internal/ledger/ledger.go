// Package ledger keeps an entrance's accounts of traffic: what boxes say that they delivered, and where
// publishers say that they sent viewers, by box, publisher, stream and hour (docs/protocol.md, traffic). It
// counts each batch exactly once, also when it is sent again, with several processes on one Redis, and
// when either side restarts; and it compares what boxes claim with what publishers say.
//
// It must not know sockets, nor how leases are kept.
package ledger

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// Config is what a Ledger needs to know.
type Config struct {
	ID id.EntranceID
	// Keep is how long accounts are kept, at least a day.
	Keep time.Duration
	// Knows reports whether the entrance knows the box. Redirects to another one count only where
	// it has accounts.
	Knows func(id.BoxID) bool
}

// Ledger is the accounts of one entrance. Its methods may be called concurrently. It is inert until Run:
// batches wait until then.
type Ledger struct {
	cfg     Config
	keys    keys.Entrance
	state   *state.State
	log     *slog.Logger
	metrics metrics
	queue   queue
	answers sync.WaitGroup // of goroutines that tell peers
	failing atomic.Bool    // a failure was logged and no success since
	loaded  bool           // Redis has the scripts; runWriter's alone
	now     func() time.Time

	claims  atomic.Pointer[claims]
	reading chan struct{} // a place for each reader of accounts
}

// New returns the ledger over st.
func New(cfg Config, st *state.State, log *slog.Logger, reg prometheus.Registerer) *Ledger {
	l := &Ledger{
		cfg: cfg, keys: keys.Entrance(cfg.ID), state: st, log: log, now: time.Now,
		reading: make(chan struct{}, readers),
	}
	l.queue.init()
	l.claims.Store(&claims{})
	l.metrics.register(reg, l)
	return l
}

// Run counts what Deliveries and Redirects took until ctx ends, then what is left for a moment. It returns
// nil.
func (l *Ledger) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.runWriter(ctx) })
	wg.Go(func() { l.runClaims(ctx) })
	wg.Wait()
	l.answers.Wait()
	return nil
}

// clockUnset is a time before which no clock that was ever set can be. Nothing is counted by such a
// clock: it would be in the wrong hour, and gone soon.
var clockUnset = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)

// Deliveries takes the deliveries of a report of an accepted box. It does not wait. With traffic they
// are a numbered batch; counted is called, from a goroutine of its own, when that is durably in the
// accounts. It is not called when the batch was not taken or could not be counted: the box sends it again.
// Without traffic (nil) they are known by their keys and counted is not used.
func (l *Ledger) Deliveries(box id.BoxID, deliveries map[string]wire.Delivery, traffic *wire.Traffic, counted func()) {
	now := l.now()
	if now.Before(clockUnset) {
		l.metrics.dropped[dropClock].Inc()
		return
	}
	if traffic == nil {
		l.keyed(box, deliveries, now)
		return
	}
	p := &part{
		box: box, source: traffic.Boot, seq: traffic.Seq, arrived: now,
		droppedBytes: bounded(traffic.DroppedBytes), droppedCount: bounded(traffic.DroppedCount),
		cells: make(map[cell]*Sums),
	}
	at := hours{arrived: now, keep: l.cfg.Keep}
	for _, d := range deliveries {
		sums, why := sumsOf(&d, true)
		if why != "" {
			l.metrics.refused[why].Inc()
			continue
		}
		publisher, stream := placeOf(d.URL)
		hour := at.of(d.Datetime)
		p.add(cell{hour, publisher, stream}, &sums)
		if arrived := hourOf(now); hour < arrived-claimHours {
			p.add(cell{hour: arrived, publisher: publisher}, &Sums{LateBytes: sums.Bytes})
		}
	}
	if !l.queue.put(&job{key: string(box), parts: []*part{p}, counted: counted}, false) {
		l.metrics.dropped[dropFull].Inc()
	}
}

// keyed takes deliveries of an old box. Their datetime is in a zone that nobody knows, and they are
// seconds old: they count in the hour of their arrival.
func (l *Ledger) keyed(box id.BoxID, deliveries map[string]wire.Delivery, now time.Time) {
	lines := make([]line, 0, len(deliveries))
	at, prefix := hourOf(now), keys.Box(box).TrafficFlow("")
	for key, d := range deliveries {
		sums, why := sumsOf(&d, false)
		name := strings.TrimPrefix(key, prefix)
		if len(name) > longestKey {
			why = refusedKey
		}
		if why != "" {
			l.metrics.refused[why].Inc()
			continue
		}
		publisher, stream := placeOf(d.URL)
		c := cell{at, publisher, stream}
		lines = append(lines, line{key: name, prefix: c.prefix(), bytes: sums.Bytes, failed: sums.Failed > 0})
	}
	if len(lines) == 0 {
		return
	}
	left := l.queue.putLines(&job{key: "keys:" + string(box), parts: []*part{{box: box, arrived: now, lines: lines}}})
	if left > 0 {
		l.metrics.dropped[dropFull].Inc()
	}
}

// Redirects takes where a publisher sent viewers, which must be of one batch. It does not wait; counted is as
// that of Deliveries. Entries that name no box, or one that is not known here, do not count.
func (l *Ledger) Redirects(publisher id.PublisherID, mark wire.Mark, boxes []wire.Redirected, counted func()) {
	now := l.now()
	if now.Before(clockUnset) {
		l.metrics.dropped[dropClock].Inc()
		return
	}
	parts := make(map[id.BoxID]*part)
	j := &job{key: string(publisher), counted: counted}
	for _, r := range boxes[:min(len(boxes), wire.MaxRedirects)] {
		if why := checkRedirected(&r); why != "" {
			l.metrics.refused[why].Inc()
			continue
		}
		p := parts[r.Box]
		if p == nil {
			p = &part{
				box: r.Box, source: string(publisher) + ":" + mark.Boot, seq: mark.Seq, arrived: now,
				cells: make(map[cell]*Sums), redirects: true, onlyKnown: !l.cfg.Knows(r.Box),
			}
			parts[r.Box] = p
			j.parts = append(j.parts, p)
		}
		p.add(cell{hourOf(now), string(publisher), string(r.Stream)}, &Sums{Redirects: r.Count, RedirectedBytes: r.Bytes})
	}
	if !l.queue.put(j, true) {
		l.metrics.dropped[dropFull].Inc()
	}
}

func checkRedirected(r *wire.Redirected) refusal {
	if _, err := id.ParseBoxID(string(r.Box)); err != nil {
		return refusedName
	}
	if r.Stream != "" {
		if _, err := id.ParseStreamName(string(r.Stream)); err != nil {
			return refusedName
		}
	}
	switch {
	case r.Count < 0 || r.Count > maxLineCount:
		return refusedCount
	case r.Bytes < 0 || r.Bytes > maxLineBytes:
		return refusedSize
	}
	return ""
}

func bounded(n int64) int64 { return max(0, min(n, maxSum)) }
