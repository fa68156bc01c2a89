package watch

import (
	"context"
	"crypto/sha256"
	"net/url"
	"time"

	"dandelion/pkg/playlist"
)

const startTargets = 3 // begin so many target durations before the end (RFC 8216 section 6.3.3)

// track follows one media playlist and fetches its segments in order.
type track struct {
	player  *Player
	index   int
	url     *url.URL
	changed chan struct{} // holds one: the playlist changed

	// Of the goroutine that reloads:
	known    bool
	end      uint64 // behind the newest segment seen
	ended    bool
	due      time.Time // when it is loaded again; zero: now
	failures int       // in a row
	lost     *failure  // since when it cannot be loaded; nil: it can

	// Guarded by player.mu:
	media      *playlist.Media // the last that could be loaded
	base       *url.URL
	generation int // counts new starts of the stream

	// Of the goroutine that fetches:
	started bool
	next    uint64 // MEDIA-SEQUENCE number
	seen    int    // generation
	has     []need // that were fetched last
	pace    pace
	sum     [sha256.Size]byte // of the segment before
	played  history
}

func newTrack(p *Player, index int, u *url.URL) *track {
	return &track{player: p, index: index, url: u, changed: make(chan struct{}, 1), played: history{}}
}

// item is a segment as a playlist had it.
type item struct {
	playlist.Entry
	number     uint64
	generation int
	base       *url.URL
	target     int
}

// run fetches until all is fetched or ctx ends.
func (t *track) run(ctx context.Context) {
	for {
		it, ok := t.await(ctx)
		if !ok {
			break
		}
		t.play(ctx, it)
		if ctx.Err() != nil || t.waitForRoom(ctx) != nil {
			break
		}
	}
	if ctx.Err() == nil {
		t.player.change(func(c *clock) turn { return c.finish(t.index, time.Now()) })
	}
}

// await returns the next segment; false at the end.
func (t *track) await(ctx context.Context) (item, bool) {
	for {
		it, found, over := t.pick()
		if found || over {
			return it, found
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return item{}, false
		}
	}
}

// pick takes the next segment out of the playlist. Segments that left the playlist before are
// missed.
func (t *track) pick() (it item, found, over bool) {
	p := t.player
	p.mu.Lock()
	m, base, generation := t.media, t.base, t.generation
	p.mu.Unlock()
	if m == nil {
		return it, false, false
	}
	if generation != t.seen {
		t.seen, t.started = generation, false
	}
	if !t.started && len(m.Entries) > 0 {
		t.next, t.started = startAt(m), true
	}
	if !t.started {
		return it, false, m.Ended
	}
	for ; t.next < m.Sequence; t.next++ {
		t.missed(time.Duration(m.TargetDuration)*time.Second, causeWindow, time.Now(), "", "")
	}
	if t.next >= m.Sequence+uint64(len(m.Entries)) {
		return it, false, m.Ended
	}
	it = item{m.Entries[t.next-m.Sequence], t.next, generation, base, m.TargetDuration}
	t.next++
	return it, true, false
}

// startAt is three target durations before the end, the beginning of an ended playlist.
func startAt(m *playlist.Media) uint64 {
	if m.Ended {
		return m.Sequence
	}
	i := len(m.Entries)
	for left := startTargets * time.Duration(m.TargetDuration) * time.Second; i > 0 && left > 0; {
		i--
		left -= m.Entries[i].Duration.Value
	}
	return m.Sequence + uint64(i)
}

// listed says whether the playlist still has the segment, whether it is the newest one, and
// whether the playlist keeps its segments for ever.
func (t *track) listed(it item) (still, newest, unending bool) {
	t.player.mu.Lock()
	defer t.player.mu.Unlock()
	end := t.media.Sequence + uint64(len(t.media.Entries))
	still = t.generation == it.generation && it.number >= t.media.Sequence && it.number < end
	return still, it.number+1 >= end, t.media.Ended || t.media.Type != ""
}
