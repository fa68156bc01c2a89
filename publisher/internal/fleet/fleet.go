// Package fleet holds the publisher's sessions with entrances and what they tell of boxes. It
// asks all entrances that it knows and joins their answers; it neither ranks boxes nor talks
// with them.
package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// Times of the sessions with entrances.
const (
	hungryInterval = time.Second     // between two SEARCHes while there are too few boxes
	steadyInterval = 5 * time.Second // afterwards
	answerTimeout  = 10 * time.Second
	firstRetry     = 250 * time.Millisecond
	lastRetry      = 5 * time.Second
	sameEntrance   = 30 * time.Second // before an entrance that answers under two URLs is tried again under the second
	forgetAfter    = 30 * time.Second // that no entrance offered a box
	renewWithin    = 15 * time.Second // or the addresses that an entrance named for a box yield to another one's
	keyLifetime    = 2 * time.Minute  // of SEARCH:<box>
)

// Box is what entrances say of a box.
type Box struct {
	ID        id.BoxID
	Exchange  wire.Exchange
	Least     netaddr.Scope // the narrowest address that may be dialled for it
	EdgeBase  string        // base URL for viewers, no slash at its end
	EdgeAddr  netip.Addr    // of EdgeBase; the zero Addr where it is a name
	Household string
	FirstSeen time.Time
	LastSeen  time.Time

	source  string    // entrance that named these addresses
	renewed time.Time // by the source
}

// keeps reports whether the box stays at its addresses although another entrance names others:
// each sees a box come from where it stands itself, and a link that follows them all in turn
// never holds. The widest are kept, which serve most viewers, for as long as they are renewed.
func (b Box) keeps(other Box) bool {
	return b.source != other.source && other.LastSeen.Sub(b.renewed) < renewWithin && other.Least <= b.Least
}

// Config of a fleet.
type Config struct {
	Entrances   []string   // URLs, as wire.ParseEntranceURL takes them
	InsecureTLS []string   // those of them whose certificate is not verified
	Wanted      func() int // boxes; any goroutine
	Own         id.PublisherID
	FrontURL    string
	// Redirects returns where viewers were sent since it was called last; any goroutine.
	Redirects func() []wire.Redirected
	GeoIP     *wire.GeoIP
}

// Fleet joins what entrances say. Its methods may be called from any goroutine.
type Fleet struct {
	cfg   Config
	redis redis.UniversalClient
	log   *slog.Logger

	mu       sync.Mutex
	boxes    map[id.BoxID]Box
	sessions map[string]bool          // by entrance URL: known, and so dialled
	talking  map[id.EntranceID]string // the URL over which each entrance is asked
	problems map[string]string        // by entrance URL: why there is no session
	answered time.Time                // since when at least one entrance is talking
	changed  chan struct{}
	outboxes map[id.EntranceID]*outbox // at most wire.MaxEntranceURLs
	drops    map[string]int64          // redirects that an entrance is not told of
}

// New returns a fleet that knows nothing until Run.
func New(cfg Config, client redis.UniversalClient, log *slog.Logger) *Fleet {
	return &Fleet{
		cfg: cfg, redis: client, log: log,
		boxes: map[id.BoxID]Box{}, sessions: map[string]bool{},
		talking: map[id.EntranceID]string{}, problems: map[string]string{},
		changed:  make(chan struct{}, 1),
		outboxes: map[id.EntranceID]*outbox{}, drops: map[string]int64{DropFull: 0, DropEntrance: 0},
	}
}

// Boxes returns what is known now, ordered by ID. While no entrance can be asked nothing is
// forgotten.
func (f *Fleet) Boxes() []Box {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.talking) > 0 && time.Since(f.answered) > forgetAfter {
		maps.DeleteFunc(f.boxes, func(_ id.BoxID, b Box) bool { return time.Since(b.LastSeen) > forgetAfter })
	}
	return slices.SortedFunc(maps.Values(f.boxes), func(a, b Box) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
}

// Changed gets a value when Boxes may have changed.
func (f *Fleet) Changed() <-chan struct{} { return f.changed }

// Entrances returns the entrances that are asked, by URL with "" or the reason why there is no
// session.
func (f *Fleet) Entrances() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]string, len(f.sessions))
	for u := range f.sessions {
		all[u] = f.problems[u]
	}
	return all
}

// Run keeps a session with each entrance, those that others name included, until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	learned := make(chan named)
	for _, raw := range f.cfg.Entrances {
		u, err := wire.ParseEntranceURL(raw)
		if err != nil {
			return fmt.Errorf("publisher.entrances: %w", err)
		}
		f.dialOnce(ctx, &group, learned, u, netaddr.Loopback)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-learned:
			f.dialOnce(ctx, &group, learned, n.url, n.least)
		}
	}
}

func (f *Fleet) dialOnce(ctx context.Context, group *sync.WaitGroup, learned chan<- named, u string, least netaddr.Scope) {
	f.mu.Lock()
	known := f.sessions[u] || len(f.sessions) >= wire.MaxEntranceURLs
	if !known {
		f.sessions[u] = true
	}
	f.mu.Unlock()
	if known {
		return
	}
	e := &entrance{fleet: f, url: u, least: least, learned: learned, log: f.log.With("entrance", u)}
	group.Go(func() { e.run(ctx) })
}

// entrance is the session with one entrance URL.
type entrance struct {
	fleet   *Fleet
	url     string
	least   netaddr.Scope
	learned chan<- named
	log     *slog.Logger
	outbox  atomic.Pointer[outbox] // of the session that there is, where the entrance wants redirects
}

// named is an entrance that another one named, and the narrowest address that may be dialled for
// it: none that is more private than the other's.
type named struct {
	url   string
	least netaddr.Scope
}

func (e *entrance) run(ctx context.Context) {
	retry := wsconn.Backoff{Min: firstRetry, Max: lastRetry}
	said := ""
	for ctx.Err() == nil {
		wait, err := e.session(ctx, &retry)
		if ctx.Err() != nil {
			return
		}
		e.fleet.setProblem(e.url, err.Error())
		if text := err.Error(); text != said {
			e.log.Warn("no session with the entrance; trying again until it answers", "reason", text)
			said = text
		}
		if wait == 0 {
			wait = retry.Next()
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// session asks until something fails. It returns the time to wait before the next one, 0 for
// the usual backoff.
func (e *entrance) session(ctx context.Context, retry *wsconn.Backoff) (time.Duration, error) {
	conn, err := wsconn.Dial(ctx, e.url, wsconn.Dialing{
		Least: e.least, InsecureTLS: e.insecure(),
	})
	if err != nil {
		return 0, err
	}
	defer conn.Abort()
	stop := context.AfterFunc(ctx, func() { conn.Close("the publisher ends") })
	defer stop()

	scope := netaddr.ScopeOf(conn.Remote())
	search := wire.Search{
		Peer:    wire.Peer{ID: string(e.fleet.cfg.Own), IP: conn.LocalAddr().String(), Type: wire.TypePublisher},
		Command: wire.CommandSearch, GeoIP: e.fleet.cfg.GeoIP, Features: wire.Ours(),
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	replies := make(chan wire.SearchReply)
	go func() { cancel(e.read(ctx, conn, replies)) }()

	var self id.EntranceID
	defer func() {
		e.outbox.Store(nil)
		e.fleet.released(self, e.url)
	}()
	for {
		search.Count = e.fleet.cfg.Wanted()
		if err := conn.WriteText(wire.Encode(search)); err != nil {
			return 0, err
		}
		var reply wire.SearchReply
		select {
		case reply = <-replies:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-time.After(answerTimeout):
			return 0, fmt.Errorf("no answer to SEARCH within %v", answerTimeout)
		}
		if self == "" {
			if self, err = id.ParseEntranceID(reply.ID); err != nil {
				return 0, err
			}
			if !e.fleet.claim(self, e.url) {
				return sameEntrance, fmt.Errorf("the same entrance as %s", e.fleet.urlOf(self))
			}
			if reply.Features.Has(wire.FeatureTraffic) {
				e.outbox.Store(e.fleet.outbox(self))
			}
			conn.KeepAlive(wire.PingInterval, wire.SilenceLimit)
			e.log.Info("asking the entrance for boxes", "id", self, "offered", len(reply.BoxSet))
		}
		retry.Reset()
		e.fleet.setProblem(e.url, "")
		wait := hungryInterval
		offered, enough := e.fleet.join(ctx, e.url, reply, scope)
		if enough {
			wait = steadyInterval
		}
		if err := e.tellRedirects(conn, search.Peer, offered); err != nil {
			return 0, err
		}
		e.learn(ctx, reply.EntranceURLs, scope)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// tellRedirects sends the entrance what it is to be told of redirects now.
func (e *entrance) tellRedirects(conn *wsconn.Conn, own wire.Peer, offered []Box) error {
	outbox := e.outbox.Load()
	if outbox != nil {
		outbox.offers(offered, time.Now())
	}
	e.fleet.collect() // also where this entrance wants none: they are not kept for one that comes later
	if outbox == nil {
		return nil
	}
	batch := outbox.next(own, time.Now())
	if batch == nil {
		return nil
	}
	return conn.WriteText(wire.Encode(batch))
}

// insecure reports whether the configuration names the entrance among those whose certificate
// is not verified.
func (e *entrance) insecure() bool {
	return slices.ContainsFunc(e.fleet.cfg.InsecureTLS, func(raw string) bool {
		u, err := wire.ParseEntranceURL(raw)
		return err == nil && u == e.url
	})
}

// read passes replies on until the connection fails. It always reads, so that pings are
// answered and a dead entrance is seen.
func (e *entrance) read(ctx context.Context, conn *wsconn.Conn, replies chan<- wire.SearchReply) error {
	for {
		raw, err := conn.ReadText(wire.MaxMessage)
		if err != nil {
			return err
		}
		envelope, err := wire.Decode[wire.Envelope](raw)
		if err != nil {
			return err
		}
		outbox := e.outbox.Load()
		if envelope.Error != "" && outbox != nil && outbox.refuses() { // the session goes on
			e.log.Warn("the entrance does not take what it is told of redirects; it is told again in the next session", "reason", id.Quote(envelope.Error))
			continue
		}
		if envelope.Error != "" {
			return fmt.Errorf("the entrance refused: %s", id.Quote(envelope.Error))
		}
		if envelope.Command == wire.CommandCounted && outbox != nil {
			counted, err := wire.Decode[wire.Counted](raw)
			if err != nil {
				return err
			}
			outbox.counted(counted.Mark)
			continue
		}
		if envelope.Command != wire.CommandSearch {
			continue // GOODBYE: its end follows; or a command of a later version
		}
		reply, err := wire.Decode[wire.SearchReply](raw)
		if err != nil {
			return err
		}
		select {
		case replies <- reply:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (e *entrance) learn(ctx context.Context, urls []string, scope netaddr.Scope) {
	for _, raw := range urls[:min(len(urls), wire.MaxEntranceURLs)] {
		u, err := wire.ParseEntranceURL(raw)
		if err != nil || u == e.url || e.fleet.knows(u) || !mayLearn(u, scope) {
			continue
		}
		select {
		case e.learned <- named{u, scope}:
		case <-ctx.Done():
			return
		}
	}
}

// mayLearn: an entrance names no others that are more private than itself.
func mayLearn(u string, scope netaddr.Scope) bool {
	parsed, err := url.Parse(u)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(parsed.Hostname())
	if err != nil {
		return true // a name: the dialer checks what it resolves to
	}
	s := netaddr.ScopeOf(addr)
	return s != netaddr.Forbidden && s >= scope
}

func (f *Fleet) knows(u string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sessions[u]
}

func (f *Fleet) setProblem(u, problem string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems[u] = problem
}

// claim makes u the URL over which the entrance is asked, unless another one is.
func (f *Fleet) claim(e id.EntranceID, u string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.talking[e] != "" && f.talking[e] != u {
		return false
	}
	if len(f.talking) == 0 {
		f.answered = time.Now() // boxes too need time to come back to a restarted entrance
	}
	f.talking[e] = u
	return true
}

func (f *Fleet) urlOf(e id.EntranceID) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.talking[e]
}

func (f *Fleet) released(e id.EntranceID, u string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.talking[e] == u {
		delete(f.talking, e)
	}
}

// join takes the boxes of a reply in. It returns those that can be used, and whether there are as many
// boxes as wanted.
func (f *Fleet) join(ctx context.Context, source string, reply wire.SearchReply, scope netaddr.Scope) (fresh []Box, enough bool) {
	now := time.Now()
	f.mu.Lock()
	taken := 0
	for name, flat := range reply.BoxSet {
		if taken++; taken > wire.MaxBoxSet {
			break
		}
		box, err := parseBox(name, flat, scope)
		if err != nil {
			f.log.Debug("an entrance offered a box that cannot be used", "box", id.Quote(name), "reason", err)
			continue
		}
		box.LastSeen, box.FirstSeen, box.renewed, box.source = now, now, now, source
		if old, ok := f.boxes[box.ID]; ok {
			box.FirstSeen = old.FirstSeen
			if old.keeps(box) {
				old.LastSeen = now
				box = old
			}
		}
		f.boxes[box.ID] = box
		fresh = append(fresh, box)
	}
	enough = len(f.boxes) >= f.cfg.Wanted()
	f.mu.Unlock()

	select {
	case f.changed <- struct{}{}:
	default:
	}
	f.record(ctx, fresh)
	return fresh, enough
}

func parseBox(name string, flat map[string]wire.Text, scope netaddr.Scope) (Box, error) {
	box, err := id.ParseBoxID(name)
	if err != nil {
		return Box{}, err
	}
	x, err := wire.ExchangeFromFlat(flat)
	if err != nil {
		return Box{}, err
	}
	if x.ID != string(box) {
		return Box{}, fmt.Errorf("its exchange names %s", id.Quote(x.ID))
	}
	if _, err := wire.ParseURL(x.ConnectWS); err != nil {
		return Box{}, err
	}
	edge, err := wire.ParseURL(x.EdgeBase())
	if err != nil {
		return Box{}, err
	}
	if edge.RawQuery != "" || edge.ForceQuery {
		return Box{}, fmt.Errorf("its EDGE_URL has a query: %s", id.Quote(x.EdgeURL))
	}
	b := Box{ID: box, Exchange: x, Least: scope, EdgeBase: x.EdgeBase(), Household: edge.Hostname()}
	if addr, err := netip.ParseAddr(edge.Hostname()); err == nil {
		b.EdgeAddr = addr.Unmap()
		if netaddr.ScopeOf(addr) == netaddr.Forbidden || netaddr.ScopeOf(addr) < scope {
			return Box{}, fmt.Errorf("its address %s must not be used by those whom this entrance serves", addr)
		}
		b.Household = netaddr.Household(addr).String()
		if netaddr.ScopeOf(addr) == netaddr.Loopback {
			b.Household = "" // boxes of one machine, as in a demonstration, stand for many homes
		}
	}
	return b, nil
}

// record writes SEARCH:<box> for other programs. It is no part of the publisher's own way: when
// Redis does not answer, the next SEARCH writes it.
func (f *Fleet) record(ctx context.Context, boxes []Box) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	k := keys.Publisher(f.cfg.Own)
	_, err := f.redis.Pipelined(ctx, func(p redis.Pipeliner) error {
		p.HSet(ctx, k.SelfInfo(), "ID", string(f.cfg.Own), "TYPE", wire.TypePublisher, "FRONT_URL", f.cfg.FrontURL)
		for _, b := range boxes {
			p.HSet(ctx, k.Search(b.ID), b.Exchange.Flat())
			p.Expire(ctx, k.Search(b.ID), keyLifetime)
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		f.log.Debug("what SEARCH said is not in Redis", "reason", err)
	}
}
