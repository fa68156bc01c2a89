//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"
)

// verdict is one of the lines that a run ends with.
type verdict struct {
	scenario string
	outcome  outcomeKind
	text     string
}

type outcomeKind string

const (
	passed    outcomeKind = "held"
	failed    outcomeKind = "FAILED"
	notJudged outcomeKind = "not judged"
	notRun    outcomeKind = "NOT RUN"
)

func (v verdict) String() string {
	return fmt.Sprintf("crowd %s: %s: %s", v.scenario, v.outcome, v.text)
}

// must adds a verdict, and fails the test for one that did not hold, unless something excuses it.
func (r *crowdRun) must(held bool, excuse, format string, args ...any) {
	r.t.Helper()
	v := verdict{r.plan.name, passed, fmt.Sprintf(format, args...)}
	switch {
	case held:
	case excuse != "":
		v.outcome, v.text = notJudged, v.text+" ("+excuse+")"
	default:
		v.outcome = failed
		fails(r.t, "%s", v.text)
	}
	r.verdicts = append(r.verdicts, v)
}

// lateLook behind the one before shows that processes wait longer than what is measured lasts.
const lateLook = 1500 * time.Millisecond

// lateLooks says why bytes are not judged: the machine was so busy that the meter came late. It excuses
// nothing in the short form.
func (r *crowdRun) lateLooks() string {
	if longest := r.longestLook(); longest > lateLook && !r.plan.short {
		return fmt.Sprintf("the meter came late, after %v, and the load is %s", longest.Round(time.Millisecond), load())
	}
	return ""
}

// longestLook is the longest time between two looks while viewers watched.
func (r *crowdRun) longestLook() (longest time.Duration) {
	looks := r.meter.readings
	for i := 1; i < len(looks); i++ {
		if looks[i].at.After(r.marks.began) && looks[i].at.Before(r.marks.left) {
			longest = max(longest, looks[i].at.Sub(looks[i-1].at))
		}
	}
	return longest
}

// judge writes the report and the verdicts.
func (r *crowdRun) judge() {
	r.t.Helper()
	r.quiet()
	var b strings.Builder
	fmt.Fprintf(&b, "\n### Crowd %s: %s\n\n| figure | measured | required |\n|---|---|---|\n", r.plan.name, r.plan.about())
	row := func(name, measured, required string) { fmt.Fprintf(&b, "| %s | %s | %s |\n", name, measured, required) }
	r.judgeSessions(row)
	r.judgeBytes(row)
	r.judgeLimit(row)
	r.judgeHolders(row)
	r.judgeRig(row)
	row("processors, from the steady state on", r.cpu.String(), "")
	row("machine", fmt.Sprintf("load %s on %d processors, the longest time between two looks %v; %v", load(), runtime.NumCPU(),
		r.longestLook().Round(time.Millisecond), r.machine), "")
	r.text = b.String() + "\n"
	fmt.Print(r.text)
}

func (p crowdPlan) about() string {
	text := fmt.Sprintf("%d boxes of %s, a stream of %s, 0 to %d viewers within %v, then %v", p.boxes, mbit(float64(p.limit)), mbit(float64(p.rate)), p.viewers, p.ramp, p.steady)
	if p.small > 0 {
		text += fmt.Sprintf("; beside it another publisher's with %d viewers, who were alone for %v", p.small, p.alone)
	}
	if p.down > 0 {
		text += fmt.Sprintf("; boxes are killed and return, at most %d are down at once", p.down)
	}
	if p.uplink > 0 {
		text += fmt.Sprintf("; the caster's uplink carries %.1f times the stream", p.uplink)
	}
	if p.short {
		text += " (short form)"
	}
	return text
}

func mbit(rate float64) string { return fmt.Sprintf("%.2f Mbit/s", rate/1e6) }

func mb(bytes float64) string { return fmt.Sprintf("%.2f MB", bytes/1e6) }

func percent(n, of int) float64 { return 100 * float64(n) / float64(max(of, 1)) }

// crowds are those that there were, by name.
func (r *crowdRun) crowds() map[string]*crowd {
	all := map[string]*crowd{}
	for name, c := range map[string]*crowd{"viewers": r.big, "small stream, alone": r.alone, "small stream, beside": r.small} {
		if c != nil {
			all[name] = c
		}
	}
	return all
}

func (r *crowdRun) judgeSessions(row func(name, measured, required string)) {
	r.t.Helper()
	p, need := r.plan, r.plan.need
	sittings := map[string]sitting{}
	for name, c := range r.crowds() {
		sittings[name] = sittingOf(c, allEvents(r.t, []*crowd{c}), r.machine.excuses)
	}
	for _, name := range []string{"viewers", "small stream, alone", "small stream, beside"} {
		s, ok := sittings[name]
		if !ok {
			continue
		}
		required := ""
		if name == "viewers" {
			required = fmt.Sprintf("%.0f %%, later %.0f %%", 100*need.free, 100*need.freeLater)
			excuse := ""
			if percent(s.blameless, s.viewers) >= 100*need.free && percent(s.blamelessLater, s.viewers) >= 100*need.freeLater {
				excuse = s.excuse
			}
			r.must(percent(s.free, s.viewers) >= 100*need.free, excuse, "%.1f %% of the sessions without a stall, want %.0f %%", percent(s.free, s.viewers), 100*need.free)
			r.must(percent(s.freeLater, s.viewers) >= 100*need.freeLater, excuse, "%.1f %% of the sessions without a stall that began after the first %v, want %.0f %%",
				percent(s.freeLater, s.viewers), laterThan, 100*need.freeLater)
		}
		row(name, s.String(), required)
		r.must(s.playing == s.viewers && s.stillStalled == 0, "", "%s: %d of %d played, and %d had stopped for good when they left", name, s.playing, s.viewers, s.stillStalled)
		r.must(s.corrupt == 0, "", "%s: %d corrupt segments", name, s.corrupt)
		r.must(s.unanswered == 0, "", "%s: %d segments were refused with an HTTP status until they were over", name, s.unanswered)
		r.must(s.free == s.summarySessionFree, "", "rig, %s: %d sessions without a stall by events and %d by the summary", name, s.free, s.summarySessionFree)
	}
	if p.small > 0 {
		alone, beside := sittings["small stream, alone"], sittings["small stream, beside"]
		excuse := ""
		if beside.viewers-beside.blameless <= alone.viewers-alone.free {
			excuse = beside.excuse
		}
		r.must(beside.viewers-beside.free <= alone.viewers-alone.free, excuse, "the small stream: %d sessions with a stall beside the big one, %d alone",
			beside.viewers-beside.free, alone.viewers-alone.free)
		row("small stream's startup", fmt.Sprintf("p50 %+.2f s, p95 %+.2f s to what it was alone", beside.startup.P50-alone.startup.P50, beside.startup.P95-alone.startup.P95), "")
	}
}

// judgeBytes judges what the caster sent for what viewers received.
func (r *crowdRun) judgeBytes(row func(name, measured, required string)) {
	r.t.Helper()
	need := r.plan.need
	big := r.casters[0]
	origin := func(host string) bool { return host == big.publisher.addr }
	anyone := func(string) bool { return true }
	seen := readSeries(r.t, r.big.series)

	first, last, ok := window(r.meter.readings, 0, r.marks.settled, r.marks.left)
	if r.must(ok, "", "rig: the steady state was looked at"); !ok {
		return
	}
	a, z := first.casters[0], last.casters[0]
	stream := float64(z.encoded - a.encoded)
	placed, sent := float64(z.placing-a.placing), float64(z.placing-a.placing+z.origin-a.origin)
	viewers := seen.received(last.at, anyone) - seen.received(first.at, anyone)
	own := seen.received(last.at, origin) - seen.received(first.at, origin)
	relays := float64(relayed(r.meter.readings, first.at, last.at))
	length := last.at.Sub(first.at)

	row("steady state", fmt.Sprintf("%.0f s; the encoder wrote %s, %s; each viewer received %.3f of it", length.Seconds(), mb(stream), mbit(8*stream/length.Seconds()),
		viewers/stream/float64(r.plan.viewers)), "")
	caster, casterOffload := sent/stream, 1-(own+placed)/viewers
	overhead := (placed + relays) / viewers
	required := []string{"", "", ""}
	if need.caster > 0 {
		required = []string{fmt.Sprintf("≤ %.2f", need.caster), fmt.Sprintf("≥ %.2f", need.offload), fmt.Sprintf("≤ %.2f", need.overhead)}
		r.must(caster <= need.caster, r.lateLooks(), "the caster sends %.2f times the stream's bitrate, want at most %.2f", caster, need.caster)
		r.must(casterOffload >= need.offload, r.lateLooks(), "caster_offload is %.3f, want %.2f", casterOffload, need.offload)
		r.must(overhead <= need.overhead, r.lateLooks(), "placing_overhead is %.3f, want at most %.2f", overhead, need.overhead)
	}
	row("caster's segment bytes, in multiples of the stream", fmt.Sprintf("%.2f (to place %.2f, as the origin %.2f)", caster, placed/stream, (sent-placed)/stream), required[0])
	row("caster_offload", fmt.Sprintf("%.3f (offload %.3f)", casterOffload, 1-own/viewers), required[1])
	ofBoth := ""
	if len(r.casters) > 1 {
		ofBoth = " for both streams"
	}
	row("placing_overhead", fmt.Sprintf("%.3f (caster %s, boxes %s%s)", overhead, mb(placed), mb(relays), ofBoth), required[2])

	row("copies that a chosen box did not get", undelivered(r.meter.readings), "")
	until := r.marks.ramped
	row("while viewers came", fmt.Sprintf("%s of %s from the origin; until all left %s of %s", mb(seen.received(until, origin)), mb(seen.received(until, anyone)),
		mb(seen.received(r.marks.left, origin)), mb(seen.received(r.marks.left, anyone))), "")
}

// undelivered is what the first publisher counted until its last look, by reason.
func undelivered(readings []reading) string {
	var texts []string
	for _, look := range slices.Backward(readings) {
		if n := look.casters[0]; n.ok {
			for _, reason := range slices.Sorted(maps.Keys(n.undelivered)) {
				if count := n.undelivered[reason]; count > 0 {
					texts = append(texts, fmt.Sprintf("%s %d", reason, count))
				}
			}
			break
		}
	}
	return cmp.Or(strings.Join(texts, ", "), "none")
}

func (r *crowdRun) judgeLimit(row func(name, measured, required string)) {
	r.t.Helper()
	limit := float64(r.plan.limit) / 8
	kernel, told, own, seen := peaks(r.meter.readings, r.addrs, r.marks.began, r.marks.left)
	text := func(p peak) string {
		return fmt.Sprintf("%.2f of the limit (box%d, %s)", p.rate/limit, p.box+1, p.at.Format(time.TimeOnly))
	}
	judged := kernel
	if !seen {
		r.verdicts = append(r.verdicts, verdict{r.plan.name, notRun, "the kernel's counts of what boxes send (ss does not work here): boxes' own counts are judged"})
		judged = told
	}
	most := r.plan.need.limit
	row("a box's worst second", text(judged), fmt.Sprintf("≤ %.2f", most))
	row("the same, as boxes count whole deliveries", text(told), "")
	r.must(judged.rate <= most*limit, r.lateLooks(), "a box sent %.2f of its limit in a second, want at most %.2f", judged.rate/limit, most)
	if own.rate > 0 {
		row("the same, as boxes judge themselves", text(own), fmt.Sprintf("≤ %.2f", overLimit))
		r.must(own.rate <= overLimit*limit, r.lateLooks(), "a box says that it sent %.2f of its limit in a second, want at most %.2f", own.rate/limit, overLimit)
	}
}

// judgeHolders judges that copies become more with the viewers, and less when they left.
func (r *crowdRun) judgeHolders(row func(name, measured, required string)) {
	r.t.Helper()
	all, m := r.meter.readings, r.marks
	phases := []struct {
		name        string
		from, until time.Time
	}{{"before", m.looking, m.began}, {"ramp", m.began, m.ramped}, {"steady", m.ramped, m.left}, {"after all left", m.left, m.end.Add(time.Second)}}
	var holding, up []string
	for _, phase := range phases {
		holding = append(holding, phase.name+" "+brief(holders(all, 0, phase.from, phase.until)))
		var sessions []int
		for _, look := range all {
			if !look.at.Before(phase.from) && look.at.Before(phase.until) {
				sessions = append(sessions, look.casters[0].up)
			}
		}
		up = append(up, phase.name+" "+brief(sessions))
	}
	row("boxes that hold the newest segment but one", strings.Join(holding, ", "), "rise and fall")
	row("boxes with a session", strings.Join(up, ", "), "")
	before, steady := median(holders(all, 0, m.looking, m.began)), median(holders(all, 0, m.settled, m.left))
	last := holders(all, 0, m.end.Add(-4*time.Second), m.end)
	r.must(steady > before, "", "holders of a segment rise from %d to %d", before, steady)
	r.must(len(last) > 0 && median(last) <= before+(steady-before)/4 && median(last) < steady, "", "holders of a segment fall from %d to %d when all left, and were %d before", steady, median(last), before)

	if r.plan.down > 0 {
		var down []int
		for _, look := range all {
			if !look.at.Before(m.began) && look.at.Before(m.left) {
				n := 0
				for _, b := range look.boxes {
					if !b.ok {
						n++
					}
				}
				down = append(down, n)
			}
		}
		row("boxes down", fmt.Sprintf("%d kills: %s", r.kills, brief(down)), fmt.Sprintf("≤ %d", r.plan.down))
		r.must(r.kills > 0 && len(down) > 0 && slices.Max(down) > 0, "", "rig: %d boxes were killed", r.kills)
	}
}

// judgeRig holds what is counted at one end against what is counted at the other.
func (r *crowdRun) judgeRig(row func(name, measured, required string)) {
	r.t.Helper()
	got := map[string]int64{}
	for _, c := range r.crowds() {
		for host, n := range c.summary.Bytes {
			got[host] += n
		}
	}
	looks := r.meter.readings
	var received, served, kernel int64
	for box, addr := range r.addrs {
		if r.killed[box] {
			continue // what it sent last is not known
		}
		received += got[addr]
		n, _ := last(looks, box).since(boxCount{}) // nobody watched before
		served += n
		for i := 1; i < len(looks); i++ {
			kernel += looks[i].kernel.sent[addr]
		}
	}
	var originReceived, originSent int64
	for i, c := range r.casters {
		originReceived += got[c.publisher.addr]
		originSent += looks[len(looks)-1].casters[i].origin - looks[0].casters[i].origin
	}
	near := func(a, b int64) bool {
		return float64(max(a, b)-min(a, b)) <= max(0.03*float64(max(a, b)), float64(r.plan.rate)/8*segmentSeconds*4)
	}
	row("both ends", fmt.Sprintf("boxes say %s, their viewers %s, the kernel %s; the origin says %s, its viewers %s", mb(float64(served)), mb(float64(received)), mb(float64(kernel)),
		mb(float64(originSent)), mb(float64(originReceived))), "within 3 %")
	r.must(received > 0 && near(served, received) && near(originSent, originReceived), "", "rig: boxes sent %s and viewers received %s of them, the origin %s and %s",
		mb(float64(served)), mb(float64(received)), mb(float64(originSent)), mb(float64(originReceived)))
	seconds := int(r.marks.end.Sub(looks[0].at).Seconds())
	missing := 0
	for _, look := range looks {
		if !look.casters[0].ok {
			missing++
		}
	}
	r.must(len(looks)-missing >= seconds*8/10, "", "rig: the publisher was looked at %d times in %d s", len(looks)-missing, seconds)
}

// brief writes a series in few numbers.
func brief(list []int) string {
	const most = 10
	var texts []string
	for i, n := range list {
		if step := cmp.Or(len(list)/most, 1); i%step == 0 || i == len(list)-1 {
			texts = append(texts, fmt.Sprint(n))
		}
	}
	return strings.Join(texts, " ")
}
