package placement

import (
	"context"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Times and limits of keeping what was placed.
const (
	keepInterval = 3 * time.Second
	forgetEvery  = time.Minute
	mostLooks    = 64 // at own files, in one interval
)

// keepAll places files of finished tasks again when boxes that held them are gone, and keeps the
// records honest, until ctx ends.
func (q *Queue) keepAll(ctx context.Context) {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	rests := map[id.Path]rest{}
	var forgot time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		p, now := q.Placement, time.Now()
		up := p.up()
		if now.Sub(forgot) >= forgetEvery {
			p.records.forget(up, now)
			forgot = now
		}
		q.examine(ctx)
		if len(up) > 0 && now.Sub(q.started) >= settleTime { // before, boxes are on their way back
			rests = q.thicken(ctx, up, rests)
		}
	}
}

// thicken places the files again that too few boxes hold. rests are those that were tried
// before; it returns those of the next time.
func (q *Queue) thicken(ctx context.Context, up map[id.BoxID]bool, rests map[id.Path]rest) map[id.Path]rest {
	p, still := q.Placement, map[id.Path]rest{}
	for _, f := range p.records.thin(q.Replicas, up, time.Now()) {
		r := rests[f.Path]
		if !r.due(up, time.Now()) {
			still[f.Path] = r
			continue
		}
		release := p.placing(f.Path)
		if release == nil {
			continue // its copies are on their way
		}
		if err := p.placeOnce(ctx, f, q.Replicas, p.records.facts(f.Path)); err != nil && ctx.Err() == nil {
			q.Log.Warn("a file that lost a holder cannot be placed again yet", "path", f.Path, "reason", err)
		}
		release()
		still[f.Path] = r.after(up, time.Now())
	}
	return still
}

// examine compares what only boxes vouch for with the publisher's own files, where there are any:
// their sizes, and where boxes still contradict each other their digests.
func (q *Queue) examine(ctx context.Context) {
	r := q.Placement.records
	for _, path := range r.doubted(mostLooks) {
		t := task{head: wire.FileHeader{Path: path}}
		file, err := q.open(&t)
		if err != nil {
			continue // the boxes' word is all there is
		}
		if r.sized(path, t.local.Size) {
			if f, err := new(effort).describe(file, &t); err == nil {
				r.settle(path, f.Digest, f.Size)
			}
		}
		file.Close()
		if ctx.Err() != nil {
			return
		}
	}
}
