package watch

import (
	"fmt"
	"time"
)

// Policy is how a player waits and asks again. It is data: what differs between players
// stands here and nowhere else.
type Policy struct {
	Name     string
	Manifest Loading // the URL that is played
	Playlist Loading // media playlists
	Segment  Loading // segments, init segments and keys
	// Restart is how long after its last retry a player starts over, as a page does whose player
	// has given up.
	Restart time.Duration
	// SkipsRefused: a live segment that is not the newest is left out when its connection breaks or
	// it is refused with 4xx, and when its retries are used up.
	SkipsRefused bool
	BufferAhead  time.Duration // so much media is fetched ahead of what plays
}

// Loading is how long one load may take, and what follows when it fails.
type Loading struct {
	FirstByte time.Duration // from the request, redirects included, to the answer's headers; 0: as Load
	// For lines that are slow themselves: from so many timeouts in a row the limit doubles with each,
	// up to FirstByteMost, and it is never less than twice what the last load took. 0: it never grows.
	Impatient     int
	FirstByteMost time.Duration
	Load          time.Duration // from the request to the last byte
	LoadTargets   int           // the same in target durations; one of the two is set
	// Silence is how long no further byte of a body may come. It doubles with the timeouts like
	// FirstByte. 0: as long as Load.
	Silence  time.Duration
	Pace     Pacing
	Timeouts Retrying // too late: FirstByte, Load or Silence; or too slow: Pace
	Errors   Retrying // anything else
}

// Pacing is when a segment is given up because it comes slower than it plays: at the mean rate since
// its first byte all of it would take longer than it plays, and what is missing longer than half of
// that. Once for each segment: when the next host is as slow, it is the viewer's own line. The zero
// value gives nothing up.
type Pacing struct {
	After    time.Duration // judged from so long after the first byte on
	Shortest time.Duration // what plays for less is judged as if it played so long
	// From so many in a row, with none between that came in half the time it plays, the rule rests for
	// Rest, or until one comes so quickly: on a line of its own that is slow all hosts look slow, and
	// each attempt throws bytes away.
	Most int
	Rest time.Duration
}

// Retrying is when to ask again.
type Retrying struct {
	Most    int           // retries in a row; Endless: no limit
	First   time.Duration // before the first; it doubles with each
	Longest time.Duration
}

// Endless retries end with the segment's playlist.
const Endless = -1

// Dandelion is the policy of the project's own page (web/src/policy.ts has the same figures).
var Dandelion = Policy{
	Name: "dandelion",
	Manifest: Loading{
		FirstByte: 3 * time.Second, Load: 10 * time.Second,
		Timeouts: Retrying{Most: Endless},
		Errors:   Retrying{Most: Endless, First: 250 * time.Millisecond, Longest: time.Second},
	},
	Playlist: Loading{
		FirstByte: 3 * time.Second, Load: 10 * time.Second,
		Timeouts: Retrying{Most: Endless},
		Errors:   Retrying{Most: Endless, First: 250 * time.Millisecond, Longest: time.Second},
	},
	Segment: Loading{
		FirstByte: time.Second, Impatient: 3, FirstByteMost: 8 * time.Second, LoadTargets: 2, Silence: time.Second,
		Pace:     Pacing{After: time.Second, Shortest: time.Second, Most: 2, Rest: 30 * time.Second},
		Timeouts: Retrying{Most: Endless},
		Errors:   Retrying{Most: Endless, First: 10 * time.Millisecond, Longest: time.Second},
	},
	BufferAhead: 30 * time.Second,
}

// HLSJS is what hls.js 1.7 does by default in a page that loads on after a fatal error
// (hls.startLoad). The figures are those of its manifestLoadPolicy, playlistLoadPolicy and
// fragLoadPolicy. It takes a broken connection like a 4xx, as a refusal: a live segment that is
// not the newest becomes a gap at once, the newest is asked for again like after any error. When
// the retries of the newest are used up the error is fatal; the page is taken to start over after a
// second, because what pages do then differs. Its clock ticks each 100 ms, so that a real one may
// ask so much later.
var HLSJS = Policy{
	Name: "hlsjs",
	Manifest: Loading{
		Load:     20 * time.Second,
		Timeouts: Retrying{Most: 2},
		Errors:   Retrying{Most: 1, First: time.Second, Longest: 8 * time.Second},
	},
	Playlist: Loading{
		FirstByte: 10 * time.Second, Load: 20 * time.Second,
		Timeouts: Retrying{Most: 2},
		Errors:   Retrying{Most: 2, First: time.Second, Longest: 8 * time.Second},
	},
	Segment: Loading{
		FirstByte: 10 * time.Second, Load: 120 * time.Second,
		Timeouts: Retrying{Most: 4},
		Errors:   Retrying{Most: 6, First: time.Second, Longest: 8 * time.Second},
	},
	Restart:      time.Second,
	SkipsRefused: true,
	BufferAhead:  30 * time.Second,
}

// PolicyNamed returns the policy of that name; the error names those that there are.
func PolicyNamed(name string) (Policy, error) {
	for _, p := range []Policy{Dandelion, HLSJS} {
		if p.Name == name {
			return p, nil
		}
	}
	return Policy{}, fmt.Errorf("there is no policy %q: want %s or %s", name, Dandelion.Name, HLSJS.Name)
}

// next returns how long to wait after a failure that so many others came before in a row, and
// false when there is no further retry.
func (r Retrying) next(before int) (wait time.Duration, again bool) {
	if r.Most != Endless && before >= r.Most {
		return 0, false
	}
	wait = r.First
	for range before {
		if wait >= r.Longest {
			break
		}
		wait *= 2
	}
	return min(wait, r.Longest), true
}

// next is what follows a failure of a load: a retry, or with fatal a new start.
func (l Loading) next(f *failure, before int, restart time.Duration) (wait time.Duration, fatal bool) {
	retry := l.Errors
	if f.timeout {
		retry = l.Timeouts
	}
	if wait, again := retry.next(before); again {
		return wait, false
	}
	return restart, true
}

// limits returns how long the next load may take until its headers, until its end, and between two
// parts of its body (0: any time). target is the playlist's target duration in seconds.
func (l Loading) limits(p patience, target int) (firstByte, whole, silence time.Duration) {
	whole, silence = l.Load, l.Silence
	if l.LoadTargets > 0 {
		whole = time.Duration(l.LoadTargets) * time.Duration(max(target, 1)) * time.Second
	}
	firstByte = l.FirstByte
	if firstByte == 0 {
		firstByte = whole
	}
	if l.FirstByteMost > 0 {
		firstByte = l.patient(max(firstByte, 2*p.took), p.timeouts)
		silence = l.patient(silence, p.timeouts)
	}
	return firstByte, whole, silence
}

// patient is a limit after so many timeouts in a row.
func (l Loading) patient(limit time.Duration, timeouts int) time.Duration {
	for n := l.Impatient; n <= timeouts && limit > 0 && limit < l.FirstByteMost; n++ {
		limit *= 2
	}
	return min(limit, l.FirstByteMost)
}

// patience is what a player has learned of its line.
type patience struct {
	timeouts int           // in a row
	took     time.Duration // the last load, to its first byte
}

// pace is what a track has learned of the rate at which its segments come.
type pace struct {
	slow  int       // given up in a row, with none between that came quickly
	rests time.Time // nothing is given up until then
}

func (p *pace) gaveUp(rule Pacing, now time.Time) {
	if p.slow++; p.slow >= rule.Most {
		*p = pace{rests: now.Add(rule.Rest)}
	}
}

// loaded is told of a segment that came whole, so long after its first byte.
func (p *pace) loaded(took, plays time.Duration) {
	if took <= plays/2 {
		*p = pace{}
	}
}
