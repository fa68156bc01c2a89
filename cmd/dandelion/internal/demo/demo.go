// Package demo runs a whole fleet in one process: an entrance, boxes and a publisher on
// embedded state, a live stream, and viewers when they are asked for. It shows what Dandelion
// does and measures it; nothing else uses it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"dandelion/box"
	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/state"
	"dandelion/pkg/watch"
	"dandelion/publisher"
)

// Options of a demonstration.
type Options struct {
	Boxes   int
	Viewers int           // of its own
	For     time.Duration // 0: until ctx ends
	Listen  string        // of the publisher: the viewers' URL
	Log     *slog.Logger
	// Ready is called once, when the URL can be opened.
	Ready func(url, picture string)
	// Status is called every second.
	Status func(Status)
}

// Status is how the demonstration goes.
type Status struct {
	Running        time.Duration
	SegmentsPlaced int64
	BoxesUp        int
	BoxBytes       int64 // that boxes sent to viewers
	OriginBytes    int64 // that the publisher itself sent to viewers
	PlacingBytes   int64 // that the publisher sent to boxes
}

// Offload is the share of the viewers' bytes that the caster's server did not send
// (docs/architecture.md, "The saving"). ok is false before any viewer received a byte.
func (s Status) Offload() (share float64, ok bool) {
	return offload(s.OriginBytes, s.BoxBytes+s.OriginBytes)
}

func offload(caster, viewers int64) (float64, bool) {
	if viewers == 0 {
		return 0, false
	}
	return 1 - float64(caster)/float64(viewers), true
}

// Result is what the demonstration's own viewers measured. The names of its JSON are an
// interface.
type Result struct {
	SegmentsPlaced     int64    `json:"segments_placed"`
	Boxes              int      `json:"boxes"`
	ViewerBytes        int64    `json:"viewer_bytes"`
	BoxBytes           int64    `json:"box_bytes"`
	OriginBytes        int64    `json:"origin_bytes"`
	CasterPlacingBytes int64    `json:"caster_placing_bytes"`
	Offload            *float64 `json:"offload"`        // null when no viewer received a byte
	CasterOffload      *float64 `json:"caster_offload"` // null likewise
	Stalls             int      `json:"stalls"`
	StartupMS          int64    `json:"startup_ms"` // of the slowest viewer; -1 when one never started
}

type fleet struct {
	opts      Options
	dir       string
	entrance  *entrance.Entrance
	boxes     []*box.Box
	publisher *publisher.Publisher
	viewers   []*watch.Player
}

// Run runs the demonstration until opts.For is over or ctx ends, then drains it.
func Run(ctx context.Context, opts Options) (Result, error) {
	dir, err := os.MkdirTemp("", "dandelion-demo-")
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(dir)
	f := &fleet{opts: opts, dir: dir}
	if opts.For > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, opts.For)
		defer cancel()
	}
	return f.run(ctx)
}

// run starts the peers in the order in which they need each other and stops them in reverse.
func (f *fleet) run(ctx context.Context) (Result, error) {
	running := newServices(ctx)
	defer running.stop()
	if err := os.MkdirAll(filepath.Join(f.dir, "source"), 0o700); err != nil {
		return Result{}, err
	}
	if err := f.startPeers(ctx, running); err != nil {
		return Result{}, err
	}
	picture, encode := newEncoder(filepath.Join(f.dir, "source"), f.opts.Log)
	running.start("encoder", encode)

	url := "http://" + f.publisher.Addr().String()
	if f.opts.Ready != nil {
		f.opts.Ready(url+"/", picture)
	}
	var watching sync.WaitGroup
	for i := range f.opts.Viewers {
		p := watch.New(watch.Config{URL: url + "/live/" + streamName + "/index.m3u8", UserAgent: fmt.Sprintf("dandelion-demo/%d", i), Log: f.opts.Log})
		f.viewers = append(f.viewers, p)
		watching.Go(func() {
			if err := p.Run(ctx); err != nil {
				f.opts.Log.Warn("a viewer of the demonstration stopped", "reason", err)
			}
		})
	}
	err := f.show(ctx, running)
	watching.Wait()
	result := f.result()
	return result, errors.Join(err, running.stop())
}

const streamName = "demo"

func (f *fleet) startPeers(ctx context.Context, running *services) error {
	var err error
	ec := entrance.DefaultConfig()
	ec.Listen, ec.DataDir = "127.0.0.1:0", filepath.Join(f.dir, "entrance")
	if f.entrance, err = entrance.New(ctx, ec, state.Default(), f.opts.Log.With("peer", "entrance")); err != nil {
		return err
	}
	running.start("entrance", f.entrance.Run)
	entranceURL := "http://" + f.entrance.Addr().String()

	for i := range f.opts.Boxes {
		name := fmt.Sprintf("box%d", i+1)
		bc := box.DefaultConfig()
		bc.Listen, bc.PublicAddress = "127.0.0.1:0", "127.0.0.1"
		bc.DataDir, bc.LiveDir = filepath.Join(f.dir, name), filepath.Join(f.dir, name+"-live")
		bc.Entrances = []string{entranceURL}
		bc.UploadCapacity, bc.UploadLimit = config.Fixed(config.Gbit), config.Fixed(config.Gbit) // loopback
		b, err := box.New(bc, state.Default(), f.opts.Log.With("peer", name))
		if err != nil {
			return err
		}
		f.boxes = append(f.boxes, b)
		running.start(name, b.Run)
	}

	pc := publisher.DefaultConfig()
	pc.Listen, pc.DataDir = f.opts.Listen, filepath.Join(f.dir, "publisher")
	pc.Entrances = []string{entranceURL}
	pc.Streams = []publisher.StreamConfig{{Name: streamName, Source: "dir:" + filepath.Join(f.dir, "source")}}
	if f.publisher, err = publisher.New(ctx, pc, state.Default(), f.opts.Log.With("peer", "publisher")); err != nil {
		return err
	}
	running.start("publisher", f.publisher.Run)
	return nil
}

// show reports the status every second until ctx ends or a part fails.
func (f *fleet) show(ctx context.Context, running *services) error {
	start := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if f.opts.Status != nil {
			f.opts.Status(f.status(time.Since(start)))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-running.failed:
			return err
		case <-ticker.C:
		}
	}
}

func (f *fleet) status(running time.Duration) Status {
	totals := f.publisher.Totals()
	s := Status{
		Running: running, SegmentsPlaced: totals.Placing.Placed, BoxesUp: f.publisher.Boxes().Up,
		OriginBytes: totals.Viewers.OriginBytes, PlacingBytes: totals.Placing.Sent,
	}
	for _, b := range f.boxes {
		s.BoxBytes += int64(b.Totals().ServedBytes)
	}
	return s
}

func (f *fleet) result() Result {
	totals := f.publisher.Totals()
	r := Result{SegmentsPlaced: totals.Placing.Placed, Boxes: f.publisher.Boxes().Up, CasterPlacingBytes: totals.Placing.Sent}
	_, originPort, _ := net.SplitHostPort(f.publisher.Addr().String())
	for _, p := range f.viewers {
		seen := p.Report()
		for host, n := range seen.Bytes {
			r.ViewerBytes += n
			if _, port, _ := net.SplitHostPort(host); port == originPort {
				r.OriginBytes += n
			} else {
				r.BoxBytes += n
			}
		}
		r.Stalls += seen.Stalls
		switch ms := seen.Startup.Milliseconds(); {
		case seen.Startup == 0 || r.StartupMS < 0:
			r.StartupMS = -1
		default:
			r.StartupMS = max(r.StartupMS, ms)
		}
	}
	if share, ok := offload(r.OriginBytes, r.ViewerBytes); ok {
		r.Offload = &share
	}
	if share, ok := offload(r.OriginBytes+r.CasterPlacingBytes, r.ViewerBytes); ok {
		r.CasterOffload = &share
	}
	return r
}

// services are the running parts; each is stopped on its own, in reverse order, so that every
// peer can say goodbye to those it started after.
type services struct {
	ctx     context.Context
	failed  chan error
	stops   []func() error
	stopped bool
}

func newServices(ctx context.Context) *services {
	return &services{ctx: context.WithoutCancel(ctx), failed: make(chan error, 1)}
}

func (s *services) start(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if err != nil && ctx.Err() == nil {
			select {
			case s.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
		done <- err
	}()
	s.stops = append(s.stops, func() error {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	})
}

func (s *services) stop() error {
	if s.stopped {
		return nil
	}
	s.stopped = true
	var errs []error
	for i := len(s.stops) - 1; i >= 0; i-- {
		errs = append(errs, s.stops[i]())
	}
	return errors.Join(errs...)
}
