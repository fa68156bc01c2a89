// Package publisher is the caster's side: it takes segments from sources, places copies on
// boxes, renders playlists, redirects viewers, and is the origin of last resort. This file
// wires its internals and does nothing else.
package publisher

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/config"
	"dandelion/pkg/conns"
	"dandelion/pkg/daemon"
	"dandelion/pkg/debugweb"
	"dandelion/pkg/front"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/identity"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/saving"
	"dandelion/pkg/state"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/placement"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/stream"
	"dandelion/web"
)

const (
	queueWorkers = 4
	httpDrain    = 4 * time.Second // of the drain; the rest is for what is on its way to boxes
	drainLimit   = 5 * time.Second
	mostConns    = 16_384 // of viewers; a web server in front multiplies that
)

// Publisher is one publisher.
type Publisher struct {
	cfg Config
	log *slog.Logger
	id  id.PublisherID

	identity  *identity.Identity
	state     *state.State
	listener  net.Listener
	places    *geo.DB
	streams   map[id.StreamName]*stream.Stream
	order     []id.StreamName
	replicas  map[id.StreamName]int
	fleet     *fleet.Fleet
	placement *placement.Placement
	queue     *placement.Queue
	front     *front.Front
	audience  *front.Audience
	saving    *saving.Book
	uploads   *uploads
	server    *http.Server
	conns     *conns.Limit

	refusedConns, closedConns atomic.Int64 // by conns
}

// New opens the publisher's data_dir, state, streams and port; nothing runs before Run. ctx bounds the
// waiting for a Redis that does not answer. Errors are one line that names cause and cure.
func New(ctx context.Context, cfg Config, redis state.Config, log *slog.Logger) (_ *Publisher, err error) {
	p := &Publisher{cfg: cfg, log: log, streams: map[id.StreamName]*stream.Stream{}, replicas: map[id.StreamName]int{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.identity, err = identity.Open(cfg.DataDir); err != nil {
		return nil, err
	}
	p.id = id.PublisherIDOf(p.identity.PublicKey)
	if p.listener, err = daemon.Listen("publisher.listen", cfg.Listen); err != nil {
		return nil, err
	}
	if p.state, err = state.Open(ctx, redis, filepath.Join(cfg.DataDir, "state"), log); err != nil {
		return nil, err
	}
	if p.places, err = geo.Open(cfg.GeoIPDB, log); err != nil {
		return nil, fmt.Errorf("publisher.geoip_db: %w", err)
	}
	places := geo.NewCache(p.places)
	limit := uplink.New(cfg.UploadLimit.BytesPerSecond())
	p.audience = front.NewAudience()
	p.saving = newBook(cfg.Streams)
	p.fleet = fleet.New(fleet.Config{
		Entrances: cfg.Entrances, InsecureTLS: cfg.InsecureTLS, Wanted: func() int { return p.placement.WantedBoxes() }, Own: p.id, FrontURL: cfg.PublicURL,
		Redirects: func() []wire.Redirected { return p.saving.TakeRedirects(time.Now()) },
	}, p.state, log)
	p.placement = placement.New(placement.Config{
		Own:      push.Own{ID: p.id, FrontURL: cfg.PublicURL, Uplink: limit},
		MinBoxes: cfg.MinBoxes, MaxBoxes: cfg.MaxBoxes, Fleet: p.fleet, Window: p.window, Places: places, Redis: p.state, Log: log,
		Renditions: p.renditions, Audience: p.audience, Saving: p.saving, FirstCopies: cfg.FirstCopies,
		Uplink: float64(limit.Rate()), Origin: float64(cfg.OriginLimit.Or(0).BytesPerSecond()),
	})
	if p.uploads, err = openUploads(filepath.Join(cfg.DataDir, "uploads"), int64(cfg.MaxUpload)); err != nil {
		return nil, err
	}
	p.queue = &placement.Queue{
		Placement: p.placement, Redis: p.state, Sync: p.state.Sync, Replicas: cfg.Replicas, Workers: queueWorkers,
		Roots: cfg.FileRoots, LocalFile: p.uploads.file, Log: log,
	}
	if err := p.openStreams(); err != nil {
		return nil, err
	}
	p.front = front.New(front.Config{
		Content: content{p}, Publisher: p.id, PublicURL: cfg.PublicURL, TrustedProxies: cfg.TrustedProxies.Prefixes(), Places: places,
		Audience: p.audience, Saving: p.saving, Uplink: limit, Log: log,
	})
	p.conns = conns.New(conns.Config{
		Max: maxConns(), Refused: func() { p.refusedConns.Add(1) }, Closed: func() { p.closedConns.Add(1) },
	})
	p.server = p.newServer()
	return p, nil
}

func newBook(streams []StreamConfig) *saving.Book {
	var names []id.StreamName
	for _, c := range streams {
		names = append(names, id.StreamName(c.Name))
	}
	return saving.NewBook(time.Now(), names...)
}

func (p *Publisher) openStreams() error {
	for _, c := range p.cfg.Streams {
		name, err := id.ParseStreamName(c.Name)
		if err != nil {
			return err
		}
		replicas := c.Replicas
		if replicas == 0 {
			replicas = p.cfg.Replicas
		}
		placer := &placer{p: p, replicas: replicas}
		s, err := stream.New(stream.Config{
			Name: name, Source: c.Source, SegmentTTL: c.SegmentTTL.Or(0).Std(),
			Dir: filepath.Join(p.cfg.DataDir, "streams", c.Name), WindowLimit: int64(p.cfg.WindowLimit),
			Boxes: p.placement.Up, Patience: p.placement.Patience,
		}, placer, p.log)
		if err != nil {
			return fmt.Errorf("stream %s: %w", name, err)
		}
		placer.stream = s
		if err := s.Load(time.Now()); err != nil {
			return err
		}
		p.streams[name], p.replicas[name] = s, replicas
		p.order = append(p.order, name)
	}
	return nil
}

// placer hands a stream's segments to placement.
type placer struct {
	p        *Publisher
	stream   *stream.Stream
	replicas int
}

// Place implements stream.Placer.
func (l *placer) Place(s stream.Segment) { l.p.placement.Place(l.live(s)) }

func (l *placer) live(s stream.Segment) placement.Live {
	return placement.Live{Segment: s, Replicas: l.replicas, Placed: func() { l.stream.Placed(s.Path) }}
}

// window lists the segments that boxes should hold now.
func (p *Publisher) window() []placement.Live {
	var list []placement.Live
	for _, name := range p.order {
		l := &placer{p: p, stream: p.streams[name], replicas: p.replicas[name]}
		for _, s := range l.stream.Segments() {
			list = append(list, l.live(s))
		}
	}
	return list
}

// renditions lists what is live, for plans.
func (p *Publisher) renditions() []placement.Rendition {
	var list []placement.Rendition
	for _, name := range p.order {
		status := p.streams[name].Status()
		for _, r := range status.Renditions {
			if status.Ended {
				continue
			}
			list = append(list, placement.Rendition{
				Name: string(name) + "/" + string(r.Name), Rate: float64(r.BitRate) / 8, Longest: r.Longest, Replicas: p.replicas[name], TTL: r.TTL,
			})
		}
	}
	return list
}

func (p *Publisher) newServer() *http.Server {
	mux := http.NewServeMux()
	p.front.Register(mux)
	p.registerAPI(mux)
	registry := prometheus.NewRegistry()
	p.registerMetrics(registry)
	debugweb.Register(mux, debugweb.Options{Log: p.log, Metrics: registry, TrustedProxies: p.cfg.TrustedProxies.Prefixes(), Checks: []debugweb.Check{
		{Name: "redis", Ready: func(ctx context.Context) error { return p.state.Ping(ctx).Err() }},
	}})
	mux.Handle("/", web.Handler())
	server := &http.Server{
		Handler:           p.crowded(mux),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       answerTimeout, // uploads allow themselves more
		WriteTimeout:      answerTimeout, // so do the origin's files
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	p.conns.Hold(server)
	return server
}

// crowded tells who comes when all places are taken to come back.
func (p *Publisher) crowded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.conns.Over(r) {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many connections now; try again in a second", http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// maxConns is how many connections the process has files for.
func maxConns() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 512
	}
	return int(min(max(limit.Cur/3, 64), mostConns)) // each may have a file of the window open
}

// ID returns the publisher's ID.
func (p *Publisher) ID() id.PublisherID { return p.id }

// Addr returns the address that it listens on.
func (p *Publisher) Addr() net.Addr { return p.listener.Addr() }

// Run works until ctx ends; then it stops taking requests, finishes what is under way and
// leaves the streams as they are: their playlists are not ended.
func (p *Publisher) Run(ctx context.Context) error {
	defer p.close()
	p.log.Info("publisher started", "id", p.id, "listen", p.Addr().String(), "version", config.Version())
	if len(p.cfg.Entrances) == 0 {
		p.log.Warn("no entrance is configured, so that there are no boxes and this machine serves all viewers: set publisher.entrances")
	}
	group := lifecycle.Group{Log: p.log}
	if p.places != nil {
		group.Add("places", p.places.Run, nil)
	}
	group.Add("fleet", p.fleet.Run, nil)
	group.Add("placement", p.placement.Run, p.drain)
	group.Add("queue", p.queue.Run, nil)
	group.Add("uploads", p.uploads.run, nil)
	for _, name := range p.order {
		group.Add("stream "+string(name), p.streams[name].Run, nil)
	}
	group.AddHTTP("http", p.server, p.listener)
	group.Add("viewers", nil, p.drainViewers)
	return group.Run(ctx)
}

// drainViewers lets answers under way come to their end.
func (p *Publisher) drainViewers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, httpDrain)
	defer cancel()
	p.conns.Drain()
	if cut := p.conns.Shutdown(ctx, p.server); cut > 0 {
		p.log.Warn("answers under way were cut off: the publisher ends and they were too slow", "answers", cut)
	}
	return nil
}

// drain lets boxes get the segments that are on their way to them.
func (p *Publisher) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	if err := p.placement.Drain(ctx); err != nil {
		p.log.Warn("the publisher ends before all is placed; its window keeps it for the next start", "reason", err)
	}
	return nil
}

func (p *Publisher) close() {
	if p.listener != nil {
		p.listener.Close()
	}
	if p.state != nil {
		if err := p.state.Close(); err != nil {
			p.log.Error("the state could not be closed", "reason", err)
		}
	}
	if p.identity != nil {
		p.identity.Close()
	}
}
