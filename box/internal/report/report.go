// Package report tells entrances of this box: what it is, how it is doing and where it can be
// reached, over one kept connection for each entrance (docs/protocol.md, EXCHANGE). It owns these
// connections, the system information that they carry, the nonces by which entrances dial back,
// and what is known of the box's reachability. It carries the batches of package traffic and brings
// back their acknowledgements. It must not know what entrances do with reports, nor how publishers' files
// come in or go out.
package report

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/segstore"
	"dandelion/box/internal/traffic"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// Config is what a Service needs. Locate, Traffic, Records and Registerer may be nil.
type Config struct {
	Box       id.BoxID
	TLS       bool   // others dial it by https
	Host      string // host that others dial; empty: the address that they see
	Port      int    // of the websocket, as others dial it
	EdgePort  int    // of the viewers' server, as others dial it
	LocalPort int    // the port of this machine that EdgePort leads to, for advice
	// Advice is asked when an entrance cannot reach the box: what to do on this machine, or "". It must
	// be quick. nil: nothing.
	Advice func() string

	Entrances []string      // URLs that EntranceURL takes
	Insecure  []string      // those of them whose certificate is not verified
	Interval  time.Duration // between reports

	DataDir string // whose disk is reported
	Usage   func() segstore.Usage
	Locate  func(netip.Addr) (wire.GeoIP, bool)
	// Capacity is what the line can send, in bytes/s (0: not known), Sent what the box sent since its
	// start. nil: nobody knows.
	Capacity func() int64
	Sent     func() int64

	Traffic    *traffic.Service // whose batches reports carry; nil: none
	Records    Records
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Records hears of what other programs may want to know. Its methods must not block.
type Records interface {
	Reported(flat map[string]string)                         // the box's own report
	Answered(entrance id.EntranceID, flat map[string]string) // what an entrance said of itself
}

type noRecords struct{}

func (noRecords) Reported(map[string]string)                {}
func (noRecords) Answered(id.EntranceID, map[string]string) {}

// unspecified is the IP that a box sends to say "the address that you see".
const unspecified = "0.0.0.0"

// maxLinks bounds the entrances that a box keeps connections with, configured ones not counted.
const maxLinks = wire.MaxEntranceURLs

// Service keeps the box known to its entrances. All methods may be called concurrently.
type Service struct {
	cfg       Config
	metrics   metrics
	collector collector

	mu       sync.Mutex
	links    map[string]*link        // by canonical URL
	owners   map[id.EntranceID]*link // the connected link of each entrance
	start    func(*link)             // nil before Run
	draining bool
	address  netip.Addr    // public address that an entrance sees us at
	changed  chan struct{} // closed and replaced when a nonce, an owner or a link changed
	waiting  int           // dial-backs that wait for their nonce
}

// New returns a Service that has not connected yet. cfg.Entrances must have passed EntranceURL.
func New(cfg Config) *Service {
	if cfg.Records == nil {
		cfg.Records = noRecords{}
	}
	s := &Service{
		cfg:     cfg,
		metrics: newMetrics(cfg.Registerer),
		links:   make(map[string]*link),
		owners:  make(map[id.EntranceID]*link),
		changed: make(chan struct{}),
	}
	s.collector = collector{dataDir: cfg.DataDir, usage: cfg.Usage, capacity: cfg.Capacity, sent: cfg.Sent, log: cfg.Log, minAge: min(cfg.Interval/2, 2*time.Second)}
	insecure := make(map[string]bool)
	for _, raw := range cfg.Insecure {
		if u, err := wire.ParseEntranceURL(raw); err == nil {
			insecure[u] = true
		}
	}
	for _, raw := range cfg.Entrances {
		if u, err := wire.ParseEntranceURL(raw); err == nil && s.links[u] == nil {
			l := &link{s: s, url: u, least: netaddr.Loopback, insecure: insecure[u], kick: make(chan struct{}, 1)}
			l.openFeed() // from now on deliveries wait for it
			s.links[u] = l
		}
	}
	return s
}

// Run keeps a session with each entrance, those that are learned on the way included, until ctx
// ends. It returns nil then.
func (s *Service) Run(ctx context.Context) error {
	var running sync.WaitGroup
	s.mu.Lock()
	s.start = func(l *link) { running.Go(func() { l.run(ctx) }) }
	for _, l := range s.links {
		s.start(l)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.draining = true // nothing is started any more
	s.mu.Unlock()
	running.Wait()
	return nil
}

// Drain sends entrances what they have not acknowledged of the deliveries until now, for a second and half
// the time until ctx's deadline at most. Then it says goodbye to all, with the reason and the time
// until the deadline (10 s without one), and closes the sessions. It returns when they have ended
// or ctx has.
func (s *Service) Drain(ctx context.Context, reason string) {
	left := 10 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		left = max(0, time.Until(deadline))
	}
	if s.cfg.Traffic != nil {
		_ = s.cfg.Traffic.Flush() // it logs what is wrong
	}
	settling, cancel := context.WithTimeout(ctx, min(maxSettling, left/2))
	defer cancel()
	s.mu.Lock()
	s.draining = true
	var open []*link
	for _, l := range s.links {
		if l.conn != nil {
			open = append(open, l)
		}
	}
	s.notify()
	s.mu.Unlock()
	var leaving sync.WaitGroup
	for _, l := range open {
		leaving.Go(func() {
			l.settle(settling)
			l.leave(ctx, reason, left.Seconds())
		})
	}
	leaving.Wait()
}

// maxSettling is how long a goodbye may wait for acknowledgements: until it is said, viewers are sent
// here.
const maxSettling = time.Second

// notify wakes everybody who waits for a change. s.mu is held.
func (s *Service) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// learn starts links to the entrances that one entrance names, as far as its own address lets
// it: an entrance on the Internet names no address at home. s.mu is held.
func (s *Service) learn(l *link, urls []string, scope netaddr.Scope) {
	urls = urls[:min(len(urls), wire.MaxEntranceURLs)]
	l.names = l.names[:0]
	for _, raw := range urls {
		u, err := wire.ParseEntranceURL(raw)
		if err != nil {
			s.cfg.Log.Debug("an entrance names a URL that cannot be used", "entrance", l.url, "error", err)
			continue
		}
		l.names = append(l.names, u)
		if known := s.links[u]; known != nil {
			known.least = min(known.least, scope)
			continue
		}
		if a, isAddr := hostAddr(u); isAddr && netaddr.ScopeOf(a) < max(scope, netaddr.Loopback) {
			s.cfg.Log.Debug("an entrance names a URL that is narrower than its own address", "entrance", l.url, "url", u)
			continue
		}
		if s.draining || s.learned() >= maxLinks {
			continue
		}
		s.cfg.Log.Info("learned of an entrance", "url", u, "from", l.url)
		next := &link{s: s, url: u, least: scope, learned: true, kick: make(chan struct{}, 1)}
		s.links[u] = next
		s.start(next)
	}
}

func (s *Service) learned() (n int) {
	for _, l := range s.links {
		if l.learned {
			n++
		}
	}
	return n
}

// named reports whether a connected entrance names the URL. s.mu is held.
func (s *Service) named(url string) bool {
	for _, l := range s.links {
		if l.connected && slices.Contains(l.names, url) {
			return true
		}
	}
	return false
}

// exchange makes the report for one link.
func (s *Service) exchange(l *link) *wire.Exchange {
	s.mu.Lock()
	local, carrier, seen, old := netip.Addr{}, s.carrier(), s.address, l.old
	if l.conn != nil {
		local = l.conn.LocalAddr()
	}
	s.mu.Unlock()

	host := s.cfg.Host
	switch {
	case host != "":
	case old && local.IsValid():
		host = local.String() // it does not know what 0.0.0.0 means
	default:
		host = unspecified
	}
	x := &wire.Exchange{
		Peer:      wire.Peer{ID: string(s.cfg.Box), IP: host, Port: wire.Text(strconv.Itoa(s.cfg.Port)), Type: wire.TypeBox},
		ConnectWS: base(s.cfg.TLS, host, s.cfg.Port) + wire.BoxWSPath(s.cfg.Box),
		EdgeURL:   base(s.cfg.TLS, host, s.cfg.EdgePort),
		Features:  wire.Ours(),
	}
	var fresh bool
	x.System, fresh = s.collector.sample(carrier, time.Now())
	if s.cfg.Locate != nil {
		if own, err := netip.ParseAddr(s.cfg.Host); err == nil {
			seen = own
		}
		x.GeoIP, _ = s.cfg.Locate(seen)
	}
	if fresh {
		s.cfg.Records.Reported(x.Flat())
	}
	return x
}

// carrier is the address of ours that the box's traffic goes out from: of the sessions' ends the
// one that reaches furthest, whichever session asks. s.mu is held.
func (s *Service) carrier() (best netip.Addr) {
	for _, l := range s.links {
		if l.conn == nil {
			continue
		}
		a := l.conn.LocalAddr()
		if cmp.Or(cmp.Compare(netaddr.ScopeOf(a), netaddr.ScopeOf(best)), best.Compare(a)) > 0 || !best.IsValid() {
			best = a
		}
	}
	return best
}

// OtherUpload returns the bytes/s that the rest of the household sends: what goes out of the interface that
// leads to the entrances, less what the box sends itself, over the last few seconds. 0 where that is
// not known, and on loopback. It is cheap enough for every second; within half a second it
// returns the same again. Without Config.Sent all counts as the household's.
func (s *Service) OtherUpload() int64 {
	s.mu.Lock()
	carrier := s.carrier()
	s.mu.Unlock()
	return s.collector.otherUpload(carrier, time.Now())
}

func base(tls bool, host string, port int) string {
	scheme := "http://"
	if tls {
		scheme = "https://"
	}
	return scheme + net.JoinHostPort(host, strconv.Itoa(port))
}

// shortDigest is what stands in the URL of a dial-back: the first 16 hex digits of the nonce's
// SHA-256.
func shortDigest(nonce string) string {
	sum := sha256.Sum256([]byte(nonce))
	return hex.EncodeToString(sum[:8])
}

const (
	nonceWait    = time.Second
	nonceWaiters = 16
)

// Nonce returns the nonce of a session whose digest begins with short. A dial-back can be faster
// than the reply that brings the nonce, so an unknown one is waited for, up to a second.
func (s *Service) Nonce(ctx context.Context, short string) (nonce string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if nonce, ok = s.nonce(short); ok || s.waiting >= nonceWaiters {
		return nonce, ok
	}
	s.waiting++
	defer func() { s.waiting-- }()
	ctx, cancel := context.WithTimeout(ctx, nonceWait)
	defer cancel()
	for {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if nonce, ok = s.nonce(short); ok || ctx.Err() != nil {
			return nonce, ok
		}
	}
}

// nonce is Nonce without waiting. s.mu is held.
func (s *Service) nonce(short string) (string, bool) {
	for _, l := range s.links {
		if l.nonce != "" && shortDigest(l.nonce) == short {
			return l.nonce, true
		}
	}
	return "", false
}
