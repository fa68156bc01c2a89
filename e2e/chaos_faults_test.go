//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// fault breaks something and repairs it. Both return an error when it did not take effect: a run
// that injects nothing must not pass.
type fault struct {
	breaks  func(*chaosRun, *injected) error
	repairs func(*chaosRun, *injected) error
	needs   func(*chaosFleet) bool // nil: nothing
}

var faults = map[string]fault{
	faultKill:      {breaks: (*chaosRun).killBox, repairs: (*chaosRun).startBox},
	faultStop:      {breaks: (*chaosRun).stopBox, repairs: (*chaosRun).continueBox},
	faultCut:       {breaks: (*chaosRun).cutBox, repairs: (*chaosRun).joinBox, needs: (*chaosFleet).hasLines},
	faultSlow:      {breaks: (*chaosRun).slowBox, repairs: (*chaosRun).hurryBox, needs: (*chaosFleet).hasLines},
	faultFill:      {breaks: (*chaosRun).fillBox, repairs: (*chaosRun).emptyBox, needs: (*chaosFleet).hasDisks},
	faultDrain:     {breaks: (*chaosRun).drainBox, repairs: (*chaosRun).startDrainedBox},
	faultPublisher: {breaks: (*chaosRun).killPublisher},
	faultRedis:     {breaks: (*chaosRun).stopRedis, repairs: (*chaosRun).continueRedis},
	faultEntrance:  {breaks: (*chaosRun).killEntrance, repairs: (*chaosRun).startEntrance},
}

func (c *chaosFleet) hasLines() bool { return c.core.line != nil }
func (c *chaosFleet) hasDisks() bool { return c.disks[0] != "" }

const (
	silence   = 400 * time.Millisecond // who does not answer for so long is away
	refusal   = 3 * time.Second        // within that the refusal of a program that is gone comes through
	slowRate  = 1e6                    // bits/s
	probeSize = 300_000                // of the uploads that the slow line is measured with
	drainMost = 12 * time.Second       // 10 s for downloads under way, and a little
)

// dials returns the error of a connection from the publisher's place.
func (r *chaosRun) dials(addr string) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), silence)
	defer cancel()
	conn, err := r.core.dial(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	return err
}

// refusesNow is nil when connections are refused, as by a machine whose program is not running. Where
// no answer comes the line may have lost it, or the machine was slow: it is asked again.
func (r *chaosRun) refusesNow(addr string) error {
	return awaiting(r.t, refusal, func() error {
		switch err := r.dials(addr); {
		case errors.Is(err, syscall.ECONNREFUSED):
			return nil
		case err == nil:
			return fatal{fmt.Errorf("%s was killed, and takes a connection", addr)}
		default:
			return fmt.Errorf("%s was killed, and a connection to it ends with: %w", addr, err)
		}
	})
}

func (r *chaosRun) killBox(in *injected) error {
	b := r.boxes[in.box]
	b.kill()
	return r.refusesNow(b.addr)
}

func (r *chaosRun) startBox(in *injected) error {
	r.boxes[in.box].start()
	return nil
}

func (r *chaosRun) stopBox(in *injected) error {
	b := r.boxes[in.box]
	b.signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(r.t.Context(), silence)
	defer cancel()
	if _, _, err := fetch(ctx, r.core.client(0), b.url()+"/dandelion/"+b.id+"/"); !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s is stopped, and answers: %v", b.name, err)
	}
	return nil
}

func (r *chaosRun) continueBox(in *injected) error {
	r.boxes[in.box].signal(syscall.SIGCONT)
	return nil
}

func (r *chaosRun) cutBox(in *injected) error {
	r.at[in.box].line.setCut(true)
	if err := r.dials(r.boxes[in.box].addr); !os.IsTimeout(err) && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s is cut off, and a connection to it ends with: %v", r.boxes[in.box].name, err)
	}
	return nil
}

func (r *chaosRun) joinBox(in *injected) error {
	r.at[in.box].line.setCut(false)
	return nil
}

func (r *chaosRun) slowBox(in *injected) error {
	r.slow[in.box] = r.at[in.box].line.setRate(slowRate)
	return nil
}

// hurryBox looks back: the line was used, and never faster than allowed.
func (r *chaosRun) hurryBox(in *injected) error {
	total := r.at[in.box].line.setRate(boxRate)
	most := slowRate/8*time.Since(in.from).Seconds() + 2*slowRate/8*lineQueue.Seconds()
	for way, bytes := range total {
		passed := bytes - r.slow[in.box][way]
		if float64(passed) > most || way == 0 && passed == 0 {
			return fmt.Errorf("the slow line carried %d bytes, want some and at most %.0f", passed, most)
		}
	}
	return nil
}

// filler fills a disk again whenever something on it is deleted, until it is stopped.
type filler struct {
	dir   string
	file  *os.File
	stop  chan struct{}
	group sync.WaitGroup
	// How often it came, and how often there was room for a file then.
	looks, roomy int
}

// roomLeft is more than what one file leaves when it expires or makes room.
const roomLeft = 1 << 20

func (r *chaosRun) fillBox(in *injected) error {
	file, err := os.Create(filepath.Join(r.disks[in.box], "others"))
	if err != nil {
		return err
	}
	f := &filler{dir: r.disks[in.box], file: file, stop: make(chan struct{})}
	r.fillers[in.box] = f
	r.refused[in.box] = r.fullRefusals(in.box)
	err = f.fill()
	f.group.Go(func() {
		ticker := time.NewTicker(look)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				f.look()
			case <-f.stop:
				return
			}
		}
	})
	return err
}

// look notes whether there was room, and fills it.
func (f *filler) look() {
	var left unix.Statfs_t
	if err := unix.Statfs(f.dir, &left); err == nil {
		if f.looks++; int64(left.Bavail)*left.Bsize > roomLeft {
			f.roomy++
		}
	}
	_ = f.fill()
}

// fill writes until the disk is full.
func (f *filler) fill() error {
	_, err := io.Copy(f.file, zeros{})
	if !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("the disk does not become full: %v", err)
	}
	return nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func (r *chaosRun) emptyBox(in *injected) error {
	f := r.fillers[in.box]
	close(f.stop)
	f.group.Wait()
	f.file.Close()
	err := os.Remove(f.file.Name())
	// A single moment proves nothing: the box deletes what expires, and the filler comes after it.
	if err == nil && (f.looks == 0 || f.roomy > f.looks/10) {
		err = fmt.Errorf("the full disk had more than %d bytes free at %d of %d looks", roomLeft, f.roomy, f.looks)
	}
	r.ledger.needsRoom(in.who)
	in.note = fmt.Sprintf("%d files refused as full", r.fullRefusals(in.box)-r.refused[in.box])
	return err
}

var fullMetric = regexp.MustCompile(`(?m)^dandelion_box_ingest_files_total\{result="full"\} (\d+)`)

// fullRefusals is how many files a box has refused because it is full.
func (r *chaosRun) fullRefusals(box int) int {
	body, _, err := fetch(r.t.Context(), r.at[box].client(soon), r.at[box].ownURL(r.boxes[box].addr)+"/metrics")
	if err != nil {
		return 0
	}
	if match := fullMetric.FindSubmatch(body); match != nil {
		n, _ := strconv.Atoi(string(match[1]))
		return n
	}
	return 0
}

func (r *chaosRun) drainBox(in *injected) error {
	r.boxes[in.box].signal(syscall.SIGTERM)
	return nil
}

// startDrainedBox waits until the box has left.
func (r *chaosRun) startDrainedBox(in *injected) error {
	b := r.boxes[in.box]
	status := b.exit(r.t, leave)
	took := time.Since(in.from)
	var err error
	if status != 0 || took > drainMost+in.length {
		err = fmt.Errorf("%s ended with status %d within %v after SIGTERM", b.name, status, took)
	}
	if err == nil {
		err = r.refusesNow(b.addr)
	}
	b.start()
	return err
}

func (r *chaosRun) killPublisher(in *injected) error {
	r.publisher.kill()
	err := r.refusesNow(r.publisher.addr)
	r.publisher.start()
	in.note = fmt.Sprintf("listened again after %v", time.Since(in.from).Round(time.Millisecond))
	return err
}

// stopRedis lets it fall silent and, every second time, ends it; its file has what it said.
func (r *chaosRun) stopRedis(in *injected) error {
	if r.redisTimes++; r.redisTimes%2 == 1 {
		r.redis.signal(syscall.SIGSTOP)
		in.note = "silent"
	} else {
		r.redis.kill()
		in.note = "killed"
	}
	if err := r.redis.answers(); err == nil {
		return errors.New("Redis was to be away, and answers")
	}
	return nil
}

func (r *chaosRun) continueRedis(*injected) error {
	if !r.redis.running() {
		r.redis.start()
		return nil
	}
	r.redis.signal(syscall.SIGCONT)
	return awaiting(r.t, soon, r.redis.answers)
}

func (r *chaosRun) killEntrance(*injected) error {
	r.entrance.kill()
	return r.refusesNow(r.entrance.addr)
}

func (r *chaosRun) startEntrance(*injected) error {
	r.entrance.start()
	return nil
}

// whom names what a fault breaks, as viewers see it.
func (r *chaosRun) whom(in injection) string {
	switch {
	case in.box >= 0:
		return r.boxes[in.box].addr
	case strings.HasPrefix(in.fault, "publisher"):
		return r.publisher.addr
	}
	return ""
}
