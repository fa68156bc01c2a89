// Package box is the edge: it takes segments from publishers, keeps them until their TTL or its
// limits, serves them to viewers, and reports to entrances. This file wires its internals and
// does nothing else.
package box

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"dandelion/box/internal/accesslog"
	"dandelion/box/internal/capacity"
	"dandelion/box/internal/edge"
	"dandelion/box/internal/ingest"
	"dandelion/box/internal/report"
	"dandelion/box/internal/segstore"
	"dandelion/box/internal/traffic"
	"dandelion/pkg/daemon"
	"dandelion/pkg/geo"
	"dandelion/pkg/id"
	"dandelion/pkg/identity"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/state"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
)

// Box is one box. Its methods may be called concurrently.
type Box struct {
	cfg     Config
	log     *slog.Logger
	id      id.BoxID
	public  public
	metrics *prometheus.Registry

	identity     *identity.Identity
	listener     net.Listener
	edgeListener net.Listener // nil: none
	places       *geo.DB
	store        *segstore.Store
	records      *records       // nil: nobody could read them
	line         *capacity.Line // nil: the configuration says what the line can send
	limiter      *uplink.Limiter
	upload       upload
	ingest       *ingest.Service
	edge         *edge.Edge
	traffic      *traffic.Service
	report       *report.Service
	nginxLog     *accesslog.Follower // nil: no nginx
}

// New opens the box's data_dir, ports and files; nothing runs before Run, which tries Redis for 30 s
// where one is configured. The caller calls Run or Close. Errors are one line that names cause
// and cure.
func New(cfg Config, redis state.Config, log *slog.Logger) (_ *Box, err error) {
	b := &Box{cfg: cfg, log: log, metrics: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if b.identity, err = identity.Open(cfg.DataDir); err != nil {
		return nil, err
	}
	b.id = id.BoxIDOf(b.identity.PublicKey)
	if b.listener, err = daemon.Listen("box.listen", cfg.Listen); err != nil {
		return nil, err
	}
	if cfg.EdgeListen != "" && !cfg.nginx() {
		if b.edgeListener, err = daemon.Listen("box.edge_listen", cfg.EdgeListen); err != nil {
			return nil, err
		}
	}
	if b.places, err = geo.Open(cfg.GeoIPDB, log); err != nil {
		return nil, fmt.Errorf("box.geoip_db: %w", err)
	}
	stores, err := storeConfig(&cfg, b.id, log)
	if err != nil {
		return nil, fmt.Errorf("box.data_dir or box.live_dir cannot be used: %w: choose directories that this user may write to", err)
	}
	if cfg.nginx() {
		b.letThrough(stores.LiveDir)
	}
	stores.Gone = func(pub id.PublisherID, path id.Path) {
		if b.ingest != nil { // else nobody has a session yet
			b.ingest.Gone(pub, path)
		}
	}
	if b.store, err = segstore.Open(stores, log); err != nil {
		return nil, err
	}
	return b, b.wire(redis)
}

// wire makes the parts in the order in which they need each other.
func (b *Box) wire(redis state.Config) error {
	b.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	b.public, _ = splitPublic(b.cfg.PublicAddress) // Validate has seen it
	local := port(b.listener)
	if b.cfg.nginx() {
		local = portOf(b.cfg.EdgeListen)
	}
	if b.public.port == 0 {
		b.public.port = local
	}
	edgePort, edgeLocal := b.public.port, local
	if b.edgeListener != nil && announced(b.edgeListener, b.listener) {
		edgePort, edgeLocal = port(b.edgeListener), port(b.edgeListener)
	}

	ingestConfig := ingest.Config{
		Store: b.store, Own: b.own, Trusted: b.cfg.trusted(), Registerer: b.metrics, Log: b.log,
	}
	reportConfig := report.Config{
		Box: b.id, TLS: b.public.tls, Host: b.public.host, Port: b.public.port, EdgePort: edgePort, LocalPort: edgeLocal,
		Entrances: b.cfg.Entrances, Insecure: b.cfg.InsecureTLS, Interval: b.cfg.ReportInterval.Std(),
		DataDir: b.cfg.DataDir, Usage: b.store.Usage, Capacity: b.knownCapacity, Registerer: b.metrics, Log: b.log,
	}
	if b.cfg.nginx() {
		reportConfig.Advice = b.cfg.startNginx
	}
	if b.places != nil {
		reportConfig.Locate = b.places.Lookup
	}
	// An embedded Redis would only wear the memory card: its snapshot would be written for each
	// segment.
	if redis.EmbeddedListen != "" {
		b.log.Warn("redis.embedded_listen: a box has no embedded state; where other programs should see its records, set redis.url")
	}
	// What was sent and how far nginx's log was read must not be forgotten: it would be read, and sent, again.
	trafficConfig := traffic.Config{Box: b.id, Dir: b.journalDir(), Sync: b.cfg.SyncData || b.cfg.nginx(), Registerer: b.metrics, Log: b.log}
	if redis.URL != "" || len(redis.Addrs) > 0 {
		open := func(ctx context.Context) (*state.State, error) { return state.Connect(ctx, redis, b.log) }
		b.records = newRecords(b.id, open, b.metrics, b.log)
		ingestConfig.Records, reportConfig.Records, trafficConfig.Records = b.records, b.records, b.records
	}
	var err error
	if b.traffic, err = traffic.Open(trafficConfig); err != nil {
		return fmt.Errorf("the accounts of deliveries cannot be read: %w: make it readable and writable, or remove it", err)
	}
	reportConfig.Traffic = b.traffic
	var viewers int
	ingestConfig.Limits.Connections, viewers = shares(openFiles(b.log))
	b.openLine()
	reportConfig.Sent = b.limiter.Sent
	b.upload = b.newUpload()
	ingestConfig.Uplink, ingestConfig.Owner = b.upload, b.owner()
	b.ingest = ingest.New(ingestConfig)
	b.edge = edge.New(edge.Config{
		Store: b.store, Registerer: b.metrics, Log: b.log, MaxConns: viewers,
		Box: b.id, Uplink: b.limiter, Line: b.line, FrontURL: b.ingest.FrontURL, Full: b.cfg.nginx(),
		OnDelivery: b.delivered, Trusted: b.cfg.trusted(),
	})
	if b.cfg.nginx() {
		b.nginxLog = b.followNginx()
	}
	b.report = report.New(reportConfig)
	if b.records != nil {
		b.records.sessions = b.ingest.Sessions
	}
	newStorageMetrics(b.metrics, b.store)
	newUploadMetrics(b.metrics, b)
	return nil
}

// portOf is the port of an address to listen on that Validate has seen.
func portOf(addr string) int {
	_, text, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(text)
	return n
}

func port(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// announced reports whether viewers are sent to the second port: not where only this machine
// reaches it, behind a web server say, while it reaches the first from elsewhere.
func announced(edge, main net.Listener) bool {
	reach := func(ln net.Listener) netaddr.Scope {
		a := netaddr.Addr(ln.Addr())
		if a.IsUnspecified() {
			return netaddr.Public
		}
		return netaddr.ScopeOf(a)
	}
	return reach(edge) >= reach(main)
}

// own is what the box says of itself to a publisher that reached it at local.
func (b *Box) own(local netip.Addr) wire.Peer {
	host := b.public.host
	if host == "" {
		host = local.String()
	}
	return wire.Peer{ID: string(b.id), IP: host, Port: wire.Text(strconv.Itoa(b.public.port)), Type: wire.TypeBox}
}

// ID returns the box's ID.
func (b *Box) ID() id.BoxID { return b.id }

// Addr returns the address that websockets and viewers reach, its port known also where the
// configuration says 0.
func (b *Box) Addr() net.Addr { return b.listener.Addr() }

// EdgeAddr returns the second address for viewers, nil where there is none.
func (b *Box) EdgeAddr() net.Addr {
	if b.edgeListener == nil {
		return nil
	}
	return b.edgeListener.Addr()
}

// Totals are what the box did since its start and holds now.
type Totals struct {
	TakenFiles     int64  `json:"taken_files"` // from publishers
	TakenBytes     int64  `json:"taken_bytes"`
	ServedRequests uint64 `json:"served_requests"` // of viewers
	ServedBytes    uint64 `json:"served_bytes"`
	Bounced        uint64 `json:"bounced"`       // of them, requests sent away because the upload was used up
	RelayedBytes   int64  `json:"relayed_bytes"` // passed on to other boxes
	Files          int    `json:"files"`         // held now
	UsedBytes      int64  `json:"used_bytes"`
}

// Totals returns what the box did since its start and holds now.
func (b *Box) Totals() Totals {
	var t Totals
	taken, used := b.ingest.Totals(), b.store.Usage()
	t.TakenFiles, t.TakenBytes = taken.Files, taken.Bytes
	t.ServedRequests, t.ServedBytes = b.edge.Totals()
	t.Bounced = b.edge.Bounced()
	t.RelayedBytes = b.upload.relay.Sent()
	t.Files, t.UsedBytes = used.Live.Files+used.Data.Files, used.Live.Used+used.Data.Used
	return t
}

// Run works until ctx ends, then drains within 10 s: it says goodbye to entrances and publishers,
// still takes viewers for a moment, lets files and downloads under way come to their end, cuts off
// or refuses what takes too long, and closes. It is called once, and closes what New opened.
func (b *Box) Run(ctx context.Context) error {
	defer b.Close()
	b.log.Info("box starts", "id", b.id, "new", b.identity.Created, "listen", b.listener.Addr().String())
	if len(b.cfg.Entrances) == 0 {
		b.log.Warn("no entrance is configured, so that no publisher finds this box: set box.entrances")
	}
	group := lifecycle.Group{Log: b.log}
	if b.records != nil {
		group.Add("records", b.records.Run, nil)
	}
	group.Add("store", b.store.Run, nil)
	group.Add("upload", b.runUpload, nil)
	if b.places != nil {
		group.Add("places", b.places.Run, nil)
	}
	group.Add("traffic", b.traffic.Run, nil) // stops after the viewers
	if b.edgeListener != nil {
		group.AddHTTP("viewers", b.edge.Server(b.viewersHandler()), b.edgeListener)
	}
	group.AddHTTP("http", b.edge.Server(b.handler()), b.listener)
	if b.nginxLog != nil {
		group.Add("nginx's log", b.nginxLog.Run, nil)
	}
	group.Add("entrances", b.report.Run, nil)
	group.Add("drain", nil, b.drain) // the last one is the first to stop
	return group.Run(ctx)
}

// Close gives free what New opened, for a box that is not run. A second call does nothing.
func (b *Box) Close() error {
	var errs []error
	for _, ln := range []net.Listener{b.listener, b.edgeListener} {
		if ln != nil {
			if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	if b.traffic != nil {
		b.traffic.Close()
	}
	if b.store != nil {
		b.store.Close()
	}
	if b.identity != nil {
		errs = append(errs, b.identity.Close())
	}
	return errors.Join(errs...)
}
