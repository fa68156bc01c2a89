package placement

import "errors"

// Outcome says how a task left the queue. The list is append-only: it labels a metric.
type Outcome string

// The outcomes.
const (
	TaskPlaced       Outcome = "placed"    // at least one box holds it
	TaskMerged       Outcome = "merged"    // the same task, to the last byte, waits already
	GivenUpTTL       Outcome = "ttl"       // its TTL was over before a box held it
	GivenUpGone      Outcome = "gone"      // its file is not there
	GivenUpMalformed Outcome = "malformed" // it cannot be read
	GivenUpForbidden Outcome = "forbidden" // its file may not be published, or not be read
	GivenUpRefused   Outcome = "refused"   // boxes say that none of them will take the file
)

// Outcomes lists them all.
var Outcomes = []Outcome{TaskPlaced, TaskMerged, GivenUpTTL, GivenUpGone, GivenUpMalformed, GivenUpForbidden, GivenUpRefused}

// givenUp says why a task ends without a copy.
type givenUp struct {
	outcome Outcome
	why     error
}

func (g *givenUp) Error() string { return g.why.Error() }
func (g *givenUp) Unwrap() error { return g.why }

func giveUp(o Outcome, why error) error { return &givenUp{o, why} }

// outcomeOf returns how a task ends that was served with this error.
func outcomeOf(err error) Outcome {
	var g *givenUp
	if errors.As(err, &g) {
		return g.outcome
	}
	return TaskPlaced
}

// QueueTotals counts tasks.
type QueueTotals struct {
	Ended   map[Outcome]int64 `json:"ended"`   // since the start, by outcome; all outcomes are there
	Resting int               `json:"resting"` // now: taken, and left alone because no box takes them
}

// Totals returns how tasks ended since the start. It may be called from any goroutine.
func (q *Queue) Totals() QueueTotals {
	t := QueueTotals{Ended: q.ended.all(Outcomes)}
	q.mu.Lock()
	defer q.mu.Unlock()
	t.Resting = len(q.resting)
	return t
}
