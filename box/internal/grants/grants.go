// Package grants promises the box's upload to publishers: a share for each, asked for with DEMAND,
// told with GRANT, and never more in all than there is (docs/protocol.md, grant). It does not send
// the upload, nor hold anybody to it: that is pkg/uplink's and the door's.
package grants

import (
	"context"
	"slices"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const (
	review = time.Second            // between two looks at what there is to promise
	pause  = 100 * time.Millisecond // between two divisions, however fast demands change
	grain  = 1000                   // bytes/s; grants are multiples of it
	steady = 0.02                   // of a grant; a rise by less is not worth a message
	// oldReserve is kept for a publisher that knows no grants: 1 Mbit/s.
	oldReserve = 125_000
)

// Config is what a Service needs.
type Config struct {
	// Available is how many bytes/s may be promised now.
	Available func() int64
	// Tell sends a publisher its Terms. It must not block.
	Tell func(id.PublisherID)
	// Favours reports whether the owner favours a publisher, or one of its streams; nil: none.
	Favours func(id.PublisherID) bool
}

// Service divides the upload. Its methods may be called from any goroutine.
type Service struct {
	cfg  Config
	kick chan struct{}

	mu         sync.Mutex
	publishers map[id.PublisherID]*publisher
}

type publisher struct {
	sessions int   // that know grants
	old      int   // that do not
	demand   int64 // bytes/s
	told     int64 // what it may plan with, or for an old one what is kept, bytes/s
	toldAt   time.Time
}

// New returns a Service with nobody to promise anything to.
func New(cfg Config) *Service {
	if cfg.Favours == nil {
		cfg.Favours = func(id.PublisherID) bool { return false }
	}
	return &Service{cfg: cfg, kick: make(chan struct{}, 1), publishers: map[id.PublisherID]*publisher{}}
}

// Run tells publishers their terms, anew when what there is or what they demand has changed, until
// ctx ends.
func (s *Service) Run(ctx context.Context) error {
	ticker := time.NewTicker(review)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-s.kick:
		}
		s.divide(time.Now())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// Open counts a session of a publisher, and returns the terms that it begins with: what nobody else
// was promised, or what the publisher has already. knows: the session understands grants.
func (s *Service) Open(pub id.PublisherID, knows bool) wire.Terms {
	available := s.cfg.Available()
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	p := s.publishers[pub]
	if p == nil {
		p = &publisher{}
		s.publishers[pub] = p
	}
	if !knows {
		p.old++
		return wire.Terms{}
	}
	if p.sessions++; p.sessions == 1 {
		p.told = max(available-s.promised(), 0) / grain * grain
	}
	p.toldAt = time.Now()
	return terms(p.told)
}

// Close takes back Open.
func (s *Service) Close(pub id.PublisherID, knows bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.wake()
	p := s.publishers[pub]
	if p == nil {
		return
	}
	if knows {
		p.sessions--
	} else {
		p.old--
	}
	switch {
	case p.sessions == 0 && p.old == 0:
		delete(s.publishers, pub)
	case p.sessions == 0:
		p.demand, p.told = 0, min(p.told, oldReserve)
	}
}

// Demand notes what a publisher could use, bytes/s.
func (s *Service) Demand(pub id.PublisherID, rate int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.publishers[pub]; p != nil && p.demand != rate {
		p.demand = max(rate, 0)
		s.wake()
	}
}

// Promised is what all publishers may plan with now, and what is kept for old ones, bytes/s.
func (s *Service) Promised() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.promised()
}

// Terms returns what a publisher may plan with.
func (s *Service) Terms(pub id.PublisherID) wire.Terms {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.publishers[pub]; p != nil {
		return terms(p.told)
	}
	return terms(0)
}

func (s *Service) promised() (total int64) {
	for _, p := range s.publishers {
		total += p.told
	}
	return total
}

func (s *Service) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

type message struct {
	pub  id.PublisherID
	less bool
}

// divide divides what there is, and tells those for whom it changed: first who gets less, so that
// nothing is promised twice.
func (s *Service) divide(now time.Time) {
	available := s.cfg.Available()
	var messages []message
	s.mu.Lock()
	claims := make(map[id.PublisherID]Claim, len(s.publishers))
	for pub, p := range s.publishers {
		c := Claim{Demand: p.demand, Favoured: s.cfg.Favours(pub), Old: p.sessions == 0}
		if c.Old {
			c.Demand = oldReserve
		}
		claims[pub] = c
	}
	for pub, share := range Divide(available, claims) {
		p := s.publishers[pub]
		if p.sessions == 0 {
			p.told = share
			continue
		}
		share = share / grain * grain
		less := share < p.told
		if !less && float64(share-p.told) <= steady*float64(p.told) {
			share = p.told
		}
		if share != p.told || now.Sub(p.toldAt) >= wire.GrantTTL/3 {
			messages = append(messages, message{pub, less})
			p.told, p.toldAt = share, now
		}
	}
	s.mu.Unlock()
	slices.SortFunc(messages, func(a, b message) int {
		switch {
		case a.less == b.less:
			return 0
		case a.less:
			return -1
		}
		return 1
	})
	for _, m := range messages {
		s.cfg.Tell(m.pub)
	}
}

func terms(rate int64) wire.Terms {
	return wire.Terms{Rate: rate, Seconds: int64(wire.GrantTTL / time.Second)}
}
