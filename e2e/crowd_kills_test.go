//go:build e2e

package e2e

import (
	"math/rand/v2"
	"time"
)

// killing is a box that is killed and started again.
type killing struct {
	box    int
	at     time.Duration
	length time.Duration
}

// Boxes are down for shortestDown to longestDown, and one is killed each killAfter.
const (
	killAfter    = time.Second
	shortestDown = 8 * time.Second
	longestDown  = 24 * time.Second
	firstKill    = 5 * time.Second
)

// killings is the schedule of a run, by time: at most down boxes are down at once, and all are back before
// the end. The same seed gives the same.
func killings(seed uint64, boxes, down int, total time.Duration) []killing {
	random := rand.New(rand.NewPCG(seed, 2))
	var list []killing
	back := make([]time.Duration, boxes)
	for at := firstKill; down > 0; at += killAfter {
		length := shortestDown + time.Duration(random.Int64N(int64(longestDown-shortestDown)))
		if at+length > total {
			break
		}
		var up []int
		for box, until := range back {
			if until < at { // where it is equal it may be late
				up = append(up, box)
			}
		}
		if boxes-len(up) >= down {
			continue
		}
		k := killing{up[random.IntN(len(up))], at, length}
		back[k.box] = at + length + killAfter
		list = append(list, k)
	}
	return list
}

// killBoxes kills and starts boxes as the list says, until a time.
func (r *crowdRun) killBoxes(list []killing, until time.Time) {
	r.t.Helper()
	for {
		next, box := until, -1
		if r.kills < len(list) {
			if at := r.marks.began.Add(list[r.kills].at); at.Before(next) {
				next, box = at, list[r.kills].box
			}
		}
		for down, back := range r.downUntil {
			if back.Before(next) {
				next, box = back, down
			}
		}
		r.pause(time.Until(next))
		if box < 0 || r.t.Context().Err() != nil {
			return
		}
		if _, down := r.downUntil[box]; down {
			r.boxes[box].start()
			delete(r.downUntil, box)
			continue
		}
		r.boxes[box].kill()
		r.killed[box] = true
		r.downUntil[box] = r.marks.began.Add(list[r.kills].at + list[r.kills].length)
		r.kills++
	}
}
