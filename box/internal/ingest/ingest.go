// Package ingest takes files from publishers: one websocket each, opened with PUBLISH, then
// binary messages that go into the segment store while they arrive (docs/protocol.md). It owns
// the sessions, their limits and their answers. It must not know how files are kept (segstore),
// who views them, or what entrances are told.
//
// Each connection has its own state: the directory that its files go to is that of the publisher
// that opened it, whatever other connections say.
package ingest

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/relay"
	"dandelion/box/internal/segstore"
	"dandelion/pkg/access"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Limits bound what publishers can make the box hold. A connection takes about 10 KB when idle
// and 260 KB while a file comes in; it brings one file at a time.
type Limits struct {
	Connections  int // in all
	Unaccepted   int // of them without an accepted PUBLISH; who waits longest for it gives way to another
	PerAddress   int // from one address; loopback, where proxies are, is not counted
	PerPublisher int // accepted sessions of one publisher

	Header  time.Duration // until the first message, or a file's headers, are there
	Grace   time.Duration // for the rest of a message, in which it may come as slowly as it likes
	MinRate int64         // bytes/s of a message on the whole, past Grace
}

// DefaultLimits is what a box of 1 GB can carry.
func DefaultLimits() Limits {
	return Limits{
		Connections: 256, Unaccepted: 64, PerAddress: 32, PerPublisher: 8,
		Header: 10 * time.Second, Grace: 30 * time.Second, MinRate: 16 << 10,
	}
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	return Limits{
		Connections: cmp.Or(l.Connections, d.Connections), Unaccepted: cmp.Or(l.Unaccepted, d.Unaccepted),
		PerAddress: cmp.Or(l.PerAddress, d.PerAddress), PerPublisher: cmp.Or(l.PerPublisher, d.PerPublisher),
		Header: cmp.Or(l.Header, d.Header), Grace: cmp.Or(l.Grace, d.Grace), MinRate: cmp.Or(l.MinRate, d.MinRate),
	}
}

// Records hears of what other programs may want to know. Its methods must not block.
type Records interface {
	Stored(e segstore.Entry)
	Deleted(pub id.PublisherID, path id.Path)
	SessionsChanged()
}

// Uplink gives the box's upload away. Its methods may be called from any goroutine.
type Uplink interface {
	// Open counts a session of a publisher, one that knows grants or not; Close takes it back.
	Open(pub id.PublisherID, knows bool) wire.Terms
	Close(pub id.PublisherID, knows bool)
	// Terms are what a publisher was promised last.
	Terms(pub id.PublisherID) wire.Terms
	// Demand notes what a publisher could use, bytes/s.
	Demand(pub id.PublisherID, rate int64)
	// Pass passes a file on; see relay.Service.
	Pass(f relay.File, nodes []wire.RelayNode)
}

// Owner is what the box's owner wishes.
type Owner struct {
	Refuses func(id.PublisherID, id.StreamName) bool // "": the whole publisher
	Favours func(id.PublisherID) []string            // streams of it, "*": all
	Seed    int64                                    // bytes of each that may be held without viewers
}

// Config is what a Service needs. All but Records, Uplink, Owner, Registerer and Limits is required.
type Config struct {
	Store      *segstore.Store
	Own        func(local netip.Addr) wire.Peer // what the box says of itself on a connection to local
	Trusted    []netip.Prefix                   // proxies whose word about the peer's address counts
	Records    Records
	Uplink     Uplink // nil: nothing is granted nor passed on
	Owner      Owner
	Limits     Limits // a zero field: that of DefaultLimits
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Service is the box's side of all publishers' sessions. All methods may be called concurrently.
type Service struct {
	cfg     Config
	metrics metrics

	files, bytes atomic.Int64
	gone         gone

	mu         sync.Mutex
	sessions   map[*session]struct{}
	pending    int // connections that count already and are not in sessions yet
	addresses  map[netip.Addr]int
	publishers map[string]int // accepted sessions by the peer's ID
	draining   bool
	ended      sync.WaitGroup
	goodbye    wire.Goodbye // while draining
}

// New returns a Service that waits for connections.
func New(cfg Config) *Service {
	cfg.Limits = cfg.Limits.orDefault()
	if cfg.Records == nil {
		cfg.Records = noRecords{}
	}
	if cfg.Uplink == nil {
		cfg.Uplink = noUplink{}
	}
	if cfg.Owner.Refuses == nil {
		cfg.Owner.Refuses = func(id.PublisherID, id.StreamName) bool { return false }
	}
	if cfg.Owner.Favours == nil {
		cfg.Owner.Favours = func(id.PublisherID) []string { return nil }
	}
	return &Service{
		cfg:        cfg,
		metrics:    newMetrics(cfg.Registerer),
		sessions:   make(map[*session]struct{}),
		addresses:  make(map[netip.Addr]int),
		publishers: make(map[string]int),
	}
}

type noRecords struct{}

func (noRecords) Stored(segstore.Entry)           {}
func (noRecords) Deleted(id.PublisherID, id.Path) {}
func (noRecords) SessionsChanged()                {}

// Connect takes a publisher's connection: the httperr.Handler of wire.BoxWSPath. It returns once
// the connection is a websocket; the session lives on in a goroutine of its own.
func (s *Service) Connect(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.PeerSession, s.cfg.Trusted); err != nil {
		return err
	}
	remote := access.ClientAddr(r, s.cfg.Trusted)
	if !remote.IsValid() {
		// A proxy that nobody declared: its own address is all that is known.
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			remote = ap.Addr().Unmap().WithZone("")
		}
	}
	if reason := s.admit(remote); reason != "" {
		s.metrics.turnedAway.WithLabelValues(reason).Inc()
		w.Header().Set("Retry-After", "10")
		return httperr.New(http.StatusServiceUnavailable, "this box takes no more connections now ("+reason+"): try another box", nil)
	}
	conn, err := wsconn.Accept(w, r, remote)
	if err != nil {
		s.dismiss(remote)
		s.cfg.Log.Debug("a websocket upgrade failed", "remote", remote, "error", err)
		return nil // it has been answered
	}
	ses := newSession(s, conn)
	s.register(ses)
	go func() {
		defer s.ended.Done()
		defer s.unregister(ses)
		defer conn.Abort()
		ses.run()
	}()
	return nil
}

// admit counts a new connection, or says why there may be none.
func (s *Service) admit(remote netip.Addr) (reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return "draining"
	case len(s.sessions)+s.pending >= s.cfg.Limits.Connections:
		return "connections"
	case !remote.IsLoopback() && s.addresses[remote] >= s.cfg.Limits.PerAddress:
		return "connections of one address"
	}
	if s.unaccepted() >= s.cfg.Limits.Unaccepted {
		oldest := s.longestUnaccepted()
		if oldest == nil || time.Since(oldest.since) < patience {
			return "connections without a PUBLISH"
		}
		oldest.dropped = true
		oldest.conn.Abort()
	}
	s.pending++
	s.addresses[remote]++
	s.ended.Add(1)
	return ""
}

// patience is how long a connection may take for its PUBLISH where others need its place.
const patience = time.Second

// unaccepted is how many connections have not sent a PUBLISH that was accepted. s.mu is held.
func (s *Service) unaccepted() int {
	n := s.pending
	for ses := range s.sessions {
		if ses.peer == "" && !ses.dropped {
			n++
		}
	}
	return n
}

func (s *Service) longestUnaccepted() (oldest *session) {
	for ses := range s.sessions {
		if ses.peer == "" && !ses.dropped && (oldest == nil || ses.since.Before(oldest.since)) {
			oldest = ses
		}
	}
	return oldest
}

// dismiss takes back admit for a connection that did not become a session.
func (s *Service) dismiss(remote netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending--
	decrement(s.addresses, remote)
	s.ended.Done()
}

func (s *Service) register(ses *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending--
	s.sessions[ses] = struct{}{}
}

func (s *Service) unregister(ses *session) {
	s.mu.Lock()
	delete(s.sessions, ses)
	decrement(s.addresses, ses.conn.Remote())
	if ses.peer != "" {
		decrement(s.publishers, ses.peer)
		s.metrics.sessions.Dec()
	}
	s.mu.Unlock()
	if ses.publisher != "" {
		s.cfg.Uplink.Close(ses.publisher, ses.features.Has(wire.FeatureGrant))
	}
	s.cfg.Records.SessionsChanged()
}

func decrement[K comparable](counts map[K]int, k K) {
	if counts[k]--; counts[k] <= 0 {
		delete(counts, k)
	}
}

// claim makes ses a session of a publisher, or of a box where pub is "", or says why it cannot be one.
func (s *Service) claim(ses *session, pub id.PublisherID, publish wire.Publish, features wire.Features) (refusal string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return "this box is about to leave: " + s.goodbye.Reason
	}
	if s.publishers[publish.ID] >= s.cfg.Limits.PerPublisher {
		return "it has too many sessions with this box already: close one first"
	}
	s.publishers[publish.ID]++
	ses.peer, ses.publisher, ses.ip, ses.frontURL, ses.features = publish.ID, pub, publish.IP, publish.FrontURL, features
	s.metrics.sessions.Inc()
	return ""
}

// with returns the newest session of the publisher that has a feature, nil where there is none.
func (s *Service) with(pub id.PublisherID, feature wire.Feature) (found *session) {
	if pub == "" {
		return nil // those are boxes' sessions
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for ses := range s.sessions {
		if ses.publisher == pub && ses.features.Has(feature) && (found == nil || ses.since.After(found.since)) {
			found = ses
		}
	}
	return found
}

// FrontURL returns where the publisher takes viewers in, as it said when it opened its newest session;
// "" where it has none or did not say.
func (s *Service) FrontURL(pub id.PublisherID) (url string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var since time.Time
	for ses := range s.sessions {
		if ses.publisher == pub && ses.frontURL != "" && !ses.since.Before(since) {
			url, since = ses.frontURL, ses.since
		}
	}
	return url
}

// Info describes a publisher's accepted session.
type Info struct {
	Publisher id.PublisherID `json:"publisher"`
	Address   string         `json:"address"` // where the connection comes from
	IP        string         `json:"ip"`      // what the publisher says of itself
	FrontURL  string         `json:"front_url,omitempty"`
	Features  wire.Features  `json:"features,omitempty"`
	Since     time.Time      `json:"since"`
	Files     int64          `json:"files"`   // stored
	Bytes     int64          `json:"bytes"`   // of them
	Granted   int64          `json:"granted"` // bytes/s of the box's upload
}

// Sessions lists the accepted sessions, ordered by publisher and age.
func (s *Service) Sessions() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Info, 0, len(s.sessions))
	for ses := range s.sessions {
		if ses.publisher == "" {
			continue // not accepted, or a box
		}
		granted := s.cfg.Uplink.Terms(ses.publisher)
		list = append(list, Info{
			Publisher: ses.publisher, Granted: granted.Rate, Address: ses.conn.Remote().String(), IP: ses.ip, FrontURL: ses.frontURL,
			Features: ses.features, Since: ses.since, Files: ses.files.Load(), Bytes: ses.bytes.Load(),
		})
	}
	slices.SortFunc(list, func(a, b Info) int {
		return cmp.Or(cmp.Compare(a.Publisher, b.Publisher), a.Since.Compare(b.Since))
	})
	return list
}

// Totals are what publishers brought since the start.
type Totals struct {
	Files int64 `json:"files"` // stored
	Bytes int64 `json:"bytes"` // of them
}

// Totals returns what publishers brought since the start.
func (s *Service) Totals() Totals { return Totals{s.files.Load(), s.bytes.Load()} }

// Drain takes no more connections and files, tells publishers so, lets files that are under way
// arrive, and closes all sessions. It returns when they have ended or ctx has; a file that is then
// still coming in is refused, and after half a second more everything is cut off. A publisher is
// told that it has until ctx's deadline, 10 s without one.
func (s *Service) Drain(ctx context.Context, reason string) {
	seconds := 10.0
	if deadline, ok := ctx.Deadline(); ok {
		seconds = max(0, time.Until(deadline).Seconds())
	}
	s.mu.Lock()
	s.draining = true
	s.goodbye = wire.Goodbye{Command: wire.CommandGoodbye, Reason: reason, Seconds: seconds}
	all := make([]*session, 0, len(s.sessions))
	for ses := range s.sessions {
		all = append(all, ses)
	}
	s.mu.Unlock()
	for _, ses := range all {
		go ses.leave(ctx, s.goodbye) // bounded by the connections; each write has a deadline
	}
	ended := make(chan struct{})
	go func() { s.ended.Wait(); close(ended) }()
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	for _, ses := range all {
		go ses.cut(s.goodbye)
	}
	last := time.NewTimer(lastWords)
	defer last.Stop()
	select {
	case <-ended:
		return
	case <-last.C:
	}
	s.mu.Lock()
	for ses := range s.sessions {
		ses.conn.Abort()
	}
	s.mu.Unlock()
	<-ended
}

// lastWords is how long publishers have for taking the refusals at the end of a drain.
const lastWords = 500 * time.Millisecond

func (s *Service) isDraining() (wire.Goodbye, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.goodbye, s.draining
}
