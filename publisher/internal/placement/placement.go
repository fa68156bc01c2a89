// Package placement puts copies of files on boxes: it keeps links to the best of them, chooses
// holders for each file, tries again elsewhere when a push fails, places again what a lost box
// held, and records who holds what, in memory first and in Redis behind it.
//
// It does not know how files come to the publisher (source, stream) nor how viewers are
// answered (pkg/front); it tells the front where a file is.
package placement

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/front"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/saving"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/plan"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
	"dandelion/publisher/internal/stream"
)

// Times and limits of placement.
const (
	tick        = 250 * time.Millisecond
	sweepEvery  = time.Second
	giveUpAfter = 30 * time.Second // that a box is down, when others wait for its place
	leastUseful = 2 * time.Second  // a copy that lives shorter is not worth its bytes
	leastPush   = 3 * time.Second  // a live push gets twice the segment's duration, at least this…
	mostPush    = 30 * time.Second
	lostRest    = 3 * time.Second  // before a segment is offered again to boxes that it could not be passed on to
	sourceRest  = 10 * time.Second // before a segment whose own file could not be read is tried again
)

// Fleet is where boxes come from.
type Fleet interface {
	Boxes() []fleet.Box
	Changed() <-chan struct{}
}

// Live is a segment of a stream that should be placed.
type Live struct {
	stream.Segment
	Replicas int    // copies wanted at least
	Placed   func() // called when boxes hold it that can carry its viewers, and again for each further one
}

// Rendition is what there is to know of a stream's rendition.
type Rendition struct {
	Name     string        // "<stream>/<rendition>"
	Rate     float64       // bytes/s, as measured
	Longest  time.Duration // of its segments
	Replicas int
	TTL      time.Duration // of a segment on a box
}

// Config of a placement.
type Config struct {
	Own      push.Own
	MinBoxes int // links that are kept…
	MaxBoxes int // …and that are while viewers need more upload
	Fleet    Fleet
	// Renditions returns what is live now.
	Renditions func() []Rendition
	Audience   *front.Audience
	Saving     *saving.Book // gets what is sent to place copies
	// FirstCopies of each segment are sent by the publisher itself, where boxes pass the others on.
	FirstCopies int
	// Uplink is the publisher's own limit, bytes/s, and Origin how much of it may go to viewers. Uplink 0:
	// not limited; Origin 0: what the first copies leave of Uplink.
	Uplink, Origin float64
	// Window returns the live segments that are worth holding, in any order; those that too few
	// boxes hold are placed again.
	Window func() []Live
	Places *geo.Cache // of boxes of which nobody says where they are; may be nil
	Redis  redis.UniversalClient
	Log    *slog.Logger
}

// Placement places files. Its methods may be called from any goroutine.
type Placement struct {
	cfg     Config
	log     *slog.Logger
	records *Records

	mu      sync.Mutex
	members map[id.BoxID]*member
	jobs    map[id.Path]*job   // live segments under way
	flights map[string]*flight // copies that other boxes pass on, by request
	trials  map[string]trial   // by request
	plan    plan.Plan
	viewers map[string]int              // by rendition, when it was made
	areas   []plan.Area                 // where they were
	far     []plan.Area                 // those of them who had no boxes near them
	recent  map[string][]stream.Segment // the newest of each rendition, oldest first
	doors   map[string]int              // how many more viewers of each rendition boxes have room for; no entry: it is not known
	said    map[string]string           // what was said last of each rendition's upload
	bulk    map[id.Path]int             // files from the queue under way
	resting map[id.Path]time.Time       // segments whose own file could not be read, until when they are left alone
	ownSlow time.Time                   // until then it is the publisher's own line that is slow
	rng     *rand.Rand

	rates    atomic.Pointer[map[string]Rendition] // by name
	crowds   map[string]*crowd                    // replan's
	budgeted map[string]bool                      // renditions whose budget was said; likewise
	watching atomic.Int64
	requests requests
	turns    turns // of pushes, where the publisher's upload is limited

	repair  chan struct{}
	drained chan struct{} // closed when no live push is left, once Drain waits for it; nil before

	placed      atomic.Int64 // segments with a first copy
	sentGone    atomic.Int64 // bytes over links that ended
	undelivered tally[Reason]
}

var errTooSlow = errors.New("the box took longer than the segment may wait")

// job is a live segment that boxes are being asked to hold.
type job struct {
	Live
	tried  map[id.BoxID]bool // asked by a push of ours, holding or failed
	flying int               // pushes queued or under way, and copies that others pass on
	roots  int               // of them pushes to boxes that can pass it on
	copies int               // made by this job
	passed bool              // some of them by other boxes
	relays map[id.BoxID]*flight
	lost   map[id.BoxID]int // copies that were passed on in vain
	slow   bool             // others were sent it because the first takes, or passes it on, too slowly
}

// delivery is a push of ours, with the boxes that its receiver passes the segment on to.
type delivery struct {
	*job
	nodes  []wire.RelayNode
	relays bool // the box can pass it on to others, later

	began   time.Time // since when it is the box that it waits for; zero: it waits for its turn
	doubled bool      // another box was asked beside this one, which is silent or slow
}

// ended notes that a push is neither queued nor under way any more.
func (d *delivery) ended() {
	d.flying--
	if d.relays {
		d.roots--
	}
}

// New returns a placement that has no boxes until Run.
func New(cfg Config) *Placement {
	if cfg.Audience == nil {
		cfg.Audience = front.NewAudience()
	}
	if cfg.Saving == nil {
		cfg.Saving = saving.NewBook(time.Now())
	}
	if cfg.Renditions == nil {
		cfg.Renditions = func() []Rendition { return nil }
	}
	p := &Placement{
		cfg: cfg, log: cfg.Log,
		records:  newRecords(cfg.Own.ID, cfg.Redis, cfg.Log),
		members:  map[id.BoxID]*member{},
		jobs:     map[id.Path]*job{},
		flights:  map[string]*flight{},
		trials:   map[string]trial{},
		said:     map[string]string{},
		crowds:   map[string]*crowd{},
		recent:   map[string][]stream.Segment{},
		budgeted: map[string]bool{},
		bulk:     map[id.Path]int{},
		requests: newRequests(),
		resting:  map[id.Path]time.Time{},
		rng:      rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		repair:   make(chan struct{}, 1),
	}
	p.rates.Store(&map[string]Rendition{})
	return p
}

// Records returns who holds what.
func (p *Placement) Records() *Records { return p.records }

// Run keeps links and copies until ctx ends, then lets pushes that are under way end with it.
func (p *Placement) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() { p.records.run(ctx) })
	group.Go(func() { p.publishRankings(ctx) })
	group.Go(func() { p.keepPlanning(ctx) })
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	swept := time.Now()
	for {
		p.reconcile(ctx, &group)
		p.replace()
		select {
		case <-ctx.Done():
			return nil
		case <-p.cfg.Fleet.Changed():
		case <-p.repair:
		case now := <-ticker.C:
			if now.Sub(swept) >= sweepEvery {
				p.records.sweep(now)
				swept = now
			}
			p.unblock(now)
		}
	}
}

// Drain waits until the live pushes that are queued or under way have come to an end, or ctx has.
// No further segment is placed.
func (p *Placement) Drain(ctx context.Context) error {
	p.mu.Lock()
	drained := make(chan struct{})
	p.drained = drained
	if len(p.jobs) == 0 {
		close(drained)
	}
	p.mu.Unlock()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("segments were still on their way to boxes: %w", context.Cause(ctx))
	}
}

func (p *Placement) wakeRepair() {
	select {
	case p.repair <- struct{}{}:
	default:
	}
}

// Place starts placing a segment. It does not block; what cannot be placed now is tried again
// while the window has it.
func (p *Placement) Place(s Live) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place(s)
}

func (p *Placement) place(s Live) {
	if p.jobs[s.Path] != nil || p.drained != nil {
		return
	}
	p.noteRecent(s.Segment)
	j := &job{Live: s, tried: map[id.BoxID]bool{}, relays: map[id.BoxID]*flight{}, lost: map[id.BoxID]int{}}
	p.jobs[s.Path] = j
	p.spread(j)
}

// pushTo gives a segment to a box to hold, and to pass on. The caller holds the lock.
func (p *Placement) pushTo(j *job, box id.BoxID, nodes []wire.RelayNode) {
	m := p.members[box]
	d := &delivery{job: j, nodes: nodes, relays: p.planMember(m, j).CanPassOn()}
	j.tried[box] = true
	j.flying++
	if d.relays {
		j.roots++
	}
	p.jobs[j.Path] = j
	if late := m.enqueue(d, time.Now()); late != nil {
		p.elsewhere(m, late, ReasonOverflow)
	}
}

// elsewhere gives what waited for a box to another one.
func (p *Placement) elsewhere(m *member, d *delivery, why Reason) {
	p.undelivered.add(why)
	d.ended()
	p.forsake(d.job, m.id)
	p.spread(d.job)
}

// unblock gives what boxes are too slow for, or do not answer about, to others: the oldest
// segments that wait for a box leave it first.
func (p *Placement) unblock(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unlag(now)
	for _, j := range p.jobs {
		p.hurry(j, now)
	}
	for _, m := range p.members {
		for _, d := range m.late(now) {
			p.log.Debug("a box is too slow: its oldest waiting segment goes elsewhere", "box", m.id, "path", d.Path)
			p.elsewhere(m, d, ReasonLate)
		}
		if m.link.Up() {
			p.overtake(m, now)
			continue
		}
		p.release(m)
		for d := range m.pushing { // the box has fallen silent in the middle: another one is asked beside it
			if !d.doubled {
				d.doubled = true
				p.forsake(d.job, m.id)
				p.another(d.job)
			}
		}
	}
}

// replace places the segments of the window that too few boxes hold, newest first.
func (p *Placement) replace() {
	window := p.cfg.Window()
	slices.SortFunc(window, func(a, b Live) int { return b.Complete.Compare(a.Complete) })
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.ContainsFunc(p.ranked(), func(r ranking.Ranked) bool { return r.Excluded == "" }) {
		return
	}
	now := time.Now()
	maps.DeleteFunc(p.resting, func(_ id.Path, until time.Time) bool { return !until.After(now) })
	for _, s := range window {
		if s.Expires.Sub(now) > leastUseful && p.resting[s.Path].IsZero() && (p.copies(s) < s.Replicas || p.lacks(s, now)) {
			p.place(s)
		}
	}
}

// copies counts the boxes that hold the segment and can serve it.
func (p *Placement) copies(s Live) int {
	n := 0
	for _, box := range p.records.holders(s.Path, s.Digest) {
		if m := p.members[box]; m != nil && m.link.Up() && !m.doubts.deaf {
			n++
		}
	}
	return n
}

// ranked returns the members in order. The caller holds the lock.
func (p *Placement) ranked() []ranking.Ranked {
	boxes := make([]ranking.Box, 0, len(p.members))
	for _, m := range p.members {
		boxes = append(boxes, m.ranking())
	}
	return ranking.Score(boxes)
}

// finished notes how a push ended and moves the job on.
func (p *Placement) finished(m *member, d *delivery, file push.File, start time.Time, took time.Duration, err error) {
	j := d.job
	first := err == nil && p.records.add(file, m.id, start, taskFacts{})
	p.mu.Lock()
	m.note(j.Size, took, err)
	if now := time.Now(); !now.Before(p.ownSlow) {
		m.pace(now, j.Duration, took, err)
	}
	delete(m.pushing, d)
	d.ended()
	if isDenied(err) {
		p.deny(m, streamOf(j.Path))
	}
	if err != nil {
		p.undelivered.add(reasonOf(err))
		p.forsake(j, m.id)
	}
	switch {
	case err == nil:
		j.copies++
		m.missed = 0
		p.passesOn(j, m.id, time.Now())
		p.spread(j) // who wants it meanwhile, or has lost it, gets it from this box
	case errors.Is(err, push.ErrSource):
		p.resting[j.Path] = time.Now().Add(sourceRest)
		p.settle(j)
	case d.doubled: // another box was asked beside it
		p.settle(j)
		p.release(m)
	default:
		p.spread(j)
		p.release(m) // the box is left alone for a while: what waits for it does not
	}
	ready := err == nil && p.ready(j)
	p.mu.Unlock()
	switch {
	case err == nil:
		if first {
			p.placed.Add(1)
		}
		if ready {
			j.Placed()
		}
	case errors.Is(err, push.ErrSource):
		p.log.Warn("a segment cannot be placed", "path", j.Path, "reason", err, "again_in", sourceRest)
	default:
		p.log.Info("a push failed; another box is asked", "box", m.id, "path", j.Path, "reason", err)
	}
}

// settle forgets a job of which nothing is queued or under way.
func (p *Placement) settle(j *job) {
	if j.flying == 0 && p.jobs[j.Path] == j {
		delete(p.jobs, j.Path)
		if len(j.lost) > 0 && j.copies > 0 { // what failed now fails in a moment, too
			p.resting[j.Path] = time.Now().Add(lostRest)
		}
		if p.drained != nil && len(p.jobs) == 0 {
			select {
			case <-p.drained:
			default:
				close(p.drained)
			}
		}
	}
}

// abandon gives what waits for a box that is down to others.
func (p *Placement) abandon(m *member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m.down = time.Now()
	p.release(m)
	p.forget(m)
}

func (p *Placement) release(m *member) {
	for _, d := range m.empty() {
		p.elsewhere(m, d, ReasonFailing)
	}
}
