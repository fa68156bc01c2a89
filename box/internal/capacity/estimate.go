package capacity

import "slices"

const (
	// Default is taken for the line until it is known: the upload of a poor DSL line.
	Default = 250_000 // bytes/s
	// enough is how many samples make an estimate.
	enough = 8
	// kept is how many of the last samples it is made of.
	kept = 64
	// percentile leaves out the few that are too high by accident. Most are too low, because the
	// viewer's own line is slower.
	percentile = 90
)

// estimate is the capacity that samples of delivery rates show.
type estimate struct {
	samples [kept]int64 // bytes/s
	n       int         // samples so far; the next one goes to n % kept
}

func (e *estimate) add(rate int64) {
	e.samples[e.n%kept] = rate
	e.n++
}

// capacity returns bytes/s; learned is false while it is Default because there are too few samples.
func (e *estimate) capacity() (rate int64, learned bool) {
	n := min(e.n, kept)
	if n < enough {
		return Default, false
	}
	sorted := slices.Clone(e.samples[:n])
	slices.Sort(sorted)
	return sorted[(n-1)*percentile/100], true
}
