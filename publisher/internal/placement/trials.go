package placement

import (
	"math"
	"net/netip"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/saving"
	"dandelion/pkg/wire"
)

// A box that does not know what its line carries grants little, and where a viewer takes more than that it gets
// none and never learns. Trials show it without viewers: the box passes a segment on to another one that holds
// it already, so that nobody waits for it and no copy is made.
const (
	trialEvery = 11 * time.Second // of a box, which lets one transfer in 10 s go ahead of its limit
	mostTrials = 16               // without a word on the line, twice as many as a box needs; then it is left alone…
	trialRest  = 10 * time.Minute // …for so long
	leastTrial = 128 << 10        // bytes; fewer tell a box nothing
	mostTrial  = 4 << 20          // bytes; more take a slow line too long
)

// trials are those of a box. They are guarded by Placement.mu.
type trials struct {
	n    int
	last time.Time
}

// made is how many there were since the last rest.
func (t trials) made(now time.Time) int {
	if now.Sub(t.last) > trialRest {
		return 0
	}
	return t.n
}

// trial is a segment that a box was asked to pass on.
type trial struct {
	to   id.BoxID
	path id.Path
	size int64
	at   time.Time
}

// unmeasured reports whether trials can still tell what the box's line carries.
func (m *member) unmeasured(now time.Time) bool {
	s := m.link.Standing()
	if !math.IsNaN(m.box.Exchange.System.NetCapacity) || !s.Grants || !s.Relays || !maybePublic(m.box.EdgeAddr) {
		return false
	}
	return m.trials.made(now) < mostTrials
}

// tryLines asks boxes whose lines nobody knows for a trial each. The caller holds the lock.
func (p *Placement) tryLines(now time.Time) {
	for request, t := range p.trials {
		if now.Sub(t.at) > lateFor {
			delete(p.trials, request)
		}
	}
	for _, m := range p.members {
		if now.Sub(m.trials.last) < trialEvery || !m.link.Up() || !m.unmeasured(now) {
			continue
		}
		s, to := p.trialOf(m)
		if to == nil {
			continue
		}
		m.trials = trials{m.trials.made(now) + 1, now}
		request := p.requests.name()
		p.trials[request] = trial{to.id, s.Path, s.Size, now}
		file, node := liveFile(s), wire.RelayNode{Box: to.id, ConnectWS: to.box.Exchange.ConnectWS, RequestID: request}
		go func() { _ = m.link.Copy(file, []wire.RelayNode{node}) }() // the box may be slow to take it
	}
}

// trialOf finds a segment that the box holds, the newest of a rendition, and another box across the line that
// holds it too; nil: there is none.
func (p *Placement) trialOf(m *member) (Live, *member) {
	for _, recent := range p.recent {
		for i := len(recent) - 1; i >= 0; i-- {
			s := recent[i]
			if s.Size < leastTrial || s.Size > mostTrial || p.jobs[s.Path] != nil || time.Until(s.Expires) <= leastUseful {
				continue
			}
			var to *member
			holds := false
			for _, box := range p.records.holders(s.Path, s.Digest) {
				other := p.members[box]
				switch {
				case box == m.id:
					holds = true
				case other != nil && other.link.Up() && other.link.Standing().Relays && !p.apart(m.id, box) && acrossLine(m.box.EdgeAddr, other.box.EdgeAddr):
					to = other
				}
			}
			if holds && to != nil {
				return Live{Segment: s}, to
			}
		}
	}
	return Live{}, nil
}

// acrossLine reports whether what one box sends to another goes through the line of its household, as far as
// addresses tell; the zero Addr is a name's.
func acrossLine(from, to netip.Addr) bool {
	return !to.IsValid() || netaddr.CrossesLine(from, to)
}

// maybePublic: the zero Addr is a name's.
func maybePublic(a netip.Addr) bool { return !a.IsValid() || netaddr.ScopeOf(a) == netaddr.Public }

// tried takes a box's word that it got what another one passed on for a trial, and reports whether it was one. The
// caller holds the lock.
func (p *Placement) tried(m *member, a wire.Stored) bool {
	t, ok := p.trials[a.RequestID]
	if ok && t.to == m.id {
		delete(p.trials, a.RequestID)
		p.cfg.Saving.Of(t.path).Add(saving.Bytes{Relayed: t.size}, time.Now())
	}
	return ok
}
