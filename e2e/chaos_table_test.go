//go:build e2e

package e2e

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"dandelion/pkg/watch"
)

// injected is a fault as it happened.
type injected struct {
	injection
	who      string // host:port of what was broken
	from     time.Time
	healed   time.Time
	unproven error // why it may not have taken effect
	note     string
	comparison
}

// How long behind its beginning and its end consequences of a fault are looked for. A viewer has a
// few seconds in its buffer, so that a stall comes late.
const (
	stallsFor    = 8 * time.Second // from the beginning
	stallsBehind = 2 * time.Second // from the end
	failoversFor = 2 * time.Second
	firstByte    = 1500 * time.Millisecond // a load that failed for want of bytes may have begun so much before the fault
	resumeWithin = 3 * time.Second
)

// causesStall: it began while the fault lasted or soon after.
func (in *injected) causesStall(e seenEvent) bool {
	until := in.from.Add(stallsFor)
	if late := in.healed.Add(stallsBehind); late.After(until) {
		until = late
	}
	return e.Event.Event == watch.EventStall && !e.Time.Before(in.from) && e.Time.Before(until)
}

// causesFailover: a load from what was broken failed. Who is killed answers with a reset at once,
// until its successor is there: silence before and behind is that of the line.
func (in *injected) causesFailover(e seenEvent) bool {
	if e.Event.Event != watch.EventFailover || in.who == "" || e.From != in.who {
		return false
	}
	from, until := in.from.Add(-firstByte), in.healed.Add(failoversFor)
	if in.fault == faultKill && (e.Cause == watch.CauseSilent || e.Cause == watch.CauseSlow) {
		from, until = in.from, in.healed
	}
	return !e.Time.Before(from) && e.Time.Before(until)
}

func (in *injected) causesMissed(e seenEvent) bool {
	e.Event.Event = watch.EventStall
	return in.causesStall(e)
}

// outcome is what all faults of a kind, or of any, did to the viewers of a policy.
type outcome struct {
	times     int
	viewers   int
	stalled   map[int]bool
	failovers []float64 // seconds, sorted
	missed    int
	comparison
}

func (o outcome) without() int { return o.viewers - len(o.stalled) }

func (o outcome) percentile(p float64) float64 {
	if len(o.failovers) == 0 {
		return 0
	}
	i := int(math.Ceil(p/100*float64(len(o.failovers)))) - 1
	return o.failovers[max(i, 0)]
}

// outcomeOf counts each event once for a kind of fault, however many of them it lies near.
func outcomeOf(faults []*injected, events []seenEvent, policy string, viewers int, kinds ...string) outcome {
	o := outcome{viewers: viewers, stalled: map[int]bool{}}
	var mine []*injected
	for _, in := range faults {
		if slices.Contains(kinds, in.fault) {
			mine = append(mine, in)
			o.times++
			o.comparison.add(in.comparison)
		}
	}
	caused := func(by func(*injected, seenEvent) bool, e seenEvent) bool {
		return slices.ContainsFunc(mine, func(in *injected) bool { return by(in, e) })
	}
	for _, e := range events {
		if e.policy != policy {
			continue
		}
		switch {
		case caused((*injected).causesStall, e):
			o.stalled[e.viewer] = true
		case caused((*injected).causesFailover, e):
			o.failovers = append(o.failovers, e.Seconds)
		case e.Event.Event == watch.EventMissed && caused((*injected).causesMissed, e):
			o.missed++
		}
	}
	slices.Sort(o.failovers)
	return o
}

// stalledBesides returns the viewers of a policy who stalled, but for stalls that begin around a
// kill of the publisher.
func stalledBesides(faults []*injected, events []seenEvent, policy string) map[int]bool {
	stalled := map[int]bool{}
	for _, e := range events {
		if e.policy == policy && e.Event.Event == watch.EventStall && publishersOwn(faults, e) == nil {
			stalled[e.viewer] = true
		}
	}
	return stalled
}

// stallsBesides returns the stalls of a policy, but for those that begin around a kill of the
// publisher and are over in time.
func stallsBesides(faults []*injected, events []seenEvent, policy string) []seenEvent {
	var list []seenEvent
	for _, e := range events {
		in := publishersOwn(faults, e)
		if e.policy == policy && e.Event.Event == watch.EventStall && (in == nil || e.end().Sub(in.healed) > resumeWithin) {
			list = append(list, e)
		}
	}
	return list
}

// publishersOwn returns the kill of the publisher that may have caused a stall; nil: none.
func publishersOwn(faults []*injected, e seenEvent) *injected {
	for _, in := range faults {
		if in.fault == faultPublisher && in.causesStall(e) {
			return in
		}
	}
	return nil
}

// stalls lists the stalls, each with the faults that it lies near.
func stalls(faults []*injected, events []seenEvent) []string {
	var list []string
	for _, e := range events {
		if e.Event.Event != watch.EventStall {
			continue
		}
		var near []string
		for _, in := range faults {
			if in.causesStall(e) {
				near = append(near, fmt.Sprintf("%s %s %.1f s before", in.fault, in.who, e.Time.Sub(in.from).Seconds()))
			}
		}
		list = append(list, fmt.Sprintf("%s viewer %d (%s) stalls for %.2f s: %s", e.Time.Format("15:04:05.000"), e.viewer, e.policy, e.Seconds, strings.Join(near, ", ")))
	}
	slices.Sort(list)
	return list
}

// resumed returns how long after the publisher's restarts the last stall of a policy near one of them was over.
func resumed(faults []*injected, events []seenEvent, policy string) time.Duration {
	var longest time.Duration
	for _, in := range faults {
		for _, e := range events {
			if e.policy == policy && in.fault == faultPublisher && in.causesStall(e) {
				longest = max(longest, e.end().Sub(in.healed))
			}
		}
	}
	return longest
}

// table is the report as Markdown.
func table(faults []*injected, events []seenEvent, viewers map[string]int) string {
	var b strings.Builder
	d, h := watch.Dandelion.Name, watch.HLSJS.Name
	fmt.Fprintf(&b, "| fault | times | sessions without a stall | failovers | p50 | p95 | segments missed | acknowledged files lost | hls.js: sessions | failovers | p50 | p95 | missed |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, kind := range faultNames {
		o, other := outcomeOf(faults, events, d, viewers[d], kind), outcomeOf(faults, events, h, viewers[h], kind)
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %d | %d of %d | %s | %s | %d |\n", kind, o.times, sessions(o), spread(o), o.missed,
			o.lost, o.compared, sessions(other), spread(other), other.missed)
	}
	return b.String()
}

func sessions(o outcome) string { return fmt.Sprintf("%d of %d", o.without(), o.viewers) }

func spread(o outcome) string {
	if len(o.failovers) == 0 {
		return "0 | – | –"
	}
	return fmt.Sprintf("%d | %.0f ms | %.0f ms", len(o.failovers), 1000*o.percentile(50), 1000*o.percentile(95))
}
