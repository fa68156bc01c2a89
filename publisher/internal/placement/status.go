package placement

import (
	"time"

	"dandelion/pkg/id"
)

// Boxes returns the members in the order of their rank.
func (p *Placement) Boxes() []BoxStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []BoxStatus
	for _, r := range p.ranked() {
		m := p.members[r.ID]
		used := p.plan.Uses[r.ID]
		list = append(list, BoxStatus{
			ID: r.ID, EdgeURL: m.box.EdgeBase, Score: r.Score, Excluded: r.Excluded, Up: m.link.Up(), Old: m.link.Old(), Sent: m.link.Sent(), Waiting: len(m.queue),
			Grant: m.link.Standing().Grant, Relays: int64(used.Relayed), Viewers: p.cfg.Audience.Seats(r.ID),
			Unfit: m.parent.unfitNow(time.Now()),
		})
	}
	return list
}

// BoxStatus is what the API tells of a box.
type BoxStatus struct {
	ID       id.BoxID `json:"id"`
	EdgeURL  string   `json:"edge_url"`
	Score    float64  `json:"score"`
	Excluded string   `json:"excluded,omitempty"` // why nothing is sent there now
	Up       bool     `json:"up"`
	Old      bool     `json:"old_protocol,omitempty"`
	Sent     int64    `json:"sent_bytes"`
	Waiting  int      `json:"waiting"`
	Grant    int64    `json:"grant"`  // bytes/s of its upload that may be planned with
	Relays   int64    `json:"relays"` // bytes/s of it that are planned for passing on
	// Viewers sit at the box, by rendition.
	Viewers map[string]int `json:"viewers,omitempty"`
	// Unfit is why the box is not asked to pass segments on for a while.
	Unfit Reason `json:"unfit_to_relay,omitempty"`
}

// Up returns how many boxes files can be pushed to now.
func (p *Placement) Up() int { return len(p.up()) }

func (p *Placement) up() map[id.BoxID]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	up := map[id.BoxID]bool{}
	for box, m := range p.members {
		if m.link.Up() {
			up[box] = true
		}
	}
	return up
}

// Totals counts since the start.
type Totals struct {
	Placed      int64            `json:"segments_placed"` // segments with a first copy
	Sent        int64            `json:"placing_bytes"`   // content bytes sent to boxes, failed attempts included
	Undelivered map[Reason]int64 `json:"undelivered"`     // files that a chosen box did not get
}

// Totals returns what was done since the start.
func (p *Placement) Totals() Totals {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := Totals{Placed: p.placed.Load(), Sent: p.sentGone.Load(), Undelivered: p.undelivered.all(reasons())}
	for _, m := range p.members {
		t.Sent += m.link.Sent()
	}
	return t
}
