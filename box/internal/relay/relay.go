// Package relay passes files on to other boxes, those that publishers name: while they arrive, or
// out of the store, over kept sessions (docs/protocol.md, relay). It owns the sessions with these
// boxes and what they may cost. It does not know how files are stored, nor who asked for them: it is
// given bytes, targets, and somebody to tell what went wrong.
package relay

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/capacity"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
)

// Limits of what is passed on.
const (
	maxTransfers = 256 // at once
	perPeer      = 4   // sessions with one box: a file that comes slowly must not hold up others
	idleFor      = time.Minute
	leastTime    = 10 * time.Second // for a transfer; longer for what plays longer
	// Weights of transfers beside a viewer's: many viewers wait for what a box passes on while it
	// arrives, some for copies of older segments.
	liveWeight = 3
	copyWeight = 1
)

// Config is what a Service needs.
type Config struct {
	Own        func(local netip.Addr) wire.Peer // what the box says of itself on a connection from local
	Uplink     *uplink.Limiter
	Line       *capacity.Line // learns from what is sent; nil: nobody does
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// File is a file that is passed on.
type File struct {
	Header wire.FileHeader // without RequestID and Relay, which differ from box to box
	// Open is called once for each target, before Pass returns.
	Open func() (io.ReadCloser, error)
	// Least is the narrowest address that may be dialled for it.
	Least netaddr.Scope
	// Arriving: the file is on its way to this box, and not a copy of what it holds.
	Arriving bool
	// Answer tells the publisher what became of a target: a wire.Refused with Box of one that nothing
	// could be passed on to, a wire.Stored of an old one. It is called from any goroutine.
	Answer func(any)
}

// Service passes files on. Its methods may be called from any goroutine.
type Service struct {
	cfg     Config
	metrics *prometheus.CounterVec

	patience  time.Duration // openWithin, but in tests
	sent      atomic.Int64
	transfers chan struct{}

	mu     sync.Mutex
	peers  map[target]*peer
	ended  bool
	group  sync.WaitGroup // transfers
	ctx    context.Context
	cancel context.CancelFunc
}

// New returns a Service without sessions.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg, patience: openWithin, transfers: make(chan struct{}, maxTransfers), peers: map[target]*peer{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.metrics = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_box_relay_files_total", Help: "Files passed on to other boxes, by how that ended: sent, failed, busy.",
	}, []string{"result"})
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(s.metrics)
	}
	return s
}

// Sent returns the bytes of content passed on since the start, failed attempts included.
func (s *Service) Sent() int64 { return s.sent.Load() }

// Run closes sessions that nobody needs, until ctx ends. Then it breaks off what is under way.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(idleFor / 4)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			s.closeIdle(time.Now().Add(-idleFor))
		}
	}
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.cancel()
	s.group.Wait()
	s.closeIdle(time.Now())
	return nil
}

// Drain waits until what is under way has been passed on, or ctx ends.
func (s *Service) Drain(ctx context.Context) {
	done := make(chan struct{})
	go func() { s.group.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

var (
	errBusy  = errors.New("this box passes too many files on already")
	errEnded = errors.New("this box is about to leave")
)

// Pass sends the file to each of the boxes, with those below it. It does not wait for them: each is
// sent to at its own pace, and who fails is told to the file's Answer.
func (s *Service) Pass(f File, nodes []wire.RelayNode) {
	for _, n := range nodes {
		content, err := f.Open()
		if err == nil {
			if err = s.admit(); err != nil {
				content.Close()
			}
		}
		if err != nil {
			s.metrics.WithLabelValues("busy").Inc()
			go f.Answer(refused(n, err))
			continue
		}
		go func() {
			defer s.group.Done()
			defer func() { <-s.transfers }()
			defer content.Close()
			s.pass(f, n, content)
		}()
	}
}

func (s *Service) admit() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errEnded
	}
	select {
	case s.transfers <- struct{}{}:
		s.group.Add(1)
		return nil
	default:
		return errBusy
	}
}

func refused(n wire.RelayNode, err error) wire.Refused {
	return wire.Refused{Command: wire.CommandRefused, RequestID: n.RequestID, Kind: wire.KindRelay, Box: n.Box, Error: err.Error()}
}

func (s *Service) pass(f File, n wire.RelayNode, content io.ReadCloser) {
	ctx, cancel := context.WithTimeout(s.ctx, max(leastTime, 3*f.Header.Plays))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { content.Close() }) // it may wait for bytes
	defer stop()
	if err := s.send(ctx, f, n, content); err != nil {
		s.metrics.WithLabelValues("failed").Inc()
		s.cfg.Log.Info("a file could not be passed on", "box", n.Box, "path", id.Quote(string(f.Header.Path)), "reason", err)
		f.Answer(refused(n, err))
		return
	}
	s.metrics.WithLabelValues("sent").Inc()
	if n.Old {
		h := f.Header
		f.Answer(wire.Stored{Command: wire.CommandStored, RequestID: n.RequestID, FilePath: h.Path, Size: h.Size, SHA256: h.Digest, Box: n.Box})
	}
}

func (s *Service) send(ctx context.Context, f File, n wire.RelayNode, content io.Reader) error {
	p := s.peer(n, f.Header.Publisher)
	defer s.leave(p)
	c, err := p.acquire(ctx, s, f.Least)
	if err != nil {
		return err
	}
	h := f.Header
	if !n.Old {
		h.RequestID, h.Relay = n.RequestID, n.Relay
		c.expect(n, f.Answer)
	}
	weight := copyWeight
	if f.Arriving {
		weight = liveWeight
	}
	transfer := s.cfg.Line.Begin(c.NetConn(), h.Size, !f.Arriving)
	defer transfer.End()
	limited := s.cfg.Uplink.Reader(ctx, content, h.Size, weight)
	limited.Ahead = transfer.Ahead
	defer limited.Close()
	head := h.AppendTo(nil)
	if err := limited.Wait(int64(len(head))); err != nil { // with a tree below it, as much as a turn or two
		p.release(c, true)
		return err
	}
	err = c.WriteFile(ctx, head, counted{limited, &s.sent}, h.Size)
	if err == nil && n.Old {
		err = c.confirm(ctx)
	}
	p.release(c, err == nil)
	return err
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}
