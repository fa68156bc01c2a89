// Package testfleet starts real entrances, boxes and publishers in one process, on port 0 and
// loopback, for tests that need them together, and breaks them: peers stop and come back,
// links are cut or become slow. Only tests import it.
package testfleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"dandelion/box"
	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
	"dandelion/publisher"
)

// Options say what a fleet consists of.
type Options struct {
	Entrances int // default 1
	Boxes     int
	Redis     string       // URL for all peers; "": each has its own embedded state
	Replicas  int          // default 2
	Streams   int          // default 1: "demo"; with more, "demo-2" and so on
	Log       *slog.Logger // of all peers; nil: the test's, which keeps every line in memory
	// Entrance, Box and Publisher change the configurations; nil: as they are.
	Entrance  func(c *entrance.Config)
	Box       func(i int, c *box.Config)
	Publisher func(c *publisher.Config)
}

// Fleet is a running fleet with one publisher. Its first stream is "demo"; what it publishes is
// written with Encoder.
type Fleet struct {
	tb         testing.TB
	dir        string
	redis      state.Config
	entrances  []string // URLs
	change     func(i int, c *box.Config)
	publishers int // added
	Log        *slog.Logger
	Entrances  []*Entrance
	Boxes      []*Box
	Publisher  *Publisher
}

// Entrance, Box and Publisher are peers that can be stopped and started again with their
// data_dir and port.
type (
	Entrance struct {
		peer
		*entrance.Entrance
		cfg entrance.Config
	}
	Box struct {
		peer
		*box.Box
		Link *Link // between the box and everybody who dials it
		cfg  box.Config
	}
	Publisher struct {
		peer
		*publisher.Publisher
		cfg publisher.Config
	}
)

// URL is the base URL of the publisher's front.
func (p *Publisher) URL() string { return "http://" + p.Addr().String() }

// Start starts a fleet and returns when every box is offered to the publisher and has a session
// with it. It stops with the test.
func Start(tb testing.TB, o Options) *Fleet {
	tb.Helper()
	f := &Fleet{tb: tb, dir: tb.TempDir(), redis: state.Default(), Log: slog.New(slog.NewTextHandler(testOutput{tb}, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	f.redis.URL = o.Redis
	if o.Log != nil {
		f.Log = o.Log
	}
	var urls []string
	for i := range max(o.Entrances, 1) {
		e := &Entrance{peer: peer{fleet: f, name: fmt.Sprintf("entrance%d", i+1)}, cfg: entrance.DefaultConfig()}
		e.cfg.Listen, e.cfg.DataDir = "127.0.0.1:0", filepath.Join(f.dir, e.name)
		if o.Entrance != nil {
			o.Entrance(&e.cfg)
		}
		e.Start()
		e.cfg.Listen = e.Addr().String()
		urls = append(urls, "http://"+e.Addr().String())
		f.Entrances = append(f.Entrances, e)
	}
	f.entrances, f.change = urls, o.Box
	f.AddBoxes(o.Boxes)
	p := &Publisher{peer: peer{fleet: f, name: "publisher"}, cfg: publisher.DefaultConfig()}
	p.cfg.Listen, p.cfg.DataDir, p.cfg.Entrances = "127.0.0.1:0", filepath.Join(f.dir, "publisher"), urls
	p.cfg.Streams = []publisher.StreamConfig{{Name: "demo", Source: "dir:" + f.SourceDir()}}
	for n := 2; n <= o.Streams; n++ {
		p.cfg.Streams = append(p.cfg.Streams, publisher.StreamConfig{Name: fmt.Sprintf("demo-%d", n), Source: "dir:" + f.sourceDir(n)})
	}
	if o.Replicas > 0 {
		p.cfg.Replicas = o.Replicas
	}
	if o.Publisher != nil {
		o.Publisher(&p.cfg)
	}
	f.Publisher = p
	p.Start()
	p.cfg.Listen = p.Addr().String()
	f.AwaitBoxes(o.Boxes)
	return f
}

// entranceWS is the URL that an old peer is configured with.
func (f *Fleet) entranceWS() string {
	return "http://" + f.Entrances[0].Addr().String() + wire.EntranceWSPath
}

// AddPublisher starts one more publisher, whose stream "demo" is written with the encoder.
func (f *Fleet) AddPublisher(change func(c *publisher.Config)) (*Publisher, *Encoder) {
	f.tb.Helper()
	f.publishers++
	name := fmt.Sprintf("publisher%d", f.publishers+1)
	p := &Publisher{peer: peer{fleet: f, name: name}, cfg: publisher.DefaultConfig()}
	p.cfg.Listen, p.cfg.DataDir, p.cfg.Entrances = "127.0.0.1:0", filepath.Join(f.dir, name), f.entrances
	e := f.encoder(filepath.Join(f.dir, name+"-source"), 100+f.publishers)
	p.cfg.Streams = []publisher.StreamConfig{{Name: "demo", Source: "dir:" + e.dir}}
	if change != nil {
		change(&p.cfg)
	}
	p.Start()
	p.cfg.Listen = p.Addr().String()
	return p, e
}

// AddBoxes starts so many more boxes. It does not wait until the publisher knows them.
func (f *Fleet) AddBoxes(n int) {
	f.tb.Helper()
	for range n {
		i := len(f.Boxes)
		b := &Box{peer: peer{fleet: f, name: fmt.Sprintf("box%d", i+1)}, Link: newLink(f.tb), cfg: box.DefaultConfig()}
		b.cfg.Listen, b.cfg.PublicAddress = "127.0.0.1:0", b.Link.Addr()
		b.cfg.DataDir, b.cfg.LiveDir = filepath.Join(f.dir, b.name), filepath.Join(f.dir, b.name+"-live")
		b.cfg.Entrances, b.cfg.ReportInterval = f.entrances, config.Second
		b.cfg.UploadCapacity, b.cfg.UploadLimit = config.Fixed(config.Gbit), config.Fixed(config.Gbit)
		if f.change != nil {
			f.change(i, &b.cfg)
		}
		f.Boxes = append(f.Boxes, b)
		b.Start()
	}
}

// SourceDir is the directory of the first stream's source.
func (f *Fleet) SourceDir() string { return f.sourceDir(1) }

func (f *Fleet) sourceDir(stream int) string {
	if stream == 1 {
		return filepath.Join(f.dir, "source")
	}
	return filepath.Join(f.dir, fmt.Sprintf("source-%d", stream))
}

// AwaitBoxes waits until the publisher has sessions with exactly n boxes.
func (f *Fleet) AwaitBoxes(n int) {
	f.tb.Helper()
	f.Await(fmt.Sprintf("%d boxes up at the publisher", n), func() bool { return f.Publisher.Boxes().Up == n })
}

// Patience is how long Await waits: far longer than anything takes, for machines under load.
const Patience = 30 * time.Second

// Await waits until the condition holds, and fails the test when it does not within Patience.
func (f *Fleet) Await(what string, condition func() bool) {
	f.tb.Helper()
	ctx, cancel := context.WithTimeout(f.tb.Context(), Patience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			f.tb.Fatalf("waited in vain for: %s", what)
		}
	}
}

// peer is what runs.
type peer struct {
	fleet  *Fleet
	name   string
	cancel context.CancelFunc
	done   chan error
}

func (p *peer) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel, p.done = cancel, make(chan error, 1)
	done := p.done
	go func() { done <- f(ctx) }()
	p.fleet.tb.Cleanup(p.Stop)
}

// Stop drains the peer and waits for its end. A second call does nothing.
func (p *peer) Stop() {
	if p.cancel == nil {
		return
	}
	p.cancel()
	if err := <-p.done; err != nil && !errors.Is(err, context.Canceled) {
		p.fleet.tb.Errorf("%s: %v", p.name, err)
	}
	p.cancel = nil
}

func (p *peer) log() *slog.Logger { return p.fleet.Log.With("peer", p.name) }

func (p *peer) must(err error) {
	p.fleet.tb.Helper()
	if err != nil {
		p.fleet.tb.Fatalf("%s: %v", p.name, err)
	}
}

// Start starts the entrance, again with its port after a Stop.
func (e *Entrance) Start() {
	var err error
	e.Entrance, err = entrance.New(context.Background(), e.cfg, e.fleet.redis, e.log())
	e.must(err)
	e.run(e.Entrance.Run)
}

// Start starts the box, again with its data and its public address after a Stop.
func (b *Box) Start() {
	var err error
	b.Box, err = box.New(b.cfg, b.fleet.redis, b.log())
	b.must(err)
	b.Link.lead(b.Addr().String())
	b.run(b.Box.Run)
}

// Start starts the publisher, again with its port after a Stop.
func (p *Publisher) Start() {
	var err error
	p.Publisher, err = publisher.New(context.Background(), p.cfg, p.fleet.redis, p.log())
	p.must(err)
	p.run(p.Publisher.Run)
}

// testOutput is the test's log as a writer.
type testOutput struct{ tb testing.TB }

func (o testOutput) Write(b []byte) (int, error) {
	o.tb.Log(string(b[:len(b)-1]))
	return len(b), nil
}
