package watch

import (
	"slices"
	"time"
)

// Summary is what all viewers of a crowd saw. The names of its JSON are an interface.
type Summary struct {
	URL              string           `json:"url"`
	Policy           string           `json:"policy"`
	Viewers          int              `json:"viewers"`
	Seconds          float64          `json:"seconds"` // for which was watched
	Playing          int              `json:"playing"` // viewers that ever played
	Startup          Spread           `json:"startup"`
	Stalls           Stalls           `json:"stalls"`
	Segments         Segments         `json:"segments"`
	Bytes            map[string]int64 `json:"bytes"`
	ControlBytes     int64            `json:"control_bytes"`
	Redirects        int              `json:"redirects"`
	Retries          int              `json:"retries"`
	PlaylistFailures int              `json:"playlist_failures"`
	Failovers        AllFailovers     `json:"failovers"`

	// Now counts the viewers by what they do at the moment.
	Now map[State]int `json:"-"`
	// Trouble is the last reason for which a load failed; "" when none did.
	Trouble string `json:"-"`
}

// Spread are percentiles, in seconds; 0 of nothing.
type Spread struct {
	P50 float64 `json:"p50"`
	P95 float64 `json:"p95"`
}

// Stalls of all viewers. A viewer that never played had no session without a stall; one that has
// not begun yet counts as neither.
type Stalls struct {
	Count           int     `json:"count"`
	Seconds         float64 `json:"seconds"`
	SessionsWithout int     `json:"sessions_without"`
	ShareWithout    float64 `json:"share_without"` // of the viewers that began
	Longest         float64 `json:"longest"`
}

// Segments are counted as in Report.
type Segments struct {
	Received   int `json:"received"`
	Missed     int `json:"missed"`
	Duplicated int `json:"duplicated"`
	Corrupt    int `json:"corrupt"`
	Unverified int `json:"unverified"`
}

// Counted is a number of failovers and how long they took.
type Counted struct {
	Count int `json:"count"`
	Spread
}

// AllFailovers are those of all viewers.
type AllFailovers struct {
	Counted
	ByCause map[Cause]Counted `json:"by_cause"`
}

// summarize adds up what viewers saw. began is how many of them have begun.
func summarize(reports []Report, began int) Summary {
	s := Summary{Bytes: map[string]int64{}, Now: map[State]int{}}
	var startups []time.Duration
	var stalled, longest time.Duration
	lengths := map[Cause]*Lengths{}
	for _, r := range reports {
		s.Now[r.State]++
		if r.Startup > 0 {
			startups = append(startups, r.Startup)
			s.Playing++
			if r.Stalls == 0 {
				s.Stalls.SessionsWithout++
			}
		}
		s.Stalls.Count += r.Stalls
		stalled += r.Stalled
		longest = max(longest, r.Longest)
		s.Segments.Received += r.Segments
		s.Segments.Missed += r.Missed
		s.Segments.Duplicated += r.Duplicated
		s.Segments.Corrupt += r.Corrupt
		s.Segments.Unverified += r.Unverified
		s.ControlBytes += r.ControlBytes
		s.Redirects += r.Redirects
		s.Retries += r.Retries
		s.PlaylistFailures += r.PlaylistFailures
		for host, n := range r.Bytes {
			addBytes(s.Bytes, host, n)
		}
		for cause, l := range r.Failovers {
			if lengths[cause] == nil {
				lengths[cause] = &Lengths{}
			}
			lengths[cause].Count += l.Count
			lengths[cause].Sample = append(lengths[cause].Sample, l.Sample...)
		}
	}
	s.Startup = spread(startups)
	s.Stalls.Seconds, s.Stalls.Longest = seconds(stalled), seconds(longest)
	if began > 0 {
		s.Stalls.ShareWithout = float64(s.Stalls.SessionsWithout) / float64(began)
	}
	s.Failovers = failovers(lengths)
	return s
}

func failovers(lengths map[Cause]*Lengths) AllFailovers {
	all := AllFailovers{ByCause: map[Cause]Counted{}}
	var together []time.Duration
	for _, cause := range Causes {
		l := lengths[cause]
		if l == nil {
			l = &Lengths{}
		}
		all.ByCause[cause] = Counted{l.Count, spread(l.Sample)}
		all.Count += l.Count
		together = append(together, l.Sample...)
	}
	all.Spread = spread(together)
	return all
}

func spread(d []time.Duration) Spread {
	slices.Sort(d)
	return Spread{seconds(percentile(d, 50)), seconds(percentile(d, 95))}
}
