package fleet

import (
	"crypto/rand"
	"encoding/hex"
	"maps"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Limits of what waits for one entrance.
const (
	mostRoutes  = 10 * wire.MaxRedirects // boxes and streams whose redirects wait
	mostOffered = 10_000                 // boxes that it is told of
	offeredFor  = time.Hour              // after it named a box last, or viewers were sent there: it names no busy ones
	countedIn   = 30 * time.Second       // or a batch is sent again
)

// Reasons why redirects are not told to an entrance; they label a metric. The list is append-only.
const (
	DropFull     = "full"     // too many boxes and streams wait for the entrance
	DropEntrance = "entrance" // too many entrances: the one that was gone longest is told no more
)

// outbox is what one entrance with FeatureTraffic is to be told of redirects, for the life of the process:
// one batch that was sent and is not acknowledged, and behind it, merged, all that came later. It
// is for any goroutine.
type outbox struct {
	boot string
	used time.Time // for the latest session; Fleet.mu guards it

	mu      sync.Mutex
	offered map[id.BoxID]time.Time // boxes that the entrance named, and when
	waiting map[route]amount
	batch   *wire.Redirects // sent, and not acknowledged; nil: none. It never changes
	seq     int64           // of the last batch
	sent    time.Time       // the batch, over the session that there is now; zero: it was not
	refused bool            // the entrance answered with an ERROR in this session
}

type route struct {
	box    id.BoxID
	stream id.StreamName
}

type amount struct{ count, bytes int64 }

func newOutbox() *outbox {
	var boot [8]byte
	_, _ = rand.Read(boot[:]) // never fails
	return &outbox{boot: hex.EncodeToString(boot[:]), offered: map[id.BoxID]time.Time{}, waiting: map[route]amount{}}
}

// offers notes the boxes that the entrance names.
func (o *outbox) offers(boxes []Box, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.offered, func(_ id.BoxID, at time.Time) bool { return now.Sub(at) > offeredFor })
	for _, b := range boxes {
		if _, known := o.offered[b.ID]; known || len(o.offered) < mostOffered {
			o.offered[b.ID] = now
		}
	}
}

// add takes redirects to boxes that the entrance named, and returns how many found no room.
func (o *outbox) add(list []wire.Redirected, now time.Time) (dropped int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range list {
		key := route{r.Box, r.Stream}
		a, waits := o.waiting[key]
		switch _, offered := o.offered[r.Box]; {
		case !offered:
		case !waits && len(o.waiting) >= mostRoutes:
			dropped += r.Count
		default:
			o.waiting[key] = amount{a.count + r.Count, a.bytes + r.Bytes}
			o.offered[r.Box] = now
		}
	}
	return dropped
}

// opened notes a new session: what was sent over the one before may be lost.
func (o *outbox) opened() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent, o.refused = time.Time{}, false
}

// next returns the batch to send now, nil for none: the one that was sent before, if the session is
// another one, or a new one.
func (o *outbox) next(own wire.Peer, now time.Time) *wire.Redirects {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.refused || o.batch != nil && now.Sub(o.sent) < countedIn:
		return nil
	case o.batch == nil && len(o.waiting) == 0:
		return nil
	case o.batch == nil:
		o.seq++
		o.batch = &wire.Redirects{Peer: own, Command: wire.CommandRedirects, Mark: wire.Mark{Boot: o.boot, Seq: o.seq}}
		for key, a := range o.waiting {
			if len(o.batch.Boxes) == wire.MaxRedirects {
				break
			}
			o.batch.Boxes = append(o.batch.Boxes, wire.Redirected{Box: key.box, Stream: key.stream, Count: a.count, Bytes: a.bytes})
			delete(o.waiting, key)
		}
	}
	o.sent = now
	return o.batch
}

// counted takes an acknowledgement.
func (o *outbox) counted(m wire.Mark) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.batch != nil && m == o.batch.Mark {
		o.batch = nil
	}
}

// refuses notes an ERROR, and reports whether it may be about a batch: it is the first since one was sent
// in this session. The entrance is told no more in it.
func (o *outbox) refuses() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.refused || o.batch == nil || o.sent.IsZero() {
		return false
	}
	o.refused = true
	return true
}

// left returns how many redirects wait.
func (o *outbox) left() (n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, a := range o.waiting {
		n += a.count
	}
	if o.batch != nil {
		for _, r := range o.batch.Boxes {
			n += r.Count
		}
	}
	return n
}

// outbox returns an entrance's, for a new session.
func (f *Fleet) outbox(e id.EntranceID) *outbox {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := f.outboxes[e]
	if o == nil {
		if len(f.outboxes) >= wire.MaxEntranceURLs { // its own ID is all that an entrance has to change
			f.dropOutbox()
		}
		o = newOutbox()
		f.outboxes[e] = o
	}
	o.used = time.Now()
	o.opened()
	return o
}

// dropOutbox forgets an outbox: of those without a session, and there is one, that which was used longest
// ago. f.mu is held.
func (f *Fleet) dropOutbox() {
	var oldest id.EntranceID
	for e, o := range f.outboxes {
		if f.talking[e] == "" && (oldest == "" || o.used.Before(f.outboxes[oldest].used)) {
			oldest = e
		}
	}
	if oldest != "" {
		f.drops[DropEntrance] += f.outboxes[oldest].left()
		delete(f.outboxes, oldest)
	}
}

// collect gives each outbox the redirects since the last time.
func (f *Fleet) collect() {
	if f.cfg.Redirects == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	list, now := f.cfg.Redirects(), time.Now()
	for _, o := range f.outboxes {
		f.drops[DropFull] += o.add(list, now)
	}
}

// Untold is what entrances were not told, or not yet.
type Untold struct {
	Waiting int64            // redirects, those in batches that are not acknowledged included
	Dropped map[string]int64 // redirects since the start, by reason; all reasons are there
}

// Untold returns it, summed over the entrances.
func (f *Fleet) Untold() Untold {
	f.mu.Lock()
	defer f.mu.Unlock()
	u := Untold{Dropped: maps.Clone(f.drops)}
	for _, o := range f.outboxes {
		u.Waiting += o.left()
	}
	return u
}
