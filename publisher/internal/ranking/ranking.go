// Package ranking decides which boxes are good, for segments and for viewers. It is pure: plain
// structs in, order out, no clocks, no I/O; randomness is passed in. One policy per file:
// score.go, choose.go, viewer.go.
package ranking

import (
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Box is what a publisher knows of a box when it ranks it.
type Box struct {
	ID        id.BoxID
	Household string // boxes of one home share it; "" is its own home
	System    wire.System
	Distance  float64       // km to where the publisher's viewers are; NaN: unknown
	Known     time.Duration // since it was first seen here
	Pushes    Record

	// Busy is the time that what is queued for it will take.
	Busy time.Duration

	// What excludes it now.
	Down   bool
	Deaf   bool          // it does not answer viewers
	Paused time.Duration // of its failure streak, still to go
}

// Record is what our own pushes to a box showed, decayed: recent ones count most.
type Record struct {
	Tried      int     // attempts so far
	Success    float64 // share, 0 to 1; meaningless while Tried is 0
	Throughput float64 // bytes/s of content; 0: not measured
	Streak     int     // failures since the last success
}

const (
	successDecay    = 0.1
	throughputDecay = 0.2
	measurable      = 16 << 10 // bytes; smaller files measure latency, not throughput
)

// Succeeded returns the record after a push of so many bytes that took so long.
func (r Record) Succeeded(bytes int64, took time.Duration) Record {
	r.Success = blend(r.Success, 1, successDecay, r.Tried == 0)
	if bytes >= measurable && took > 0 {
		r.Throughput = blend(r.Throughput, float64(bytes)/took.Seconds(), throughputDecay, r.Throughput == 0)
	}
	r.Tried++
	r.Streak = 0
	return r
}

// Failed returns the record after a push that failed.
func (r Record) Failed() Record {
	r.Success = blend(r.Success, 0, successDecay, r.Tried == 0)
	r.Tried++
	r.Streak++
	return r
}

// Pause is how long a box is left alone after its latest failure: from 500 ms doubling to one
// minute with the streak.
func (r Record) Pause() time.Duration {
	if r.Streak == 0 {
		return 0
	}
	return min(500*time.Millisecond<<min(r.Streak-1, 10), time.Minute)
}

func blend(old, fresh, share float64, first bool) float64 {
	if first {
		return fresh
	}
	return old*(1-share) + fresh*share
}
