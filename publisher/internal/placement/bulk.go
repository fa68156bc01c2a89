package placement

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

const (
	slowestBulk = 64 << 10         // bytes/s that a bulk push must reach on the whole…
	bulkGrace   = 30 * time.Second // …after so long
)

// round is one attempt at giving a file to so many boxes, each of which is asked at most once.
type round struct {
	push.File
	replicas int
	since    time.Time // its TTL counts from there
	until    time.Time // a copy that goes earlier has to be renewed; zero: none that goes at all will do
	facts    taskFacts

	tried   map[id.BoxID]bool // asked, or holding the file
	copies  int               // on boxes that are up
	refused int               // answers that no box will take the file
	last    error             // the latest failure
}

// askBoxes makes a round: boxes whose copy goes too early are asked first, because that makes no
// further copy, and then others, until there are enough.
func (p *Placement) askBoxes(ctx context.Context, r *round) {
	up := p.up()
	r.tried = map[id.BoxID]bool{}
	for _, box := range p.records.holdersUntil(r.Path, r.Digest, r.until) {
		r.tried[box] = true
		if up[box] {
			r.copies++
		}
	}
	for _, box := range p.records.holders(r.Path, r.Digest) {
		if m := p.member(box); m != nil && up[box] && !r.tried[box] && r.goesOn(ctx) {
			p.askBox(ctx, r, m)
		}
	}
	for r.goesOn(ctx) {
		m := p.chooseBulk(r.tried)
		if m == nil {
			return
		}
		p.askBox(ctx, r, m)
	}
}

func (r *round) goesOn(ctx context.Context) bool {
	return r.copies < r.replicas && r.refused < mostRefusals && !errors.Is(r.last, push.ErrSource) &&
		ctx.Err() == nil && (r.TTL == 0 || time.Since(r.since) < r.TTL)
}

func (p *Placement) askBox(ctx context.Context, r *round, m *member) {
	r.tried[m.id] = true
	err := p.pushBulk(ctx, m, r.File, r.since, r.facts)
	if err == nil {
		r.copies++
		return
	}
	r.last = err
	if refusedForGood(err) {
		r.refused++
	}
	if ctx.Err() == nil {
		p.log.Info("a push failed; another box is asked", "box", m.id, "path", r.Path, "reason", err)
	}
}

// placeOnce makes a round for a file that has its TTL left.
func (p *Placement) placeOnce(ctx context.Context, f push.File, replicas int, facts taskFacts) error {
	r := round{File: f, replicas: replicas, since: time.Now(), facts: facts}
	if f.TTL > 0 {
		r.until = r.since.Add(f.TTL - time.Second) // expiry times are whole seconds
	}
	p.askBoxes(ctx, &r)
	if r.copies > 0 {
		return nil
	}
	return cmp.Or(r.last, ctx.Err(), errNoBox)
}

// placing notes that a file from the queue is being placed; the returned function that it is not.
// nil: somebody else places it.
func (p *Placement) placing(path id.Path) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bulk[path] > 0 {
		return nil
	}
	p.bulk[path]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.bulk, path)
	}
}

// refusedForGood: the box says that no other will take it either.
func refusedForGood(err error) bool {
	return isRefusal(err, wire.KindDigest, wire.KindSize, wire.KindPath, wire.KindMalformed, wire.KindTTL)
}

func isRefusal(err error, kinds ...wire.Kind) bool {
	var r *push.Refusal
	return errors.As(err, &r) && slices.Contains(kinds, r.Kind)
}

func (p *Placement) member(box id.BoxID) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.members[box]
}

func (p *Placement) chooseBulk(tried map[id.BoxID]bool) *member {
	p.mu.Lock()
	defer p.mu.Unlock()
	chosen := ranking.Choose(p.ranked(), 1, tried, p.rng)
	if len(chosen) == 0 {
		return nil
	}
	return p.members[chosen[0]]
}

// allUp reports whether all boxes that are known have a session, as far as MinBoxes allows, and
// so have told what they hold.
func (p *Placement) allUp() bool {
	known := len(p.cfg.Fleet.Boxes())
	return known > 0 && len(p.up()) >= min(known, p.cfg.MinBoxes)
}

func (p *Placement) pushBulk(ctx context.Context, m *member, f push.File, since time.Time, facts taskFacts) error {
	limit := bulkGrace + time.Duration(f.Size/slowestBulk)*time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errTooSlow)
	defer cancel()
	if f.TTL > 0 {
		f.TTL = max((f.TTL - time.Since(since)).Truncate(time.Second), time.Second)
	}
	f.Sent = p.countPlacing(f.Path)
	start := time.Now()
	_, err := m.link.Push(ctx, push.Bulk, f)
	if err != nil {
		p.undelivered.add(reasonOf(err))
	} else {
		p.records.add(f, m.id, start, facts)
	}
	var refusal *push.Refusal
	if !errors.As(err, &refusal) { // that a box wants no such file says nothing about segments
		p.mu.Lock()
		m.waiting += f.Size // note takes it off again
		m.note(f.Size, time.Since(start), err)
		p.mu.Unlock()
	}
	return err
}
