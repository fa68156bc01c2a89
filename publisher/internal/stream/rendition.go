package stream

import (
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
	"dandelion/publisher/internal/source"
)

// rendition is one media playlist as viewers see it. entries[:start] have left the playlist
// and stay on disk for those who still ask; entries[start:shown] are in it; entries[shown:]
// wait. Numbers are MEDIA-SEQUENCE numbers: entries[i] has first+i for ever.
type rendition struct {
	path string // of the playlist in the source: what it is known by across restarts
	name id.RenditionName

	first           uint64
	discontinuities uint64 // DISCONTINUITY-SEQUENCE before entries[0]
	entries         []*entry
	targetDuration  int  // seconds, grows only
	version         int  // EXT-X-VERSION, grows only
	want            int  // entries that the encoder keeps in its playlist
	ended           bool // the encoder said so behind the last entry

	// Where the playlist may begin once all entries are shown. It is on disk before an entry is
	// shown that lets the playlist begin there, so that after a crash, when all entries of the
	// state count as shown, the beginning never falls back.
	target uint64
	forced uint64 // what must go although the encoder still lists it, for the limit of the window

	tracker // what the encoder did

	start, shown int
	onDisk       promise             // what the state on disk says
	assets       map[string]assetRef // the newest copies, by what the encoder calls them
	listed       bool                // the source has it now
	endAt        time.Time           // from when on viewers see that it ended
	look         look                // of its page
	pageAt       time.Time           // when it had one first; zero: none yet
}

// promise is what of a rendition is shown only when the disk has it.
type promise struct {
	target, forced uint64
	targetDuration int
	version        int
	ended          bool
}

// entry is one segment, or the gap where one was lost.
type entry struct {
	Listed   playlist.Entry `json:"listed"` // as it is rendered; its URIs are relative to the rendition's folder
	Path     id.Path        `json:"path,omitempty"`
	Digest   id.Digest      `json:"digest,omitzero"`
	Size     int64          `json:"size,omitempty"`
	Needs    []id.Path      `json:"needs,omitempty"` // its init segment and keys
	Complete time.Time      `json:"complete"`
	TTL      time.Duration  `json:"ttl"`
	Origin   origin         `json:"origin"`
	Longest  time.Duration  `json:"longest,omitempty"` // of the playlists that it was in
	Header   []string       `json:"header,omitempty"`  // of the playlist that ends with it

	version  uint64 // of the state in which it came
	fileLost bool   // its file was gone at the start
	released bool   // viewers may see it when all before it are shown
	deadline time.Time
	leftAt   time.Time // when it left the playlist
}

// origin is where an entry came from.
type origin struct {
	Epoch    uint64          `json:"epoch"`    // counts the encoder's restarts
	Sequence uint64          `json:"sequence"` // the encoder's number
	URI      string          `json:"uri"`
	Range    *playlist.Range `json:"range,omitempty"`
	Stat     source.Stat     `json:"stat"`
}

// assetRef is an init segment or a key that was copied.
type assetRef struct {
	Path  id.Path     `json:"path"`
	Stat  source.Stat `json:"stat"`
	Epoch uint64      `json:"epoch"`
}

func (r *rendition) number(i int) uint64 { return r.first + uint64(i) }
func (r *rendition) end() uint64         { return r.number(len(r.entries)) }

// append adds an entry behind the others. Its deadline and TTL are set by the caller.
func (r *rendition) append(e *entry, listing int, sliding bool) {
	r.entries = append(r.entries, e)
	r.targetDuration = max(r.targetDuration, e.Listed.Duration.Rounded(), 1)
	r.version = max(r.version, neededVersion(&e.Listed))
	r.ended = false
	r.resize(listing, sliding)
}

// resize mirrors the length of the encoder's playlist. While the encoder has not dropped
// anything yet, its playlist is still growing and ours stays as long as it was.
func (r *rendition) resize(listing int, sliding bool) {
	if !sliding {
		listing = max(listing, r.want)
	}
	r.want = listing
	at := r.index(r.target)
	for at < len(r.entries) && len(r.entries)-at > r.want && r.canLeave(at, len(r.entries)) {
		at++
	}
	r.target = max(r.target, r.number(at))
}

// index is the index of a number, within the entries there are.
func (r *rendition) index(number uint64) int {
	if number <= r.first {
		return 0
	}
	return int(min(number-r.first, uint64(len(r.entries))))
}

// canLeave reports whether entry at may leave a playlist that ends before end: three target
// durations must remain (RFC 8216 section 6.2.2).
func (r *rendition) canLeave(at, end int) bool {
	need := 3 * time.Duration(r.targetDuration) * time.Second
	for i := end - 1; i > at; i-- {
		if need -= r.entries[i].Listed.Duration.Value; need <= 0 {
			return true
		}
	}
	return false
}

// show moves the ends of the playlist as far as entries are released and on disk, and
// reports whether anything changed.
func (r *rendition) show(now time.Time, saved uint64) bool {
	shown, start := r.shown, r.start
	for shown < len(r.entries) && r.entries[shown].released && r.entries[shown].version <= saved {
		shown++
	}
	for start < shown && r.number(start) < r.onDisk.target && r.canLeave(start, shown) &&
		(shown-start > r.want || r.number(start) < r.onDisk.forced) {
		r.entries[start].leftAt = now
		start++
	}
	if shown == r.shown && start == r.start {
		return false
	}
	r.shown, r.start = shown, start
	length := r.span(start, shown)
	for _, e := range r.entries[start:shown] {
		e.Longest = max(e.Longest, length)
	}
	return true
}

// span is the duration of entries[from:to].
func (r *rendition) span(from, to int) time.Duration {
	var sum time.Duration
	for i := from; i < to; i++ {
		sum += r.entries[i].Listed.Duration.Value
	}
	return sum
}

// leaves reports whether the oldest entry has left the playlist and may leave the disk: after
// its own duration and that of the longest playlist that it was in (RFC 8216 section 6.2.2).
func (r *rendition) leaves(now time.Time) bool {
	if r.start == 0 {
		return false
	}
	e := r.entries[0]
	return now.Sub(e.leftAt) >= e.Listed.Duration.Value+e.Longest
}

// drop forgets the oldest entry, which has left the playlist.
func (r *rendition) drop() *entry {
	e := r.entries[0]
	if e.Listed.Discontinuity {
		r.discontinuities++
	}
	r.entries[0] = nil
	r.entries = r.entries[1:]
	r.first++
	r.start--
	r.shown--
	return e
}

// isEnded reports whether viewers see that the stream ended.
func (r *rendition) isEnded(now time.Time) bool {
	if r.look.ended && r.look.to == r.number(r.shown) {
		return true // who saw the end sees it until there is more
	}
	return r.ended && r.onDisk.ended && r.shown == len(r.entries) && !now.Before(r.endAt)
}
