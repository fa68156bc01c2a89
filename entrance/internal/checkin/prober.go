package checkin

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
)

const (
	// Boxes that are dialled for the first time have places of their own, so that the many that
	// are always unreachable do not keep them waiting.
	firstPlaces = 128
	laterPlaces = 64
	// networkPlaces is how many boxes of one public /24 or /48 are dialled at a time, so that
	// nobody takes all places with boxes that answer slowly.
	networkPlaces = 8
	networkWait   = 200 * time.Millisecond

	probeTimeout = 3 * time.Second
	recheckEvery = 5 * time.Minute
	newNonceWait = 30 * time.Second
	firstRetry   = time.Second
	lastRetry    = time.Minute
	forgetEvery  = 10 * time.Second
)

// Prober dials boxes back and tells the registry how that ended. Its methods may be called
// concurrently; it is inert until Run.
type Prober struct {
	registry *registry.Registry
	log      *slog.Logger
	probe    func(ctx context.Context, box *registry.Box, nonce string) (registry.Reach, netip.Addr)
	results  *prometheus.CounterVec

	wake chan struct{}

	mu      sync.Mutex // before the registry's
	targets map[id.BoxID]*target
	queue   dueQueue
	busy    [2]int // probes under way: first ones, later ones
	perNet  map[netip.Prefix]int
}

// target is one box as the prober sees it. Guarded by Prober.mu.
type target struct {
	box      *registry.Box
	nonce    string
	due      time.Time
	failures int
	tried    bool // at these URLs, in this session
	running  bool
	again    bool                  // it changed while a probe was running
	found    registry.Reachability // the last time
	reason   string

	index int // in the queue; -1: not in it
}

// NewProber returns a prober for the boxes of reg.
func NewProber(reg *registry.Registry, log *slog.Logger, metrics prometheus.Registerer) *Prober {
	p := &Prober{
		registry: reg,
		log:      log,
		probe:    newDialler().probe,
		wake:     make(chan struct{}, 1),
		targets:  make(map[id.BoxID]*target),
		perNet:   make(map[netip.Prefix]int),
	}
	p.results = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_entrance_probes_total", Help: "Dial-backs of boxes by what they found.",
	}, []string{"reachable"})
	metrics.MustRegister(p.results)
	return p
}

// Consider has the box dialled: at once when it is new, claims other URLs than before or is not
// known to be reachable; soon when a reachable one came with another nonce, in a new session from
// the same address; else when its time comes.
func (p *Prober) Consider(box *registry.Box, nonce string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.targets[box.ID]
	switch {
	case t == nil:
		t = &target{index: -1}
		p.targets[box.ID] = t
	case !samePlace(t.box, box):
	case nonce == t.nonce && (box.Reach.State != registry.ReachUnknown || !t.tried || t.running):
		t.box = box
		return
	case nonce != t.nonce && box.Reach.State == registry.ReachYes && t.tried && !t.running:
		t.box, t.nonce = box, nonce
		if soon := time.Now().Add(newNonceWait); t.due.After(soon) {
			t.due = soon
			p.schedule(t)
		}
		return
	}
	// Also where the registry forgot how reachable the box was, because its lease had ended.
	t.box, t.nonce, t.failures, t.tried, t.found = box, nonce, 0, false, box.Reach.State
	t.due = time.Now()
	if t.running {
		t.again = true
		return
	}
	p.schedule(t)
}

func samePlace(a, b *registry.Box) bool {
	return a.ConnectWS == b.ConnectWS && a.EdgeBase() == b.EdgeBase() && a.Seen == b.Seen
}

// schedule puts a target into the queue by its due time; called with mu held.
func (p *Prober) schedule(t *target) {
	if t.index >= 0 {
		heap.Fix(&p.queue, t.index)
	} else {
		heap.Push(&p.queue, t)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run dials until ctx ends and the probes under way have ended with it. It returns nil.
func (p *Prober) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	for {
		timer.Reset(p.startDue(ctx, &wg, time.Now()))
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		case <-forget.C:
			p.forget()
		}
	}
}

// startDue starts what is due and has a place, and returns when to look again.
func (p *Prober) startDue(ctx context.Context, wg *sync.WaitGroup, now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	var waiting []*target
	for len(p.queue) > 0 && !p.queue[0].due.After(now) {
		t := heap.Pop(&p.queue).(*target)
		if b, held := p.registry.Held(t.box.ID); !held || !b.Own {
			delete(p.targets, t.box.ID)
			continue
		}
		if !p.start(ctx, wg, t, now) {
			waiting = append(waiting, t)
		}
	}
	for _, t := range waiting {
		t.due = now.Add(networkWait/2 + rand.N(networkWait))
		heap.Push(&p.queue, t)
	}
	if len(p.queue) == 0 {
		return time.Hour
	}
	return p.queue[0].due.Sub(now)
}

// start starts a probe if there is a place; called with mu held.
func (p *Prober) start(ctx context.Context, wg *sync.WaitGroup, t *target, now time.Time) bool {
	class, places := 0, firstPlaces
	if t.tried {
		class, places = 1, laterPlaces
	}
	network := netip.Prefix{}
	if netaddr.ScopeOf(t.box.Seen) == netaddr.Public {
		network = netaddr.Household(t.box.Seen)
	}
	if p.busy[class] >= places || network.IsValid() && p.perNet[network] >= networkPlaces {
		return false
	}
	p.busy[class]++
	if network.IsValid() {
		p.perNet[network]++
	}
	t.running, t.tried = true, true
	box, nonce := t.box, t.nonce
	wg.Go(func() {
		probeCtx, cancel := context.WithTimeout(ctx, probeTimeout)
		reach, answered := p.probe(probeCtx, box, nonce)
		cancel()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.busy[class]--
		if network.IsValid() {
			if p.perNet[network]--; p.perNet[network] == 0 {
				delete(p.perNet, network)
			}
		}
		if ctx.Err() != nil {
			return
		}
		t.running = false
		if !t.again {
			p.record(t, box, reach, answered)
		}
		t.again = false
		p.schedule(t)
	})
	return true
}

// record tells the registry, and decides when to dial again; called with mu held.
func (p *Prober) record(t *target, box *registry.Box, reach registry.Reach, answered netip.Addr) {
	p.results.WithLabelValues(reach.State.String()).Inc()
	now := time.Now()
	if reach.State == registry.ReachYes {
		t.failures = 0
		t.due = now.Add(recheckEvery - rand.N(recheckEvery/10))
	} else {
		wait := min(firstRetry<<min(t.failures, 10), lastRetry)
		t.failures++
		t.due = now.Add(wait - rand.N(wait/4))
		if t.failures == 1 && t.found == registry.ReachYes {
			return // a busy uplink loses a probe now and then: the second failure counts
		}
	}
	if t.found != reach.State || t.reason != reach.Reason {
		p.log.Info("box dialled back", "box", box.ID, "reachable", reach.State.String(), "reason", reach.Reason)
	}
	t.found, t.reason = reach.State, reach.Reason
	p.registry.SetReach(box, reach, answered)
}

// forget drops boxes that are gone.
func (p *Prober) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for box, t := range p.targets {
		if b, held := p.registry.Held(box); (!held || !b.Own) && !t.running {
			delete(p.targets, box)
			if t.index >= 0 {
				heap.Remove(&p.queue, t.index)
			}
		}
	}
}

// dueQueue is a heap of targets, the earliest first.
type dueQueue []*target

func (q dueQueue) Len() int           { return len(q) }
func (q dueQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q dueQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

func (q *dueQueue) Push(x any) {
	t := x.(*target)
	t.index = len(*q)
	*q = append(*q, t)
}

func (q *dueQueue) Pop() any {
	old := *q
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	t.index = -1
	return t
}
