package watch

import (
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	maxHosts     = 1000 // whose bytes are told apart; those of further ones are otherHosts'
	otherHosts   = "other"
	maxFailovers = 1000 // of a viewer and cause whose lengths are kept; of more, a fair sample
)

// Report is what one viewer saw so far.
type Report struct {
	Startup          time.Duration    // from the start to the first segment of each track; 0: it never played
	Played           time.Duration    // of media
	Stalls           int              // times that the buffer ran empty
	Stalled          time.Duration    // for how long altogether, a stall that runs included
	Longest          time.Duration    // stall
	Segments         int              // received whole
	Missed           int              // gaps, those that left the playlist, and those that no host delivered
	Duplicated       int              // played before, or the same bytes as the one before
	Corrupt          int              // whose bytes are not those that were promised
	Unverified       int              // for whose bytes nothing is promised; byte ranges are among them
	Redirects        int              // followed for segments
	Retries          int              // for segments
	PlaylistFailures int              // loads of playlists that failed, and streams that began anew
	Bytes            map[string]int64 // of segments, init segments and keys, by the host:port that sent them
	ControlBytes     int64            // of playlists and digests
	Failovers        Failovers
	State            State
}

// State is what a viewer does at the moment.
type State string

// States of a viewer.
const (
	Starting State = "starting"
	Playing  State = "playing"
	Stalled  State = "stalled"
	Over     State = "over"
)

// Failovers are those of a viewer by their cause.
type Failovers map[Cause]*Lengths

// Lengths are how long something took each time.
type Lengths struct {
	Count  int
	Sample []time.Duration // all of them, or a fair sample
}

func (f *Failovers) add(cause Cause, d time.Duration) {
	if *f == nil {
		*f = Failovers{}
	}
	l := (*f)[cause]
	if l == nil {
		l = &Lengths{}
		(*f)[cause] = l
	}
	l.Count++
	if len(l.Sample) < maxFailovers {
		l.Sample = append(l.Sample, d)
	} else if i := rand.IntN(l.Count); i < maxFailovers {
		l.Sample[i] = d
	}
}

func addBytes(to map[string]int64, host string, n int64) {
	if _, known := to[host]; !known && len(to) >= maxHosts {
		host = otherHosts
	}
	to[host] += n
}

// Report returns what was seen so far; any goroutine.
func (p *Player) Report() Report {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.clock
	c.advance(now)
	r := p.report
	r.Bytes = maps.Clone(r.Bytes)
	r.Failovers = Failovers{}
	for cause, l := range p.report.Failovers {
		r.Failovers[cause] = &Lengths{l.Count, slices.Clone(l.Sample)}
	}
	r.Startup, r.Played, r.Stalls, r.Stalled, r.Longest = c.startup, c.played, c.stalls, c.stalled, c.longest
	if !c.stallAt.IsZero() {
		running := now.Sub(c.stallAt)
		r.Stalled += running
		r.Longest = max(r.Longest, running)
	}
	if c.started {
		r.Startup = max(r.Startup, 1) // 0 says that it never played
	}
	switch {
	case c.complete || p.stopped:
		r.State = Over
	case !c.started:
		r.State = Starting
	case c.playing:
		r.State = Playing
	default:
		r.State = Stalled
	}
	return r
}

// seconds are told to the microsecond.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e6 }

// percentile returns the smallest of the values that so many percent are not above; 0 of none.
// The values are sorted.
func percentile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := (len(sorted)*percent + 99) / 100
	return sorted[min(max(rank, 1), len(sorted))-1]
}
