//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"dandelion/pkg/watch"
)

// Limits of the long form, in seconds but for the first.
const (
	leastStallFree = 0.98
	mostAfterReset = 0.5
	mostAfterCut   = 1.5
	mostHLSJS      = 1.5
)

// In the short form, whose eight sessions have no percentages, so many may stall or be late behind
// the publisher's restart.
const mostTroubled = 1

// A stall is judged where the machine kept up from so long before it until its end: viewers have a
// few seconds in their buffers. No machine excuses one that lasts longer than excused.
const (
	beforeStall = 6 * time.Second
	excused     = 10 * time.Second
)

// figures are what a run comes to.
type figures struct {
	viewers map[string]int // by policy
	copies  comparison     // all of them
	atEnd   int            // copies compared at the end
	corrupt int            // of copies and at viewers
	free    float64        // share of sessions of policy dandelion without a stall, but for the publisher's own kill
	reset   outcome        // a box was killed
	silent  outcome        // a box fell silent
	resetH  outcome        // the same for hlsjs
	silentH outcome
	stalled int           // sessions of hlsjs
	resumed time.Duration // from the publisher's restart until the last viewer of policy dandelion played
}

func (r *chaosRun) figures(rest comparison, events []seenEvent) figures {
	f := figures{viewers: map[string]int{}, copies: rest, atEnd: rest.compared}
	for _, c := range r.crowds {
		f.viewers[c.policy] += c.size
		f.corrupt += c.summary.Segments.Corrupt
	}
	for _, in := range r.faults {
		f.copies.add(in.comparison)
	}
	f.corrupt += f.copies.corrupt
	d, h := watch.Dandelion.Name, watch.HLSJS.Name
	f.free = 1 - float64(len(stalledBesides(r.faults, events, d)))/float64(f.viewers[d])
	f.stalled = len(stalledBesides(r.faults, events, h))
	f.reset = outcomeOf(r.faults, events, d, f.viewers[d], faultKill)
	f.silent = outcomeOf(r.faults, events, d, f.viewers[d], faultStop, faultCut)
	f.resetH = outcomeOf(r.faults, events, h, f.viewers[h], faultKill)
	f.silentH = outcomeOf(r.faults, events, h, f.viewers[h], faultStop, faultCut)
	f.resumed = resumed(r.faults, events, d)
	return f
}

// judge prints the report and fails the test for what must hold: in the short form what does not
// depend on the machine, and stalls where it kept up; in the long form all figures.
func (r *chaosRun) judge(rest comparison, long bool) {
	t := r.t
	events := allEvents(t, r.crowds)
	f := r.figures(rest, events)
	report := r.report(f, events)
	fmt.Print(report)
	if name := os.Getenv("CHAOS_REPORT"); name != "" {
		if err := os.WriteFile(name, []byte(report), 0o644); err != nil {
			fails(t, "%v", err)
		}
	}

	r.judgeFaults()
	r.judgeEnd(events)
	if f.copies.lost > 0 || f.corrupt > 0 {
		fails(t, "%d acknowledged files lost and %d corrupt, want none: %s", f.copies.lost, f.corrupt, strings.Join(f.copies.what, "; "))
	}
	if f.copies.compared == 0 || r.ledger.loads == 0 {
		fails(t, "nothing was compared with the ledger")
	}
	must := func(judged, held bool, format string, args ...any) {
		t.Helper()
		switch told := fmt.Sprintf(format, args...); {
		case held:
		case !judged:
			t.Logf("not judged (the run is too short): %s", told)
		case overloaded():
			t.Logf("not judged (load %s): %s", load(), told)
		default:
			fails(t, "%s", told)
		}
	}
	if !long {
		if troubled, stalls := r.troubled(events); troubled > mostTroubled {
			fails(t, "%d of %d sessions with a stall or late behind the publisher's restart, want at most %d:\n%s",
				troubled, f.viewers[watch.Dandelion.Name], mostTroubled, strings.Join(stalls, "\n"))
		}
	}
	must(long, f.free >= leastStallFree, "%.1f%% of the sessions without a stall, want %.0f%%", 100*f.free, 100*leastStallFree)
	must(long, f.resumed <= resumeWithin, "playing goes on %v after the publisher's restart, want %v", f.resumed, resumeWithin)
	p := f.reset.percentile(95)
	must(long, p <= mostAfterReset, "failovers after a reset take %.2f s (p95), want %.1f s", p, mostAfterReset)
	p = f.silent.percentile(95)
	must(long, p <= mostAfterCut, "failovers after a silent cut take %.2f s (p95), want %.1f s", p, mostAfterCut)
	p = f.resetH.percentile(95)
	must(long, p <= mostHLSJS, "failovers of hls.js after a reset take %.2f s (p95), want %.1f s", p, mostHLSJS)
}

// troubled returns how many viewers of policy dandelion had stalls that are not the machine's, and these.
func (r *chaosRun) troubled(events []seenEvent) (viewers int, stalls []string) {
	r.t.Helper()
	troubled := map[int]bool{}
	for _, e := range stallsBesides(r.faults, events, watch.Dandelion.Name) {
		told := fmt.Sprintf("viewer %d (%s) stalls for %.2f s at %s", e.viewer, e.policy, e.Seconds, e.Time.Format("15:04:05.000"))
		if why := r.machine.excuses(e); why != "" {
			r.t.Logf("not judged (%s): %s", why, told)
			continue
		}
		troubled[e.viewer] = true
		stalls = append(stalls, told)
	}
	return len(troubled), stalls
}

// excuses says why a stall may be the machine's; "": it is not.
func (m *machine) excuses(e seenEvent) string {
	if e.end().Sub(e.Time) > excused {
		return ""
	}
	if why := m.behind(e.Time.Add(-beforeStall), e.end()); why != "" || !overloaded() {
		return why
	}
	return "load " + load()
}

// judgeFaults fails the test for faults that were not injected or did nothing.
func (r *chaosRun) judgeFaults() {
	r.t.Helper()
	times := map[string]int{}
	for _, in := range r.faults {
		times[in.fault]++
		if in.unproven != nil {
			fails(r.t, "%s at %s did not take effect: %v", in.fault, in.from.Format(time.TimeOnly), in.unproven)
		}
	}
	for name, f := range faults {
		if times[name] == 0 && (f.needs == nil || f.needs(&r.chaosFleet)) {
			fails(r.t, "%s was never injected", name)
		}
	}
}

// judgeEnd fails the test for viewers who never played or do not play at the end.
func (r *chaosRun) judgeEnd(events []seenEvent) {
	r.t.Helper()
	for _, c := range r.crowds {
		if c.summary.Playing != c.size {
			fails(r.t, "%s: %d of %d ever played", c.name, c.summary.Playing, c.size)
		}
	}
	for _, e := range events {
		if e.Event.Event != watch.EventStall || e.end().Before(e.left.Add(-look)) {
			continue
		}
		told := fmt.Sprintf("viewer %d (%s) does not play at the end: it has stalled for %.1f s", e.viewer, e.policy, e.Seconds)
		if why := r.machine.excuses(e); why != "" {
			r.t.Logf("not judged (%s): %s", why, told)
		} else if e.end().Sub(e.Time) <= resumeWithin {
			r.t.Logf("not judged (it may be about to play): %s", told) // those of policy dandelion are stalls like others
		} else {
			fails(r.t, "%s", told)
		}
	}
}

// report is the table with what stands behind it, as Markdown.
func (r *chaosRun) report(f figures, events []seenEvent) string {
	var b strings.Builder
	b.WriteString(table(r.faults, events, f.viewers) + "\n")
	line := func(format string, args ...any) { fmt.Fprintf(&b, "- "+format+"\n", args...) }
	ms := func(o outcome) string {
		return fmt.Sprintf("%d, p50 %.0f ms, p95 %.0f ms", len(o.failovers), 1000*o.percentile(50), 1000*o.percentile(95))
	}
	line("seed %d, %s, load %s on %d processors", r.seed, r.total, load(), runtime.NumCPU())
	line("machine: %v", r.machine)
	line("copies compared with what boxes acknowledged: %d, of them at the end %d; lost %d, corrupt %d; listed by the publisher at a box that had needed their room: %d", f.copies.compared, f.atEnd, f.copies.lost, f.corrupt, f.copies.listed)
	for _, what := range f.copies.what {
		line("%s", strings.Join(strings.Fields(what), " "))
	}
	line("uploads meanwhile: %d acknowledged, %d refused", r.uploads.acknowledged, r.uploads.refused)
	line("dandelion: %.1f%% of %d sessions without a stall, those at the publisher's own kill not counted; failovers after a reset: %s; after a silent cut: %s",
		100*f.free, f.viewers[watch.Dandelion.Name], ms(f.reset), ms(f.silent))
	line("hlsjs: %d of %d sessions with a stall; failovers after a reset: %s; after a silent cut: %s", f.stalled, f.viewers[watch.HLSJS.Name], ms(f.resetH), ms(f.silentH))
	line("publisher's own kill: the last viewer played %v after its restart", f.resumed.Round(time.Millisecond))
	for _, c := range r.crowds {
		s := c.summary
		line("%s: startup p50 %.2f s p95 %.2f s, %d stalls (%.1f s), segments %+v, failovers %+v, %d redirects, %d retries, %d playlist failures", c.name,
			s.Startup.P50, s.Startup.P95, s.Stalls.Count, s.Stalls.Seconds, s.Segments, s.Failovers.ByCause, s.Redirects, s.Retries, s.PlaylistFailures)
	}
	list := stalls(r.faults, events)
	for _, stall := range list[:min(len(list), 40)] {
		line("%s", stall)
	}
	for _, what := range r.notRun {
		line("NOT RUN: %s", what)
	}
	return b.String()
}
