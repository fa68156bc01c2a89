package placement

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/publisher/internal/plan"
	"dandelion/publisher/internal/stream"
)

// Times of planning.
const (
	planEvery   = 500 * time.Millisecond
	planPause   = 100 * time.Millisecond // between two plans, however fast viewers come
	demandEvery = time.Second
	demandAgain = 5 * time.Second // it is said again
	leastSeat   = 4 * time.Second // that a viewer who asks for nothing keeps its seat…
	seatFor     = 2.5             // …or so many segments
	moreBoxes   = 10              // links at a time, while upload is short
)

// keepPlanning plans again and again until ctx ends, and at once when viewers come.
func (p *Placement) keepPlanning(ctx context.Context) {
	ticker := time.NewTicker(planEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-p.cfg.Audience.Grown():
		}
		if p.replan(time.Now()) {
			p.wakeRepair()
		}
		select {
		case <-time.After(planPause):
		case <-ctx.Done():
		}
	}
}

// replan makes a new plan, and reports whether a rendition has other holders than before.
func (p *Placement) replan(now time.Time) (changed bool) {
	known := map[string]Rendition{}
	for _, r := range p.cfg.Renditions() {
		if r.Rate > 0 {
			known[r.Name] = r
		}
	}
	p.rates.Store(&known)
	viewers := p.cfg.Audience.Viewers(now, func(name string) time.Duration {
		return max(leastSeat, time.Duration(seatFor*float64(known[name].Longest)))
	})
	var renditions []plan.Rendition
	for name, r := range known {
		c := p.crowds[name]
		if c == nil {
			c = &crowd{}
			p.crowds[name] = c
		}
		w := viewers[name]
		planned := c.planned(w.All, now)
		renditions = append(renditions, plan.Rendition{Name: name, Rate: r.Rate, Viewers: planned, Areas: areasOf(w, planned), Replicas: r.Replicas})
	}
	for name := range p.crowds {
		if _, live := known[name]; !live {
			delete(p.crowds, name)
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	var boxes []plan.Box
	for _, r := range p.ranked() {
		if r.Excluded != "" {
			continue
		}
		m := p.members[r.ID]
		b := m.planBox()
		b.Score = r.Score
		boxes = append(boxes, b)
		standing := m.link.Standing()
		for i := range renditions {
			kept := known[renditions[i].Name]
			if stream, _, _ := strings.Cut(kept.Name, "/"); m.denies(id.StreamName(stream), now) {
				if renditions[i].Refused == nil {
					renditions[i].Refused = map[id.BoxID]bool{}
				}
				renditions[i].Refused[r.ID] = true
			}
			if hasStream(standing.Favours, kept.Name) && kept.Rate*kept.TTL.Seconds() <= float64(standing.Seed) {
				renditions[i].Keep = append(renditions[i].Keep, r.ID)
			}
		}
	}
	all := 0
	p.viewers = map[string]int{}
	for name, w := range viewers {
		p.viewers[name] = w.All
		all += w.All
	}
	p.watching.Store(int64(all))
	p.budget(known)
	p.openDoors(known)
	before := p.planBefore(known)
	p.plan = plan.Make(boxes, renditions, p.cfg.FirstCopies, before)
	for name, h := range p.plan.Holders {
		changed = changed || !slices.Equal(h.Boxes, before.Holders[name].Boxes)
		p.tell(name, p.viewers[name], h)
	}
	p.near(renditions)
	p.tryLines(now)
	for box, m := range p.members {
		m.wanted.Store(int64(math.Ceil(p.plan.Wanted[box])))
	}
	return changed
}

// openDoors reckons how many more viewers of each rendition boxes have room for. Who is new loads the newest
// segments one after another: the one that the fewest boxes hold decides, not the one that is asked for
// first. The caller holds the lock.
func (p *Placement) openDoors(known map[string]Rendition) {
	p.doors = map[string]int{}
	for name, r := range known {
		recent := p.recent[name]
		if len(recent) == 0 {
			continue
		}
		fewest := math.MaxInt
		for i, s := range recent {
			if i == len(recent)-1 && p.jobs[s.Path] != nil {
				continue // it is on its way
			}
			slots := 0
			for _, box := range p.records.holders(s.Path, s.Digest) {
				if m := p.members[box]; m != nil && m.link.Up() && !m.doubts.deaf {
					slots += plan.Slots(plan.Share*float64(m.link.Standing().Grant)-p.plan.Relayed[box], r.Rate)
				}
			}
			fewest = min(fewest, slots)
		}
		if fewest < math.MaxInt {
			p.doors[name] = fewest - p.cfg.Audience.Seated(name)
		}
	}
	maps.DeleteFunc(p.recent, func(name string, _ []stream.Segment) bool { _, live := known[name]; return !live })
}

// noteRecent remembers the newest segments of a rendition.
func (p *Placement) noteRecent(s stream.Segment) {
	name := renditionOf(s.Path)
	list := p.recent[name]
	if slices.ContainsFunc(list, func(other stream.Segment) bool { return other.Path == s.Path || other.Complete.After(s.Complete) }) {
		return
	}
	p.recent[name] = append(list[max(len(list)-recentSegments, 0):], s)
}

// planBefore is the plan that the next one should differ little from. Of a rendition that had none, the
// boxes that hold its newest segment are the holders. The caller holds the lock.
func (p *Placement) planBefore(known map[string]Rendition) plan.Plan {
	before := p.plan
	before.Holders = maps.Clone(before.Holders)
	for name := range known {
		recent := p.recent[name]
		if len(before.Holders[name].Boxes) > 0 || len(recent) == 0 {
			continue
		}
		if before.Holders == nil {
			before.Holders = map[string]plan.Holders{}
		}
		newest := recent[len(recent)-1]
		before.Holders[name] = plan.Holders{Boxes: p.records.holders(newest.Path, newest.Digest)}
	}
	return before
}

// budget says once for each rendition what the publisher's own upload is for, when its bitrate is
// known. The caller holds the lock.
func (p *Placement) budget(known map[string]Rendition) {
	for name := range p.budgeted {
		if _, live := known[name]; !live {
			delete(p.budgeted, name)
		}
	}
	for name, r := range known {
		if p.budgeted[name] {
			continue
		}
		p.budgeted[name] = true
		copies := max(p.cfg.FirstCopies, 1)
		first := r.Rate * float64(copies)
		if p.cfg.Uplink <= 0 {
			p.log.Info("upload of a rendition: publisher.upload_limit is not set, and the line is taken to carry what it must", "rendition", name, "bitrate", rateText(r.Rate), "first_copies", copies, "needs", rateText(first))
			continue
		}
		all := 0.0
		for _, other := range known {
			all += other.Rate * float64(copies)
		}
		left := p.cfg.Uplink - all
		if left < 0 {
			p.log.Error("the renditions need more upload than the publisher has: segments will be late; lower their bitrates, or leave one out",
				"rendition", name, "bitrate", rateText(r.Rate), "first_copies", copies, "upload_limit", rateText(p.cfg.Uplink), "missing", rateText(-left))
			continue
		}
		p.log.Info("upload of a rendition", "rendition", name, "bitrate", rateText(r.Rate), "upload_limit", rateText(p.cfg.Uplink), "first_copies", copies,
			"needs", rateText(first), "left_for_viewers", rateText(left), "viewers_without_boxes", plan.Slots(p.OriginLimit(), r.Rate))
	}
}

// planBox is what a plan needs to know of the box, but for its score.
func (m *member) planBox() plan.Box {
	s, now := m.link.Standing(), time.Now()
	return plan.Box{
		ID: m.id, Household: m.box.Household, Grant: float64(s.Grant), Relays: s.Relays && m.parent.unfitNow(now) == "",
		Slow: m.slowNow(now), Unmeasured: m.unmeasured(now), Place: m.place,
	}
}

// tell says once that a rendition's upload is short, or is not any more.
func (p *Placement) tell(name string, viewers int, h plan.Holders) {
	said := ""
	if h.Short > 0 && viewers > 0 {
		said = "short"
	}
	if p.said[name] == said {
		return
	}
	p.said[name] = said
	if said == "" {
		p.log.Info("boxes have upload for all viewers again", "rendition", name, "viewers", viewers, "holders", len(h.Boxes))
		return
	}
	p.log.Warn("upload is short: more boxes, or boxes with more upload, are needed", "rendition", name, "viewers", viewers, "holders", len(h.Boxes), "short_by", rateText(h.Short), "in", shortText(h.ShortIn))
}

// shortText names the places whose viewers lack upload, those that lack the most first.
func shortText(list []plan.ShortIn) string {
	if len(list) == 0 {
		return "unknown"
	}
	var b strings.Builder
	for i, s := range list {
		if i == mostNamed {
			fmt.Fprintf(&b, " and %d more", len(list)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s %s", s.Area, rateText(s.Short))
	}
	return b.String()
}

const mostNamed = 5

func rateText(bytesPerSecond float64) string {
	return config.BitRate(math.Round(bytesPerSecond*8/1e3) * 1e3).String()
}

// wantedBoxes is how many links are worth having: MinBoxes, and more while upload is short. The caller
// holds the lock.
func (p *Placement) wantedBoxes() int {
	least := max(p.cfg.MinBoxes, min(len(p.members), p.cfg.MaxBoxes))
	if p.plan.Short() > 0 {
		return min(max(least, len(p.members)+moreBoxes), max(p.cfg.MaxBoxes, p.cfg.MinBoxes))
	}
	return least
}

// WantedBoxes is how many boxes entrances are worth asking for: more while viewers lack boxes near them. Any
// goroutine.
func (p *Placement) WantedBoxes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := p.wantedBoxes()
	if len(p.far) > 0 {
		return max(wanted, min(len(p.members)+moreBoxes, p.cfg.MaxBoxes))
	}
	return wanted
}

// demand tells the box how much of its upload could be used, until ctx ends.
func (m *member) demand(ctx context.Context) {
	ticker := time.NewTicker(demandEvery)
	defer ticker.Stop()
	said, at := int64(-1), time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if !m.link.Standing().Grants {
			said = -1
			continue
		}
		wanted := m.wanted.Load()
		if math.Abs(float64(wanted-said)) <= 0.05*float64(said) && time.Since(at) < demandAgain {
			continue
		}
		if m.link.Demand(wanted) == nil {
			said, at = wanted, time.Now()
		}
	}
}

// originRoom reports whether the publisher has upload left for one more viewer of a rate, beside its
// first copies and those whom it serves already.
func (p *Placement) originRoom(rate float64) bool {
	limit := p.OriginLimit()
	if limit == 0 {
		return true
	}
	return p.cfg.Audience.Load("", p.rate)+rate <= limit
}

// OriginLimit is what the publisher itself may send to viewers, bytes/s; 0: as much as they ask for.
func (p *Placement) OriginLimit() float64 {
	switch {
	case p.cfg.Origin > 0:
		return p.cfg.Origin
	case p.cfg.Uplink <= 0:
		return 0
	}
	left := p.cfg.Uplink
	for _, r := range *p.rates.Load() {
		left -= r.Rate * float64(max(p.cfg.FirstCopies, 1))
	}
	return max(left, 1)
}

func (p *Placement) rate(rendition string) float64 { return (*p.rates.Load())[rendition].Rate }

// Patience is how long a segment should wait for boxes before viewers are shown it, in target durations: half of
// one where the publisher can as well serve it itself, longer with a crowd, and nearly as long as viewers
// have buffered where it cannot serve them. Any goroutine.
func (p *Placement) Patience() float64 {
	limit := p.OriginLimit()
	p.mu.Lock()
	defer p.mu.Unlock()
	load, fewest, most := 0.0, math.Inf(1), 0.0
	for name, h := range p.plan.Holders {
		rate := p.rate(name)
		load += float64(h.Viewers) * rate
		fewest, most = min(fewest, few*rate), max(most, rate)
	}
	switch {
	case limit > 0 && (load > limit || most > limit):
		return 2.5
	case load > fewest:
		return 1
	}
	return 0.5
}

// few viewers are better served by the publisher than late.
const few = 3

// Watching is how many viewers watch, or wait for a place.
func (p *Placement) Watching() int { return int(p.watching.Load()) }

// Short is what boxes have no upload for, bytes/s.
func (p *Placement) Short() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan.Short()
}

// Granted is what all boxes grant, bytes/s.
func (p *Placement) Granted() (total float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.members {
		total += float64(m.link.Standing().Grant)
	}
	return total
}

// StreamPlan is what a plan says of a rendition.
type StreamPlan struct {
	Rendition string     `json:"rendition"`
	Watching  int        `json:"watching"` // viewers, those without a place too
	Viewers   int        `json:"viewers"`  // that there is to be room for
	Holders   []id.BoxID `json:"holders"`
	Short     int64      `json:"short"` // bits/s that boxes cannot carry
	ShortIn   []ShortIn  `json:"short_in,omitzero"`
}

// ShortIn is where viewers are whom boxes cannot carry, those first who lack the most.
type ShortIn struct {
	Place string `json:"place"` // such as "TW", or "Bavaria, DE"
	Short int64  `json:"short"` // bits/s
}

// Plans returns what is planned for each rendition, by name.
func (p *Placement) Plans() []StreamPlan {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := []StreamPlan{}
	for name, h := range p.plan.Holders {
		s := StreamPlan{Rendition: name, Watching: p.viewers[name], Viewers: h.Viewers, Holders: h.Boxes, Short: int64(8 * h.Short)}
		for _, in := range h.ShortIn {
			s.ShortIn = append(s.ShortIn, ShortIn{in.Area, int64(8 * in.Short)})
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b StreamPlan) int {
		if a.Rendition < b.Rendition {
			return -1
		}
		return 1
	})
	return list
}
