package traffic

import (
	"time"

	"dandelion/pkg/wire"
)

// Feed hands the batches to one entrance, in order and one at a time. A batch stays in the journal until
// every feed has it acknowledged.
type Feed struct {
	s    *Service
	name string // for logs

	// Below: under Service.disk.
	acked  int64  // all batches up to this one are acknowledged
	out    *batch // on its way; nil: none
	sent   time.Time
	lost   loss // dropped before it was acknowledged, since the start
	losing bool // it is logged
}

// Feed opens one for an entrance, for which everything in the journal waits. name is for logs. The caller
// closes it.
func (s *Service) Feed(name string) *Feed {
	s.disk.Lock()
	defer s.disk.Unlock()
	f := &Feed{s: s, name: name}
	s.feeds[f] = true
	return f
}

// Close ends the feed: nothing waits for its entrance any more.
func (f *Feed) Close() {
	f.s.disk.Lock()
	defer f.s.disk.Unlock()
	delete(f.s.feeds, f)
	f.s.trim()
}

// Batch is what one report carries.
type Batch struct {
	Deliveries map[string]wire.Delivery
	Traffic    wire.Traffic
}

// Next returns the oldest batch that the entrance has not acknowledged, and finishes the open one where that is it.
// ok is false where there is none, or where one is on its way and has been for less than 20 s.
func (f *Feed) Next() (b Batch, ok bool) {
	s := f.s
	s.disk.Lock()
	defer s.disk.Unlock()
	if f.out != nil && time.Since(f.sent) < resendAfter {
		return Batch{}, false
	}
	for {
		next := s.journal.after(f.acked)
		if next == nil {
			f.out = nil
			return Batch{}, false
		}
		if s.journal.open != nil && next == s.journal.last() {
			s.journal.finish()
		}
		entries, err := s.journal.load(next)
		if err != nil {
			s.cfg.Log.Error("accounts of deliveries cannot be read any more and are dropped", "deliveries", next.count, "bytes", next.bytes, "error", err)
			s.drop(next, ReasonDamaged)
			continue
		}
		f.out, f.sent = next, time.Now()
		return f.batch(next, entries), true
	}
}

func (f *Feed) batch(b *batch, entries []entry) Batch {
	out := Batch{Deliveries: make(map[string]wire.Delivery, len(entries)), Traffic: wire.Traffic{Mark: b.mark}}
	for i := range entries {
		out.Deliveries[f.s.flowKey(b.mark, i)] = entries[i].delivery()
	}
	if b.mark.Boot == f.s.journal.boot { // what was dropped belongs to this life
		out.Traffic.DroppedCount, out.Traffic.DroppedBytes = f.lost.count, f.lost.bytes
	}
	return out
}

// Counted takes the acknowledgement of a batch. One that is not on its way is passed over. more says that
// finished batches wait: the next should go at once.
func (f *Feed) Counted(m wire.Mark) (more bool) {
	s := f.s
	s.disk.Lock()
	defer s.disk.Unlock()
	if f.out == nil || f.out.mark != m {
		return false
	}
	f.acked, f.out, f.losing = f.out.n, nil, false
	s.trim()
	next := s.journal.after(f.acked)
	return next != nil && (s.journal.open == nil || next != s.journal.last())
}

// Broken says that the session ended: what was on its way may not have arrived, and goes again.
func (f *Feed) Broken() {
	f.s.disk.Lock()
	defer f.s.disk.Unlock()
	f.out = nil
}

// Waiting returns how many batches the entrance has not acknowledged.
func (f *Feed) Waiting() (n int) {
	f.s.disk.Lock()
	defer f.s.disk.Unlock()
	for _, b := range f.s.journal.batches {
		if b.n > f.acked {
			n++
		}
	}
	return n
}

// drop notes that a batch is lost for the entrance, unless it has it. disk is held.
func (f *Feed) drop(b *batch, why Reason) {
	if b.n <= f.acked {
		return
	}
	f.lost.add(b)
	if f.out == b {
		f.out = nil // when it was counted all the same, it is dropped and counted
	}
	if why == ReasonFull && !f.losing {
		f.losing = true
		f.s.cfg.Log.Warn("an entrance does not take accounts of deliveries; the oldest are dropped for it", "entrance", f.name,
			"deliveries", b.count, "bytes", b.bytes, "journal_limit", f.s.cfg.MaxBytes)
	}
}

// after returns the first batch behind the n-th; nil: none.
func (j *journal) after(n int64) *batch {
	for _, b := range j.batches {
		if b.n > n {
			return b
		}
	}
	return nil
}

// oldest returns the first batch, unless it still grows; nil: none.
func (j *journal) oldest() *batch {
	if len(j.batches) == 0 || len(j.batches) == 1 && j.open != nil {
		return nil
	}
	return j.batches[0]
}
