package placement

import (
	"time"

	"dandelion/pkg/id"
	"dandelion/publisher/internal/plan"
)

// When one box holds all others up: it takes a segment too slowly that no other holds yet, or passes it on too slowly
// while viewers wait for it. The publisher then sends it to others itself, once for each segment.
const (
	clearly    = 4                // times what its pushes took so far is a push that is slow because the box is
	ownSlowFor = 30 * time.Second // for which no box counts as slow after two at once were
)

// moved notes that a push waits for its box from now on, and not for its turn.
func (p *Placement) moved(d *delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.began = time.Now()
}

// behind reports whether a push takes so long that the box is slower than its viewers need, and was not so far.
func (m *member) behind(d *delivery, now time.Time) bool {
	took := now.Sub(d.began)
	if m.doubts.suspected(now) {
		took *= 2 // viewers say so, too
	}
	usual := time.Duration(float64(d.Size) / m.throughput() * float64(time.Second))
	return !d.began.IsZero() && isSlow(d.Duration, took) && took > clearly*usual
}

// overtake asks others beside a box that takes a segment too slowly. When they are slow too, it is the publisher's
// own line, and what is sent twice makes it worse. The caller holds the lock.
func (p *Placement) overtake(m *member, now time.Time) {
	for d := range m.pushing {
		switch {
		case d.doubled || d.copies > 0 || !m.behind(d, now):
		case d.slow: // this box was asked beside another one
			p.ownSlow = now.Add(ownSlowFor)
			for _, other := range p.members {
				other.slow = time.Time{}
			}
		case now.Before(p.ownSlow):
		default:
			d.doubled, d.slow, m.slow = true, true, now.Add(slowFor)
			p.log.Info("a box takes a segment too slowly; others get it beside it", "box", m.id, "path", d.Path, "after", now.Sub(d.began).Round(time.Millisecond))
			p.forsake(d.job, m.id)
			if missing := p.missing(d.job, now); len(missing) > 0 {
				p.pushRoots(d.job, missing, p.cfg.FirstCopies+1) // it is late: two that viewers can share are there sooner
			} else {
				p.another(d.job)
			}
		}
	}
}

// hurry sends a segment to boxes that should have got it passed on, when nobody has got it so far, for too long, and
// those that hold it have no room for all viewers. The caller holds the lock.
func (p *Placement) hurry(j *job, now time.Time) {
	if j.slow || j.copies == 0 || j.passed || j.Expires.Sub(now) <= leastUseful || now.Before(p.ownSlow) || p.ready(j) {
		return
	}
	var waiting []plan.Member
	late := map[id.BoxID]*flight{}
	for box, f := range j.relays {
		m := p.members[box]
		if f.since.IsZero() || !isSlow(j.Duration, now.Sub(f.since)) || m == nil || !m.link.Up() || m.doubts.deaf || j.tried[box] {
			continue
		}
		if from := p.members[f.from]; from != nil && from.doubts.suspected(now) {
			from.slow = now.Add(slowFor) // viewers say so, too
		}
		waiting, late[box] = append(waiting, p.planMember(m, j)), f
	}
	if len(waiting) == 0 {
		return
	}
	j.slow = true
	roots, _ := plan.Roots(waiting, p.cfg.FirstCopies+1)
	for _, root := range roots {
		f := late[root.ID]
		p.log.Info("a segment is passed on too slowly; the box gets it from here", "box", f.box, "from", f.from, "path", j.Path, "after", now.Sub(f.since).Round(time.Millisecond))
		p.giveUp(f, now)
		p.forsake(j, f.box)
		p.pushTo(j, f.box, nil)
	}
}
