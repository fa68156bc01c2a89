//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// chaosFormat is a picture that costs little to encode, filled up to 1 Mbit/s.
var chaosFormat = format{"ts", []string{"."}, []string{
	"-map", "0:v", "-map", "1:a", "-b:v", "900k", "-minrate", "900k", "-maxrate", "900k", "-bufsize", "900k",
	"-x264-params", "nal-hrd=cbr:force-cfr=1", "-hls_segment_filename", "seg-%d.ts", "index.m3u8",
}}

// chaosRun is a fleet while faults are injected.
type chaosRun struct {
	chaosFleet
	crowds     []*crowd
	ledger     *ledger
	faults     []*injected // in the order of their beginning
	checks     sync.WaitGroup
	slow       [chaosBoxes][2]int64
	fillers    [chaosBoxes]*filler
	refused    [chaosBoxes]int
	redisTimes int
	uploads    struct{ acknowledged, refused int }
}

// TestChaos: a fleet is broken in all the ways that households know, while viewers watch. The
// short form is for each change; `make chaos` runs it for ten minutes and holds it to all figures.
func TestChaos(t *testing.T) {
	total, seed := 75*time.Second, uint64(1)
	if text := os.Getenv("CHAOS_FOR"); text != "" {
		var err error
		if total, err = time.ParseDuration(text); err != nil {
			t.Fatalf("CHAOS_FOR: %v, want a time such as 10m", err)
		}
	}
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CHAOS_SEED: %v, want a whole number", err)
		}
	}
	long := total >= shortChaos
	crowdOf, sizes := 10, []string{"dandelion", "dandelion", "dandelion", "dandelion", "dandelion", "hlsjs"}
	if !long {
		crowdOf, sizes = 4, []string{"dandelion", "dandelion", "hlsjs"}
	}

	unmountLeftovers(t)
	r := &chaosRun{chaosFleet: chaosFleet{fleet: &fleet{t: t, dir: t.TempDir()}, seed: seed}}
	t.Cleanup(r.keepEvents)
	r.source = filepath.Join(r.dir, "source")
	if err := os.Mkdir(r.source, 0o700); err != nil {
		t.Fatal(err)
	}
	homes := r.newPlaces(len(sizes))
	r.client = r.core.client(3 * time.Second)
	newChaosFleet(t, &r.chaosFleet)
	r.ledger = newLedger(t, r.fleet, r.core.client(5*time.Second))
	encodeScene(t, r.source, chaosFormat, "+delete_segments", 1)
	r.awaitMore(4)

	ctx, cancel := context.WithCancel(t.Context())
	var background sync.WaitGroup
	defer func() {
		cancel()
		background.Wait()
	}()
	for i := range 6 {
		if !r.uploadOne(ctx, i) {
			t.Fatal("an upload was refused before the first fault")
		}
	}
	for i, policy := range sizes {
		r.crowds = append(r.crowds, startCrowd(t, homes[i], r.dir, r.index(), policy, crowdOf))
	}
	background.Go(func() { r.ledger.keep(ctx) })
	background.Go(func() { r.keepUploading(ctx) })

	list := schedule(seed, total, chaosBoxes)
	fmt.Printf("chaos: %v of faults, seed %d, %d viewers\n", total, seed, crowdOf*len(sizes))
	for _, line := range r.notRun {
		fmt.Println("NOT RUN:", line)
	}
	r.pause(10 * time.Second) // all viewers play
	r.inject(list)
	r.checks.Wait()

	// All is repaired: everything comes back.
	r.awaitBoxes(chaosBoxes)
	eventually(t, soon, r.allOffered)
	r.pause(10 * time.Second)
	cancel()
	background.Wait()
	rest := r.ledger.compareAll(r.boxes)
	for _, c := range r.crowds {
		c.leave(t)
	}
	r.judge(rest, long)
}

// keepEvents keeps what viewers noticed beside the logs.
func (r *chaosRun) keepEvents() {
	for _, c := range r.crowds {
		if b, err := os.ReadFile(c.events); err == nil && keepLogs != "" {
			_ = os.WriteFile(filepath.Join(keepLogs, filepath.Base(c.events)), b, 0o600)
		}
	}
}

// pause lets the fleet be.
func (r *chaosRun) pause(length time.Duration) {
	r.t.Helper()
	select {
	case <-time.After(length):
	case <-r.t.Context().Done():
	}
}

// uploadOne hands a small file in, in turn to stay and for long.
func (r *chaosRun) uploadOne(ctx context.Context, i int) bool {
	ttl, until := "0", time.Time{}
	if i%2 == 1 {
		ttl, until = "24h", time.Now().Add(24*time.Hour)
	}
	path, digest, err := r.upload(ctx, fmt.Sprintf("upload-%d.bin", i), ttl, probeSize)
	if err != nil {
		r.t.Log(err)
		return false
	}
	r.ledger.add(path, digest, probeSize, until)
	return true
}

// keepUploading hands in a file now and then. While the publisher or Redis is away it may refuse;
// what it acknowledges must stay.
func (r *chaosRun) keepUploading(ctx context.Context) {
	ticker := time.NewTicker(15 * time.Second)
	defer ticker.Stop()
	for i := 6; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if r.uploadOne(ctx, i) {
			r.uploads.acknowledged++
		} else if ctx.Err() == nil {
			r.uploads.refused++
		}
	}
}

// inject breaks and repairs as the schedule says.
func (r *chaosRun) inject(list []injection) {
	type action struct {
		at time.Duration
		do func()
	}
	var actions []action
	for _, planned := range list {
		f := faults[planned.fault]
		if f.needs != nil && !f.needs(&r.chaosFleet) {
			continue
		}
		in := &injected{injection: planned}
		actions = append(actions, action{planned.at, func() { r.breakNow(f, in) }})
		if f.repairs != nil {
			actions = append(actions, action{planned.at + planned.length, func() { r.repairNow(f, in) }})
		}
	}
	slices.SortStableFunc(actions, func(a, b action) int { return int(a.at - b.at) })
	began := time.Now()
	for _, a := range actions {
		r.pause(time.Until(began.Add(a.at)))
		if r.t.Context().Err() != nil {
			return
		}
		a.do()
	}
}

func (r *chaosRun) breakNow(f fault, in *injected) {
	in.who = r.whom(in.injection)
	in.from = time.Now()
	in.healed = in.from.Add(in.length)
	in.unproven = f.breaks(r, in)
	r.faults = append(r.faults, in)
	if f.repairs == nil {
		in.healed = time.Now()
		r.tell(in)
	}
}

// repairNow repairs and then compares what the box has with what it acknowledged.
func (r *chaosRun) repairNow(f fault, in *injected) {
	if err := f.repairs(r, in); err != nil && in.unproven == nil {
		in.unproven = err
	}
	in.healed = time.Now()
	r.tell(in)
	if in.box >= 0 {
		r.checks.Go(func() { in.comparison = r.ledger.compare(in.who) })
	}
}

func (r *chaosRun) tell(in *injected) {
	fmt.Printf("chaos: %s %s %s for %v %s\n", in.from.Format("15:04:05.000"), in.fault, in.who, in.healed.Sub(in.from).Round(time.Millisecond), in.note)
}

// allOffered is nil when the entrance offers all boxes to publishers.
func (r *chaosRun) allOffered() error {
	known, err := fetchJSON[struct {
		Boxes []struct {
			ID         string `json:"id"`
			Searchable bool   `json:"searchable"`
			WhyNot     string `json:"why_not"`
		} `json:"boxes"`
	}](r.t.Context(), r.core.client(3*time.Second), r.core.ownURL(r.entrance.addr)+"/api/v1/boxes")
	if err != nil {
		return err
	}
	offered := 0
	var why []string
	for _, b := range known.Boxes {
		if b.Searchable {
			offered++
		}
		why = append(why, b.ID+": "+b.WhyNot)
	}
	if offered != chaosBoxes {
		return fmt.Errorf("the entrance offers %d boxes, want %d: %s", offered, chaosBoxes, strings.Join(why, "; "))
	}
	return nil
}

// compareAll compares all that must still be there.
func (l *ledger) compareAll(boxes []*daemon) comparison {
	var c comparison
	for _, b := range boxes {
		c.add(l.compare(b.addr))
	}
	return c
}

// Limits of the long form, in seconds.
const (
	leastStallFree = 0.98
	mostAfterReset = 0.5
	mostAfterCut   = 1.5
	mostHLSJS      = 1.5
)

// judge prints the table and fails the test for what must hold. Figures of time are judged in the
// long form, and not on a machine that is overloaded.
func (r *chaosRun) judge(rest comparison, long bool) {
	t := r.t
	events := allEvents(t, r.crowds)
	viewers := map[string]int{}
	corrupt := rest.corrupt
	played := time.Now()
	for _, c := range r.crowds {
		viewers[c.policy] += c.size
		corrupt += c.summary.Segments.Corrupt
		if c.summary.Playing != c.size {
			t.Errorf("%s: %d of them ever played", c.name, c.summary.Playing)
		}
	}
	for _, e := range events {
		if e.Event.Event == watch.EventStall && e.end().After(played.Add(-5*time.Second)) && e.Seconds > 1 {
			t.Errorf("viewer %d (%s) does not play at the end: it has stalled for %.1f s", e.viewer, e.policy, e.Seconds)
		}
	}
	lost := rest
	times := map[string]int{}
	for _, in := range r.faults {
		lost.add(in.comparison)
		times[in.fault]++
		if in.unproven != nil {
			t.Errorf("%s at %s did not take effect: %v", in.fault, in.from.Format(time.TimeOnly), in.unproven)
		}
	}
	for name, f := range faults {
		if times[name] == 0 && (f.needs == nil || f.needs(&r.chaosFleet)) {
			t.Errorf("%s was never injected", name)
		}
	}
	corrupt += lost.corrupt - rest.corrupt
	if lost.lost > 0 || corrupt > 0 {
		t.Errorf("%d acknowledged files lost and %d corrupt, want none:\n%s", lost.lost, corrupt, strings.Join(lost.what[:min(len(lost.what), 20)], "\n"))
	}
	if lost.compared == 0 || r.ledger.loads == 0 {
		t.Error("nothing was compared with the ledger")
	}

	d, h := watch.Dandelion.Name, watch.HLSJS.Name
	stalled, stalledH := stalledBesides(r.faults, events, d), stalledBesides(r.faults, events, h)
	free := 1 - float64(len(stalled))/float64(viewers[d])
	reset := outcomeOf(r.faults, events, d, viewers[d], faultKill)
	silent := outcomeOf(r.faults, events, d, viewers[d], faultStop, faultCut)
	resetH := outcomeOf(r.faults, events, h, viewers[h], faultKill)
	silentH := outcomeOf(r.faults, events, h, viewers[h], faultStop, faultCut)
	back := resumed(r.faults, events)
	var b strings.Builder
	b.WriteString(table(r.faults, events, viewers))
	fmt.Fprintf(&b, "\nseed %d, load %s on %d processors. %d copies compared with what boxes acknowledged (%d of them at the end), %d lost, %d corrupt; uploads between: %d acknowledged, %d refused.\n",
		r.seed, load(), runtime.NumCPU(), lost.compared, rest.compared, lost.lost, corrupt, r.uploads.acknowledged, r.uploads.refused)
	fmt.Fprintf(&b, "policy dandelion: %.1f%% of %d sessions without a stall, those at the publisher's own kill not counted; failovers after a reset p95 %.0f ms, after a silent cut p95 %.0f ms.\n",
		100*free, viewers[d], 1000*reset.percentile(95), 1000*silent.percentile(95))
	fmt.Fprintf(&b, "policy hlsjs: %d of %d sessions with a stall; failovers after a reset p95 %.0f ms, after a silent cut p95 %.0f ms.\n", len(stalledH), viewers[h], 1000*resetH.percentile(95), 1000*silentH.percentile(95))
	fmt.Fprintf(&b, "publisher's own kill: the last viewer played %v after its restart.\n", back.Round(time.Millisecond))
	for _, c := range r.crowds {
		s := c.summary
		fmt.Fprintf(&b, "%s: startup p50 %.2f s p95 %.2f s, %d stalls (%.1f s), segments %+v, failovers %+v, %d redirects, %d retries, %d playlist failures\n",
			c.name, s.Startup.P50, s.Startup.P95, s.Stalls.Count, s.Stalls.Seconds, s.Segments, s.Failovers.ByCause, s.Redirects, s.Retries, s.PlaylistFailures)
	}
	for _, line := range r.notRun {
		fmt.Fprintln(&b, "NOT RUN:", line)
	}
	fmt.Print(b.String())
	if name := os.Getenv("CHAOS_REPORT"); name != "" {
		if err := os.WriteFile(name, []byte(b.String()), 0o644); err != nil {
			t.Error(err)
		}
	}

	judge := t.Errorf
	var recent float64
	_, _ = fmt.Sscan(load(), &recent)
	if !long || recent > float64(overload*runtime.NumCPU()) {
		judge = func(format string, args ...any) { t.Logf("not judged: "+format, args...) }
	}
	if free < leastStallFree {
		judge("%.1f%% of the sessions without a stall, want %.0f%%", 100*free, 100*leastStallFree)
	}
	if p := reset.percentile(95); p > mostAfterReset {
		judge("failovers after a reset take %.2f s (p95), want %.1f s", p, mostAfterReset)
	}
	if p := silent.percentile(95); p > mostAfterCut {
		judge("failovers after a silent cut take %.2f s (p95), want %.1f s", p, mostAfterCut)
	}
	if p := resetH.percentile(95); p > mostHLSJS {
		judge("failovers of hls.js after a reset take %.2f s (p95), want %.1f s", p, mostHLSJS)
	}
	if back > resumeWithin {
		judge("playing goes on %v after the publisher's restart, want %v", back, resumeWithin)
	}
}
