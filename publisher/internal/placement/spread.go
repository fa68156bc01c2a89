package placement

import (
	"errors"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/saving"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/plan"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

// Times of passing on.
const (
	recentSegments = 3                      // the newest of a rendition: what viewers who join ask for. Older ones are not copied for a crowd
	horizon        = 500 * time.Millisecond // what a box is asked to pass on, beside what is live, is at most what it can in so long
	leastLag       = 3 * time.Second        // a copy that is not there so long after its source…
	lagSegments    = 2                      // …or this many times what it plays, comes from somebody else
	relayPatience  = 5 * time.Second        // from when a segment is complete, before the publisher itself sends the replicas that boxes should
	lateFor        = time.Minute            // for which a copy that was given up still counts when it comes
	mostLost       = 2                      // copies passed on to a box in vain before a segment is not sent there again
	cannotFor      = time.Minute            // for which a box is not asked again to pass on to one that it could not reach
)

// flight is a copy that one box passes on to another.
type flight struct {
	job     *job
	box     id.BoxID // that should get it
	from    id.BoxID // that passes it on
	root    id.BoxID // where our push or COPY went
	request string
	since   time.Time // when the root had all; zero: not yet
	began   time.Time
	given   time.Time // up, because it took too long; zero: it is awaited
}

// requests makes names for flights, none of them like that of a run before.
type requests struct {
	run  string
	next *atomic.Uint64
}

func newRequests() requests {
	return requests{strconv.FormatUint(rand.Uint64(), 36), new(atomic.Uint64)}
}

func (r requests) name() string {
	return "r" + r.run + "-" + strconv.FormatUint(r.next.Add(1), 36)
}

// renditionOf is "<stream>/<rendition>" of a live segment.
func renditionOf(path id.Path) string {
	seg, ok := id.ParseSegmentPath(path)
	if !ok {
		return ""
	}
	return string(seg.Stream) + "/" + string(seg.Rendition)
}

// wants returns the boxes that should hold a segment by plan: all of its rendition's while it is
// recent. The caller holds the lock.
func (p *Placement) wants(s Live, now time.Time) []id.BoxID {
	h, planned := p.plan.Holders[renditionOf(s.Path)]
	if !planned || now.Sub(s.Complete) > recentSegments*s.Duration+time.Second {
		return nil
	}
	return h.Boxes
}

// lacks reports whether a box should hold the segment by plan and does not.
func (p *Placement) lacks(s Live, now time.Time) bool {
	wanted := p.wants(s, now)
	if len(wanted) == 0 {
		return false
	}
	holds := map[id.BoxID]bool{}
	for _, box := range p.records.holders(s.Path, s.Digest) {
		holds[box] = true
	}
	for _, box := range wanted {
		if m := p.members[box]; m != nil && m.link.Up() && !holds[box] && !m.denies(streamOf(s.Path), now) {
			return true
		}
	}
	return false
}

// spread gets the segment to the boxes that lack it: those that hold it pass it on, and where none does,
// the publisher sends it to the roots, which do. Where nobody can pass on, it sends replicas itself. The
// caller holds the lock.
func (p *Placement) spread(j *job) {
	now := time.Now()
	if j.Expires.Sub(now) <= leastUseful || p.drained != nil && j.copies > 0 {
		p.settle(j)
		return
	}
	holding, copies := p.holding(j)
	missing := p.missing(j, now)
	switch {
	case len(holding) > 0:
		p.copyOn(j, holding, missing)
	case j.flying == 0 && len(missing) > 0:
		p.pushRoots(j, missing, p.cfg.FirstCopies)
	}
	if short := j.Replicas - copies - j.flying; short > 0 {
		p.replicate(j, holding, short)
	}
	p.settle(j)
}

// replicate finds n more boxes for a segment: boxes that hold it pass it on, or the publisher sends it.
func (p *Placement) replicate(j *job, holding []plan.Member, n int) {
	taken := maps.Clone(j.tried)
	for box := range j.relays {
		taken[box] = true
	}
	chosen := ranking.Choose(p.ranked(), n, p.except(taken, j), p.rng)
	var members []plan.Member
	for _, box := range chosen {
		members = append(members, p.planMember(p.members[box], j))
	}
	switch {
	case len(holding) > 0:
		chosen = p.copyOn(j, holding, members)
		if time.Since(j.Complete) < relayPatience {
			return // they have much to pass on now
		}
	case j.roots >= max(p.cfg.FirstCopies, 1):
		return // who gets it passes it on
	default: // who can pass it on comes first, and suffices
		roots, _ := plan.Roots(members, max(p.cfg.FirstCopies, 1))
		if len(roots) > 0 && roots[0].CanPassOn() {
			chosen = nil
			for _, root := range roots {
				chosen = append(chosen, root.ID)
			}
		}
	}
	for _, box := range chosen {
		if !j.tried[box] { // or it was asked when another one's queue overflowed
			p.pushTo(j, box, nil)
		}
	}
}

// another asks one more box, beside one that has fallen silent.
func (p *Placement) another(j *job) {
	if time.Until(j.Expires) <= leastUseful {
		return
	}
	for _, box := range ranking.Choose(p.ranked(), 1, p.except(maps.Clone(j.tried), j), p.rng) {
		p.pushTo(j, box, nil)
	}
}

// holding returns the boxes that are up and hold the segment, as sources, and how many they are.
func (p *Placement) holding(j *job) (sources []plan.Member, copies int) {
	for _, box := range p.records.holders(j.Path, j.Digest) {
		m := p.members[box]
		if m == nil || !m.link.Up() {
			continue
		}
		j.tried[box] = true
		if m.doubts.deaf {
			continue
		}
		copies++
		if source := p.planMember(m, j); source.Relays && source.Slots > 0 {
			sources = append(sources, source)
		}
	}
	return sources, copies
}

// planMember describes a box for the tree of a segment. Who passes on has a slot as long as it may
// carry one stream at all: a transfer to a box comes before those to viewers.
func (p *Placement) planMember(m *member, j *job) plan.Member {
	b := m.planBox()
	rate := p.rateOf(j)
	slots := plan.Slots(plan.Share*b.Grant, rate)
	if slots == 0 && b.Grant >= rate {
		slots = 1
	}
	return plan.Member{Box: b, Slots: slots}
}

// rateOf is the rate of the segment's rendition, bytes/s.
func (p *Placement) rateOf(j *job) float64 {
	if r, ok := (*p.rates.Load())[renditionOf(j.Path)]; ok && r.Rate > 0 {
		return r.Rate
	}
	return float64(j.Size) / max(j.Duration.Seconds(), 0.1)
}

// missing returns the boxes that should get the segment by plan, and do not yet.
func (p *Placement) missing(j *job, now time.Time) (missing []plan.Member) {
	for _, box := range p.wants(j.Live, now) {
		m := p.members[box]
		if m == nil || !m.link.Up() || m.doubts.deaf || j.tried[box] || j.relays[box] != nil || m.denies(streamOf(j.Path), now) {
			continue
		}
		missing = append(missing, p.planMember(m, j))
	}
	return missing
}

// pushRoots sends the segment to so many roots, which pass it on to the others.
func (p *Placement) pushRoots(j *job, members []plan.Member, n int) {
	roots, rest := plan.Roots(members, max(n, 1))
	below, _ := plan.Forest(roots, rest[:min(len(rest), wire.MaxRelay)], p.apart) // more get copies
	for _, root := range roots {
		if j.tried[root.ID] {
			continue
		}
		p.pushTo(j, root.ID, p.fly(j, root.ID, root.ID, below[root.ID], time.Time{}))
	}
}

// copyOn has the boxes that hold the segment pass it on. It returns the boxes that none of them can
// pass it on to.
func (p *Placement) copyOn(j *job, holding, missing []plan.Member) (left []id.BoxID) {
	if len(missing) == 0 {
		return nil
	}
	for _, list := range [][]plan.Member{holding, missing} {
		for i := range list {
			list[i].Slots = min(list[i].Slots, p.spare(list[i], j))
		}
	}
	below, left := plan.Forest(holding, missing, p.apart)
	for _, source := range holding {
		if len(below[source.ID]) == 0 {
			continue
		}
		m, file := p.members[source.ID], liveFile(j.Live)
		nodes := p.fly(j, source.ID, source.ID, below[source.ID], time.Now())
		go func() { // the box may be slow to take it
			if err := m.link.Copy(file, nodes); err != nil {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.forsake(j, m.id)
				p.settle(j)
			}
		}()
	}
	return left
}

// spare is to how many boxes one can pass the segment on soon, beside what it passes on already.
func (p *Placement) spare(m plan.Member, j *job) int {
	return plan.Slots(plan.Share*m.Grant*horizon.Seconds()-float64(p.members[m.ID].passing)+float64(j.Size)/2, float64(max(j.Size, 1)))
}

// apart reports whether one box could not reach the other lately.
func (p *Placement) apart(parent, child id.BoxID) bool {
	m := p.members[parent]
	return m != nil && time.Since(m.cannot[child]) < cannotFor
}

// fly notes the copies that are passed on below a box, and describes them to it.
func (p *Placement) fly(j *job, root, from id.BoxID, nodes []plan.Node, since time.Time) []wire.RelayNode {
	var list []wire.RelayNode
	for _, n := range nodes {
		m := p.members[n.Box]
		f := &flight{job: j, box: n.Box, from: from, root: root, request: p.requests.name(), since: since, began: time.Now()}
		p.flights[f.request] = f
		j.relays[n.Box] = f
		j.flying++
		m.waiting += j.Size
		if parent := p.members[from]; parent != nil {
			parent.passing += j.Size
		}
		list = append(list, wire.RelayNode{
			Box: n.Box, ConnectWS: m.box.Exchange.ConnectWS, RequestID: f.request, Old: !m.link.Standing().Relays && len(n.Below) == 0,
			Relay: p.fly(j, root, n.Box, n.Below, since),
		})
	}
	return list
}

// passesOn notes that a root has all of the segment: what it passes on must follow.
func (p *Placement) passesOn(j *job, root id.BoxID, now time.Time) {
	for _, f := range j.relays {
		if f.root == root && f.since.IsZero() {
			f.since = now
		}
	}
}

// land ends a flight.
func (p *Placement) land(f *flight) {
	delete(p.flights, f.request)
	delete(f.job.relays, f.box)
	f.job.flying--
	if m := p.members[f.box]; m != nil {
		m.waiting -= f.job.Size
	}
	if m := p.members[f.from]; m != nil {
		m.passing -= f.job.Size
	}
}

// giveUp ends a flight that is awaited no more. It counts all the same when it comes.
func (p *Placement) giveUp(f *flight, now time.Time) {
	p.land(f)
	f.given = now
	p.flights[f.request] = f
}

// forsake gives up what a box was to pass on, and what was to be passed on from there: it gets other
// parents.
func (p *Placement) forsake(j *job, box id.BoxID) {
	for _, f := range j.relays {
		if f.from == box || f.root == box && f.since.IsZero() {
			p.land(f)
			p.forsake(j, f.box)
		}
	}
}

// lose ends a flight that failed, and those below it, and looks for another way.
func (p *Placement) lose(f *flight, why Reason) {
	p.undelivered.add(why)
	p.land(f)
	if f.job.lost[f.box]++; f.job.lost[f.box] >= mostLost {
		f.job.tried[f.box] = true
	}
	p.forsake(f.job, f.box)
	p.spread(f.job)
}

// unlag gives up flights that take too long.
func (p *Placement) unlag(now time.Time) {
	for _, f := range p.flights {
		if !f.given.IsZero() {
			if now.Sub(f.given) > lateFor {
				delete(p.flights, f.request)
			}
			continue
		}
		limit := max(leastLag, time.Duration(lagSegments*float64(f.job.Duration)))
		if f.job.relays[f.from] != nil {
			continue // it has not got it either, and is late itself soon
		}
		late := !f.since.IsZero() && now.Sub(f.since) > limit || now.Sub(f.began) > limit+pushWithin(f.job)
		if late && p.flights[f.request] == f {
			p.log.Info("a segment is not passed on in time; another box is asked to", "box", f.box, "from", f.from, "path", f.job.Path)
			p.blame(f.from, f.box, ReasonLagging)
			p.lose(f, ReasonLagging)
			f.given = now
			p.flights[f.request] = f
		}
	}
}

// forget ends the flights from and to a box that is down.
func (p *Placement) forget(m *member) {
	for _, f := range p.flights {
		if p.flights[f.request] != f || !f.given.IsZero() {
			continue
		}
		switch {
		case f.box == m.id:
			p.lose(f, ReasonFailing)
		case f.from == m.id:
			p.forsake(f.job, m.id)
			p.spread(f.job)
		}
	}
}

// answered takes a box's word on a copy that was passed on: its own, or that of the box that should
// have passed it on.
func (p *Placement) answered(m *member, answer any) {
	switch a := answer.(type) {
	case wire.Stored:
		p.arrived(m, a)
	case wire.Refused:
		p.mu.Lock()
		defer p.mu.Unlock()
		f := p.flights[a.RequestID]
		switch {
		case f == nil || !f.given.IsZero() || f.box != m.id && a.Box != f.box:
		case a.Kind == wire.KindRelay || a.Box != "":
			p.log.Info("a box could not pass a segment on; another one is asked to", "box", f.from, "to", f.box, "path", f.job.Path, "reason", id.Quote(a.Error))
			if f.job.relays[f.from] == nil { // else it may not have got it itself
				p.blame(f.from, f.box, ReasonRelay)
			}
			p.lose(f, ReasonRelay)
		case a.Kind == wire.KindDigest && a.Parent != "":
			p.log.Warn("a box passed other bytes on than it was given", "box", a.Parent, "to", f.box, "path", f.job.Path)
			if parent := p.members[a.Parent]; parent != nil && a.Parent == f.from {
				parent.note(0, 0, errSpoilt)
				p.blame(f.from, f.box, ReasonRefused+"_"+Reason(a.Kind))
			}
			p.lose(f, ReasonRefused+"_"+Reason(a.Kind))
		default:
			err := &push.Refusal{Kind: a.Kind, Text: a.Error}
			p.log.Info("a box does not take what was passed on to it", "box", f.box, "path", f.job.Path, "reason", err)
			m.note(0, 0, err)
			if isDenied(err) {
				p.deny(m, streamOf(f.job.Path))
			}
			f.job.lost[f.box] = mostLost
			p.lose(f, reasonOf(err))
		}
	}
}

var errSpoilt = errors.New("it passed other bytes on than it was given")

// arrived takes the word of a box that it holds what was passed on to it.
func (p *Placement) arrived(m *member, a wire.Stored) {
	p.mu.Lock()
	f := p.flights[a.RequestID]
	if p.tried(m, a) || f == nil || f.box != m.id && (a.Box != f.box || f.from != m.id) || a.SHA256 != f.job.Digest || a.Size != f.job.Size {
		p.mu.Unlock()
		return
	}
	j := f.job
	if f.given.IsZero() {
		p.land(f)
		if parent := p.members[f.from]; parent != nil {
			parent.parent.passed()
		}
	} else {
		delete(p.flights, f.request)
		if again := j.relays[f.box]; again != nil {
			p.land(again) // it is on its way a second time
		}
	}
	j.copies++
	j.passed = true
	p.cfg.Saving.Of(j.Path).Add(saving.Bytes{Relayed: j.Size}, time.Now())
	first := p.records.add(liveFile(j.Live), f.box, f.began, taskFacts{})
	if child := p.members[f.box]; child != nil {
		child.note(0, 0, nil)
		child.missed = 0
	}
	p.passesOn(j, f.root, time.Now())
	p.spread(j)
	ready := p.ready(j)
	p.mu.Unlock()
	if first {
		p.placed.Add(1)
	}
	if ready {
		j.Placed()
	}
}

// ready reports whether viewers may be shown the segment: the boxes that hold it have room for those who
// watch now, or no more will hold it soon.
func (p *Placement) ready(j *job) bool {
	name := renditionOf(j.Path)
	viewers, rate, room, now := p.viewers[name], p.rateOf(j), 0, time.Now()
	for _, box := range p.records.holders(j.Path, j.Digest) {
		if m := p.members[box]; m != nil && m.link.Up() && !m.slowNow(now) {
			room += plan.Slots(float64(m.link.Standing().Grant)-p.plan.Relayed[box], rate)
		}
	}
	return j.flying == 0 || room >= viewers
}

func hasStream(favours []string, rendition string) bool {
	stream, _, _ := strings.Cut(rendition, "/")
	for _, f := range favours {
		if f == "*" || f == stream {
			return true
		}
	}
	return false
}
