package placement

import (
	"slices"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// claim is a box's word that it holds other bytes than the record has.
type claim struct {
	holding
	digest id.Digest
	size   int64
}

// replaceHoldings makes the records of a box what the box itself says that it holds. Of paths
// that the publisher knows nothing of the digest that most boxes say counts, until Redis or the
// publisher's own file tell better.
func (r *Records) replaceHoldings(box id.BoxID, have []wire.HaveFile) {
	held := make(map[id.Path]wire.HaveFile, len(have))
	for _, f := range have {
		held[f.FilePath] = f
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.boxes[box] = acquaintance{seen: time.Now(), told: true}
	for path, f := range r.files {
		f.rivals = slices.DeleteFunc(f.rivals, func(c claim) bool { return c.box == box })
		i := f.holdingOf(box)
		if i < 0 {
			continue
		}
		if h, ok := held[path]; !ok || h.SHA256 != f.digest {
			f.holders = slices.Delete(f.holders, i, i+1)
			r.soil(path)
			r.succeed(path, f)
		}
	}
	for path, h := range held {
		c := claim{holding: holding{box: box}, digest: h.SHA256, size: h.Size}
		if h.Expires > 0 {
			c.expires = time.Unix(h.Expires, 0)
		}
		r.claimed(path, c)
	}
}

// claimed takes a box's word for what it holds. The caller holds the lock.
func (r *Records) claimed(path id.Path, c claim) {
	f := r.files[path]
	switch {
	case !mayHold(path, c.digest):
		return // no honest box says so
	case f == nil && len(r.files) >= maxRecords:
		r.forgotten.Add(1)
		return
	case f == nil:
		f = &record{digest: c.digest, size: c.size, first: c.box, sure: path.ContentAddressed()}
		r.files[path] = f
		f.hold(c.holding)
	case f.digest != c.digest && f.sure:
		return // bytes that were replaced since, or never were
	case f.digest != c.digest:
		f.rivals = append(f.rivals, c)
		f.looked = false // now that it is disputed
		r.vote(path, f)
		return
	case f.holdingOf(c.box) >= 0:
		return // until when is known by our own clock
	default:
		f.hold(c.holding)
	}
	r.soil(path)
}

// vote makes the bytes that most boxes hold the record's.
func (r *Records) vote(path id.Path, f *record) {
	votes := map[id.Digest]int{}
	winner := f.digest
	for _, c := range f.rivals {
		if votes[c.digest]++; votes[c.digest] > max(votes[winner], len(f.holders)) {
			winner = c.digest
		}
	}
	if winner != f.digest {
		r.turn(path, f, winner)
	}
}

// succeed lets rivals in when nobody holds the record's own bytes any more.
func (r *Records) succeed(path id.Path, f *record) {
	if len(f.holders) == 0 && len(f.rivals) > 0 {
		r.vote(path, f)
	}
}

// turn makes the record one of other bytes, which rivals hold or nobody.
func (r *Records) turn(path id.Path, f *record, d id.Digest) {
	var rivals []claim
	for _, h := range f.holders {
		rivals = append(rivals, claim{h, f.digest, f.size})
	}
	f.holders, f.digest = nil, d
	for _, c := range f.rivals {
		if c.digest != d {
			rivals = append(rivals, c)
			continue
		}
		if len(f.holders) == 0 {
			f.size, f.first = c.size, c.box
		}
		f.hold(c.holding)
	}
	f.rivals = rivals
	r.soil(path)
}

// certify sets which bytes the path has, for a record that is not sure: what boxes said of others
// does not count. A path that nobody holds these bytes of is forgotten until a box says it does.
func (r *Records) certify(path id.Path, f *record, d id.Digest, size int64) {
	if f.digest != d {
		r.turn(path, f, d)
	}
	r.contradicted.Add(int64(len(f.rivals)))
	f.certain()
	f.size = size
	if len(f.holders) == 0 {
		r.drop(path) // and not from Redis: it knows better than these boxes
		return
	}
	r.soil(path)
}

// doubted returns up to n paths whose bytes only boxes vouch for, and counts them as looked at.
func (r *Records) doubted(n int) []id.Path {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []id.Path
	for path, f := range r.files {
		if len(list) == n {
			break
		}
		if !f.sure && f.asked && !f.looked {
			f.looked = true
			list = append(list, path)
		}
	}
	return list
}

// sized takes the size of the publisher's own file for a path of which only boxes spoke: claims of
// another size do not count. It reports whether boxes contradict each other still.
func (r *Records) sized(path id.Path, size int64) (disputed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.files[path]
	if f == nil || f.sure {
		return false
	}
	before := len(f.rivals)
	f.rivals = slices.DeleteFunc(f.rivals, func(c claim) bool { return c.size != size })
	r.contradicted.Add(int64(before - len(f.rivals)))
	if f.size != size {
		r.contradicted.Add(int64(len(f.holders)))
		f.holders = nil
		r.succeed(path, f)
	}
	if len(f.holders) == 0 {
		r.drop(path)
		return false
	}
	return len(f.rivals) > 0
}

// settle takes the digest of the publisher's own file for a path of which only boxes spoke.
func (r *Records) settle(path id.Path, d id.Digest, size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.files[path]; f != nil && !f.sure {
		r.certify(path, f, d, size)
	}
}

// mayHold reports whether the path can have these bytes: some paths carry their digest.
func mayHold(path id.Path, d id.Digest) bool {
	seg, ok := id.ParseSegmentPath(path)
	return !ok || seg.Short == d.Short()
}
