package placement

import "time"

// How many viewers are planned for: more than there are while they are coming, because holders take a
// moment, and for a while as many as there were, because holders that go and come cost copies.
const (
	foresee    = 3 * time.Second // further growth like that of the last so long is planned for
	holdFor    = 5 * time.Second // after which fewer viewers mean fewer holders
	maxSamples = 64              // samples of the number of viewers that are kept
)

// crowd is the number of viewers of a rendition over the last seconds. The zero value is ready; it is
// for one goroutine.
type crowd struct{ looks []sample }

type sample struct {
	at      time.Time
	viewers int
	planned int // for them and who is coming
}

// planned takes the number of viewers now, and returns for how many there should be room.
func (c *crowd) planned(viewers int, now time.Time) int {
	for len(c.looks) > 0 && (now.Sub(c.looks[0].at) > holdFor || len(c.looks) == maxSamples) {
		c.looks = c.looks[1:]
	}
	before := viewers
	if len(c.looks) == 0 {
		before = 0 // all of them are new
	}
	for _, s := range c.looks {
		if now.Sub(s.at) <= foresee {
			before = s.viewers
			break
		}
	}
	c.looks = append(c.looks, sample{now, viewers, viewers + max(viewers-before, 0)})
	most := 0
	for _, s := range c.looks {
		most = max(most, s.planned)
	}
	return most
}
