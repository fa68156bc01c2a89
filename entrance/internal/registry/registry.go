// Package registry owns what an entrance knows of its boxes: the index in memory that every
// request is answered from, and its image in Redis, which all processes of one entrance share
// (docs/protocol.md). Requests never wait for Redis; while it is down the index goes on alone.
//
// It must not know sockets, the choice of boxes for a publisher, nor how reachability is found out.
//
// Lock order: Registry.mu, then writer.mu.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/state"
)

// Limits of the index. A box beyond them is refused with an error that says so.
const (
	MaxBoxes      = 100_000
	MaxPerNetwork = 512 // boxes of one public /24 or /48

	maxGone     = 1_000            // boxes that left, for people to look at
	goneFor     = 10 * time.Minute // how long they are shown
	maxOthers   = 63               // URLs of other entrances; with its own 64, as many as peers look at
	followEvery = time.Second      // how often the registry looks at what other processes wrote
)

// Config is what a Registry needs to know.
type Config struct {
	ID       id.EntranceID
	LeaseTTL time.Duration // how long a report is good for
	// OtherURLs are put into ENTRANCE_URLS at the start; what is there already stays.
	OtherURLs []string
	// OwnURL is never among the others; "" where it is not configured.
	OwnURL string
	// OwnInfo is written to OWN_INFO and refreshed; not empty.
	OwnInfo map[string]string
}

// Registry is the register of boxes. Its methods may be called concurrently. It is inert until
// Run.
type Registry struct {
	cfg     Config
	keys    keys.Entrance
	state   *state.State
	log     *slog.Logger
	clock   clock
	writer  writer
	metrics metrics
	others  atomic.Pointer[[]string]
	follow  follower

	mu       sync.RWMutex
	boxes    map[id.BoxID]*Box
	networks map[netip.Prefix]int // boxes of each public network
	gone     map[id.BoxID]*Box
}

// New returns a registry over st.
func New(cfg Config, st *state.State, log *slog.Logger, reg prometheus.Registerer) *Registry {
	r := &Registry{
		cfg:      cfg,
		keys:     keys.Entrance(cfg.ID),
		state:    st,
		log:      log,
		boxes:    make(map[id.BoxID]*Box),
		networks: make(map[netip.Prefix]int),
		gone:     make(map[id.BoxID]*Box),
	}
	r.clock.start(time.Now(), time.Now())
	r.writer.init()
	r.follow.init()
	r.setOthers(cfg.OtherURLs)
	r.metrics.register(reg, r)
	return r
}

// Run keeps Redis and the index in step until ctx ends, then writes what is left for a moment.
// It returns nil.
func (r *Registry) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { r.runWriter(ctx) })
	wg.Go(func() { r.runFollower(ctx) })
	wg.Wait()
	return nil
}

// Errors of Put.
var (
	ErrTaken = errors.New("this box ID is in use")
	ErrFull  = errors.New("no room for another box")
)

// Put makes or renews the lease of a box: from its return on, the index has it, and b must not be
// changed any more. The caller sets Exchange, ID, Seen, Address, Session and Persistent; Put
// fills in the rest, keeping what is still true of an earlier report.
//
// Errors: ErrTaken when another session is refused the ID (see admit), ErrFull.
func (r *Registry) Put(b *Box) error {
	now := time.Now()
	b.Reported = now
	b.Expires = now.Add(r.cfg.LeaseTTL)
	b.FirstSeen = now
	b.Own = true
	b.GoneWhy = ""
	b.score = scoreOf(r.clock.at(now).Add(r.cfg.LeaseTTL))

	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.boxes[b.ID]
	if old != nil && old.Expires.After(now) {
		if err := admit(old, b); err != nil {
			return err
		}
	}
	if old == nil {
		if err := r.room(b.Seen); err != nil {
			return err
		}
		if left := r.gone[b.ID]; left != nil {
			b.FirstSeen = left.FirstSeen
			delete(r.gone, b.ID)
		}
	}
	b.inherit(old)
	r.set(b)
	r.writer.add(b.ID)
	return nil
}

// admit decides whether a report may take over the lease of old, which has not ended. IDs are
// not authenticated yet, so two sessions may claim one. The newest wins, because a box that
// reconnects cannot wait for its old connection to die; but where the dial-back proved the old one
// to be at its URL, a claim from another address that wants viewers sent to another place is refused
// until the old lease ends: it is an impostor, or a box that moved, which comes back within
// the lease.
func admit(old, claim *Box) error {
	if old.Seen == claim.Seen || old.Reach.State != ReachYes || old.sameURLs(claim) {
		return nil
	}
	return fmt.Errorf("%w: %s is connected from %s and was reached at %s; if that is this box's old address, try again in %d s",
		ErrTaken, old.ID, old.Seen, old.EdgeBase(), int(time.Until(old.Expires).Seconds())+1)
}

// room reports whether another box from that address fits; called with mu held.
func (r *Registry) room(seen netip.Addr) error {
	if len(r.boxes) >= MaxBoxes {
		return fmt.Errorf("%w: this entrance has %d", ErrFull, len(r.boxes))
	}
	if n, public := network(seen); public && r.networks[n] >= MaxPerNetwork {
		return fmt.Errorf("%w: %d boxes of %s are here already", ErrFull, MaxPerNetwork, n)
	}
	return nil
}

func network(a netip.Addr) (netip.Prefix, bool) {
	if netaddr.ScopeOf(a) != netaddr.Public {
		return netip.Prefix{}, false // proxies and test fleets
	}
	return netaddr.Household(a), true
}

// set and unset keep the index and its counts; called with mu held.
func (r *Registry) set(b *Box) {
	r.unset(b.ID)
	b.Locate(b.Address)
	r.boxes[b.ID] = b
	if n, public := network(b.Seen); public {
		r.networks[n]++
	}
}

func (r *Registry) unset(box id.BoxID) *Box {
	old := r.boxes[box]
	if old == nil {
		return nil
	}
	delete(r.boxes, box)
	if n, public := network(old.Seen); public {
		if r.networks[n]--; r.networks[n] == 0 {
			delete(r.networks, n)
		}
	}
	return old
}

// SetReach records how a dial-back of b ended and which address answered (the zero Addr: none),
// if the index still has b with these URLs and in the same session.
func (r *Registry) SetReach(b *Box, reach Reach, answered netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.boxes[b.ID]
	if old == nil || !old.Own || !old.sameURLs(b) || old.Session != b.Session {
		return
	}
	changed := *old
	changed.Reach = reach
	// Other processes read a hash again when its lease has changed (followOthers).
	changed.score = scoreOf(timeOf(old.score).Add(time.Millisecond))
	if answered.IsValid() {
		changed.Address, changed.Answered = answered, true
	}
	r.set(&changed)
	r.writer.add(b.ID)
}

// End ends the lease of a box at once, if it is still held by that session. why is for people.
func (r *Registry) End(box id.BoxID, session uint64, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.boxes[box]; b != nil && b.Own && b.Session == session {
		r.lose(b, why)
	}
}

// lose takes a box out of the index and, when this process holds its lease, out of Redis; called
// with mu held.
func (r *Registry) lose(b *Box, why string) {
	r.unset(b.ID)
	if b.Own {
		if r.writer.crowded() {
			r.writer.keep(func(box id.BoxID) bool { return r.boxes[box] != nil })
		}
		r.writer.add(b.ID)
	}
	left := *b
	left.GoneWhy = why
	left.Expires = time.Now()
	if len(r.gone) >= maxGone {
		r.forgetOldest()
	}
	r.gone[b.ID] = &left
}

// forgetOldest looks at some of those that left, not at all: an attacker who makes boxes come and
// go must not make this slow.
func (r *Registry) forgetOldest() {
	var oldest *Box
	seen := 0
	for _, b := range r.gone {
		if oldest == nil || b.Expires.Before(oldest.Expires) {
			oldest = b
		}
		if seen++; seen == 16 {
			break
		}
	}
	delete(r.gone, oldest.ID)
}

// Get returns what is known of a box, also of one that left within the last 10 minutes: that
// one has GoneWhy.
func (r *Registry) Get(box id.BoxID) (*Box, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b := r.boxes[box]
	if b == nil {
		b = r.gone[box]
	}
	return b, b != nil
}

// Boxes returns all boxes with a lease, in no order. The slice is the caller's; the boxes are
// shared and never changed.
func (r *Registry) Boxes() []*Box {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]*Box, 0, len(r.boxes))
	for _, b := range r.boxes {
		list = append(list, b)
	}
	return list
}

// Gone returns the boxes that left within the last 10 minutes, at most 1,000, in no order.
func (r *Registry) Gone() []*Box {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]*Box, 0, len(r.gone))
	for _, b := range r.gone {
		list = append(list, b)
	}
	return list
}

// OtherURLs returns the URLs of other entrances, sorted. The slice is shared and never changed.
func (r *Registry) OtherURLs() []string { return *r.others.Load() }

// Unwritten returns how many boxes have changes that Redis does not have yet.
func (r *Registry) Unwritten() int { return r.writer.count() }

// RedisAnswers reports whether Redis answered when it was last asked.
func (r *Registry) RedisAnswers() bool { return r.follow.answers.Load() }
