//go:build e2e

package e2e

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Names of the faults, as the table has them.
const (
	faultKill      = "box: kill -9"
	faultStop      = "box: SIGSTOP"
	faultCut       = "box: network cut"
	faultSlow      = "box: 1 Mbit/s"
	faultFill      = "box: disk full"
	faultDrain     = "box: SIGTERM"
	faultPublisher = "publisher: kill -9"
	faultRedis     = "Redis: away"
	faultEntrance  = "entrance: kill -9"
)

// faultNames in the order of the table.
var faultNames = []string{
	faultKill, faultStop, faultCut, faultSlow, faultFill, faultDrain, faultPublisher, faultRedis, faultEntrance,
}

// injection is one fault in the schedule.
type injection struct {
	fault  string
	box    int // -1: not a box
	at     time.Duration
	length time.Duration
}

const (
	redisAway   = 30 * time.Second
	killEvery   = 10 * time.Second
	killed      = 5 * time.Second
	chaosCycle  = 100 * time.Second
	shortChaos  = 3 * time.Minute // below that each fault comes once
	chaosSettle = 8 * time.Second // a box is left alone so long behind a fault: its copies are compared then
)

// cycle is each fault but the frequent kills once. A publisher finds its Redis when it starts, so
// that it is not killed while that is away.
var cycle = []struct {
	fault      string
	onBox      bool
	at, length time.Duration
}{
	{faultStop, true, 7 * time.Second, 8 * time.Second},
	{faultRedis, false, 12 * time.Second, redisAway},
	{faultCut, true, 22 * time.Second, 8 * time.Second},
	{faultSlow, true, 36 * time.Second, 12 * time.Second},
	{faultFill, true, 52 * time.Second, 10 * time.Second},
	{faultDrain, true, 68 * time.Second, 8 * time.Second},
	{faultPublisher, false, 82 * time.Second, 0},
	{faultEntrance, false, 92 * time.Second, 2 * time.Second},
}

// schedule returns the faults of a run in their order; the same seed gives the same. No two faults
// meet at one box; all other meetings are wanted.
func schedule(seed uint64, total time.Duration, boxes int) []injection {
	random := rand.New(rand.NewPCG(seed, 1))
	var list []injection
	add := func(fault string, onBox bool, at, length time.Duration) {
		in := injection{fault, -1, at, length}
		if onBox {
			free := slices.DeleteFunc(random.Perm(boxes), func(box int) bool { return slices.ContainsFunc(list, in.meets(box)) })
			if len(free) == 0 {
				return
			}
			in.box = free[0]
		}
		list = append(list, in)
	}
	stretch, jitter := 1.0, 2*time.Second
	if total < shortChaos {
		stretch, jitter = float64(total)/float64(chaosCycle), 0
	}
	for begin := time.Duration(0); begin < total; begin += time.Duration(stretch * float64(chaosCycle)) {
		for _, c := range cycle {
			at := begin + time.Duration(stretch*float64(c.at)) + time.Duration(random.Float64()*float64(jitter))
			if at < total {
				add(c.fault, c.onBox, at, c.length)
			}
		}
	}
	if total < shortChaos {
		add(faultKill, true, 2*time.Second, killed)
	} else {
		for at := killEvery; at < total; at += killEvery {
			// Not in step with the segments, or all kills would meet viewers at the same moment.
			add(faultKill, true, at+time.Duration((random.Float64()-0.5)*float64(2*time.Second)), killed)
		}
	}
	slices.SortStableFunc(list, func(a, b injection) int { return int(a.at - b.at) })
	return list
}

// meets tells of a fault in the list whether it would meet in, were it at that box.
func (in injection) meets(box int) func(injection) bool {
	return func(other injection) bool {
		return other.box == box && in.at < other.at+other.length+chaosSettle && other.at < in.at+in.length+chaosSettle
	}
}
