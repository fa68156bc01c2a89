package placement

import (
	"context"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/ranking"
)

// reconcile makes the links fit what the fleet knows: the best MaxBoxes of it. A box that the
// fleet forgot is kept while its link is up.
func (p *Placement) reconcile(ctx context.Context, group *sync.WaitGroup) {
	if ctx.Err() != nil {
		return
	}
	known := map[id.BoxID]fleet.Box{}
	for _, b := range p.cfg.Fleet.Boxes() {
		known[b.ID] = b
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for box, m := range p.members {
		b, ok := known[box]
		switch {
		case !ok && !m.link.Up():
			p.log.Info("a box is gone", "box", box)
			p.drop(box, m)
		case ok && b.Exchange.ConnectWS != m.box.Exchange.ConnectWS:
			p.drop(box, m) // and taken up again below, at its new address
		case ok:
			p.knows(m, b)
		}
	}
	for _, b := range p.newcomers(known) {
		if len(p.members) >= p.wantedBoxes() && !p.missed(b) && !p.makeRoom() {
			continue
		}
		p.members[b.ID] = p.join(ctx, group, b)
	}
}

// makeRoom drops the member that has been down longest, if one was for so long that a newcomer
// is worth more.
func (p *Placement) makeRoom() bool {
	var longest *member
	for _, m := range p.members {
		if !m.link.Up() && time.Since(m.down) > giveUpAfter && (longest == nil || m.down.Before(longest.down)) {
			longest = m
		}
	}
	if longest == nil {
		return false
	}
	p.log.Info("a box that cannot be reached gives its place to another", "box", longest.id)
	p.drop(longest.id, longest)
	return true
}

func (p *Placement) drop(box id.BoxID, m *member) {
	m.cancel()
	p.sentGone.Add(m.link.Sent())
	delete(p.members, box)
	p.release(m)
	p.forget(m)
}

// newcomers returns the boxes without a link, best first.
func (p *Placement) newcomers(known map[id.BoxID]fleet.Box) []fleet.Box {
	var list []ranking.Box
	for box, b := range known {
		if p.members[box] == nil {
			r := rankingBox(b, ranking.Record{})
			r.Distance = p.fromViewers(p.placeOf(b))
			list = append(list, r)
		}
	}
	var boxes []fleet.Box
	for _, r := range ranking.Score(list) {
		boxes = append(boxes, known[r.ID])
	}
	return boxes
}

func (p *Placement) join(ctx context.Context, group *sync.WaitGroup, b fleet.Box) *member {
	ctx, cancel := context.WithCancel(ctx)
	m := &member{
		id: b.ID, box: b, place: p.placeOf(b), distance: p.fromViewers(p.placeOf(b)), cancel: cancel, wake: make(chan struct{}, 1), down: time.Now(),
		pushing: map[*delivery]struct{}{}, doubted: make(chan id.Path, 1), cannot: map[id.BoxID]time.Time{},
	}
	target := push.Target{Box: b.ID, ConnectWS: b.Exchange.ConnectWS, Least: b.Least}
	m.link = push.NewLink(target, p.cfg.Own, push.Events{
		Holds: func(have []wire.HaveFile) { p.records.replaceHoldings(b.ID, have) },
		Up: func(have []wire.HaveFile) {
			p.log.Info("a box is up", "box", b.ID, "address", b.EdgeBase, "holds", len(have), "acknowledges", !m.link.Old())
			m.doubt("")
			p.wakeRepair()
		},
		Gone: func(paths []id.Path) {
			p.log.Debug("a box let files go", "box", b.ID, "files", len(paths))
			p.records.yielded(b.ID, paths)
		},
		Down: func(reason string) {
			p.log.Info("a box is down", "box", b.ID, "reason", reason)
			p.abandon(m)
			p.wakeRepair()
		},
		Answered: func(answer any) { p.answered(m, answer) },
	}, p.log)
	group.Go(func() { m.link.Run(ctx) })
	group.Go(func() { p.work(ctx, m) })
	group.Go(func() { p.probe(ctx, m, b.Least) })
	group.Go(func() { m.demand(ctx) })
	return m
}
