//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// chaosFormat is a picture that costs little to encode, filled up to 1 Mbit/s.
var chaosFormat = format{"ts", []string{"."}, []string{
	"-map", "0:v", "-map", "1:a", "-b:v", "900k", "-minrate", "900k", "-maxrate", "900k", "-bufsize", "900k",
	"-x264-params", "nal-hrd=cbr:force-cfr=1", "-hls_segment_filename", "seg-%d.ts", "index.m3u8",
}}

// chaosRun is a fleet while faults are injected.
type chaosRun struct {
	chaosFleet
	total      time.Duration
	machine    *machine
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

	tellReasons(t)
	unmountLeftovers(t)
	r := &chaosRun{chaosFleet: chaosFleet{fleet: &fleet{t: t, dir: t.TempDir()}, seed: seed}, total: total, machine: watchMachine(t)}
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
			ends(t, "an upload was refused before the first fault")
		}
	}
	for i, policy := range sizes {
		r.crowds = append(r.crowds, startCrowd(t, homes[i], i+1, r.dir, r.index(), policy, crowdOf))
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
	eventually(t, patience, r.allOffered) // they return within 5 s and are dialled back, once more where that fails
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
		keepFile(c.events, "chaos")
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
		r.checks.Go(func() { in.comparison = r.ledger.compare(in.who, true) })
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
		c.add(l.compare(b.addr, false))
	}
	return c
}
