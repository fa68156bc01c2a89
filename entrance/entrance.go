// Package entrance is the control plane: it registers boxes, finds out whether they can be
// reached, and tells publishers of the best ones. This file wires its internals and does
// nothing else.
package entrance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"dandelion/entrance/internal/api"
	"dandelion/entrance/internal/checkin"
	"dandelion/entrance/internal/door"
	"dandelion/entrance/internal/ledger"
	"dandelion/entrance/internal/registry"
	"dandelion/entrance/internal/search"
	"dandelion/pkg/access"
	"dandelion/pkg/config"
	"dandelion/pkg/daemon"
	"dandelion/pkg/debugweb"
	"dandelion/pkg/geo"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/identity"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// Entrance is one process of an entrance. Several with one key, and so one ID, on one Redis are
// one entrance.
type Entrance struct {
	cfg Config
	log *slog.Logger
	id  id.EntranceID

	identity *identity.Identity
	state    *state.State
	places   *geo.DB
	listener net.Listener
	registry *registry.Registry
	ledger   *ledger.Ledger
	prober   *checkin.Prober
	door     *door.Door
	server   *http.Server

	closing  sync.Once
	closeErr error
}

// New opens the entrance's data_dir, state and port; nothing runs before Run. ctx bounds the
// waiting for a Redis that does not answer. Errors are one line that names cause and cure.
func New(ctx context.Context, cfg Config, redis state.Config, log *slog.Logger) (_ *Entrance, err error) {
	e := &Entrance{cfg: cfg, log: log}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if e.identity, err = identity.Open(cfg.DataDir); err != nil {
		return nil, err
	}
	e.id = id.EntranceIDOf(e.identity.PublicKey)
	if e.listener, err = daemon.Listen("entrance.listen", cfg.Listen); err != nil {
		return nil, err
	}
	if e.places, err = geo.Open(cfg.GeoIPDB, log); err != nil {
		return nil, fmt.Errorf("entrance.geoip_db: %w", err)
	}
	if e.state, err = state.Open(ctx, redis, filepath.Join(cfg.DataDir, "state"), log); err != nil {
		return nil, err
	}
	e.wire()
	return e, nil
}

// wire makes the parts in the order in which they need each other.
func (e *Entrance) wire() {
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ownURL, _ := wire.ParseEntranceURL(e.cfg.PublicURL) // Validate has seen it; "" stays ""
	var others []string
	for _, u := range e.cfg.OtherURLs {
		if parsed, err := wire.ParseEntranceURL(u); err == nil {
			others = append(others, parsed)
		}
	}
	e.registry = registry.New(registry.Config{
		ID: e.id, LeaseTTL: e.cfg.LeaseTTL.Std(), OtherURLs: others, OwnURL: ownURL, OwnInfo: e.ownInfo(ownURL),
	}, e.state, e.log, metrics)
	e.ledger = ledger.New(ledger.Config{
		ID: e.id, Keep: e.cfg.AccountsKeep.Std(),
		Knows: func(box id.BoxID) bool { _, known := e.registry.Get(box); return known },
	}, e.state, e.log, metrics)
	e.prober = checkin.NewProber(e.registry, e.log, metrics)
	boxes := checkin.New(e.registry, e.prober, e.ledger, e.places, e.log)
	publishers := search.New(e.registry, e.ledger, e.places, e.cfg.MaxSearchResults, e.log)
	e.door = door.New(door.Config{
		ID: e.id, URL: ownURL, Trusted: e.cfg.TrustedProxies.Prefixes(),
		Commands: map[string]door.Command{
			wire.CommandExchange:  boxes.Exchange,
			wire.CommandSearch:    publishers.Search,
			wire.CommandRedirects: publishers.Redirects,
		},
	}, e.log, metrics)

	mux := http.NewServeMux()
	for _, path := range []string{"/dandelion/ws", "/dandelion/ws/{$}", "/dandelion/ws_change", "/dandelion/ws_change/{$}"} {
		mux.Handle("GET "+path, e.door)
	}
	mux.Handle("GET /dandelion/{$}", httperr.Wrap(e.log, e.index))
	mux.Handle("GET /dandelion", httperr.Wrap(e.log, e.index))
	api.New(api.Config{
		ID: e.id, URL: ownURL, Version: config.Version(), Trusted: e.cfg.TrustedProxies.Prefixes(), Sessions: e.door.Sessions,
	}, e.registry, e.ledger, e.log).Register(mux)
	debugweb.Register(mux, debugweb.Options{
		Log: e.log, Metrics: metrics, TrustedProxies: e.cfg.TrustedProxies.Prefixes(),
		Checks: []debugweb.Check{{Name: "redis", Ready: e.redisReady}},
	})
	e.server = &http.Server{
		Handler:           mux,
		ConnState:         e.door.ConnState,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
}

// index says who answers here; peers ask it.
func (e *Entrance) index(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.PeerSession, e.cfg.TrustedProxies.Prefixes()); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "HI %s", e.id)
	return nil
}

func (e *Entrance) redisReady(context.Context) error {
	if !e.registry.RedisAnswers() {
		return errors.New("no answer from Redis: boxes are kept in memory until it is back")
	}
	return nil
}

// ownInfo is what OWN_INFO holds. Without a public_url it names an address of this machine.
func (e *Entrance) ownInfo(ownURL string) map[string]string {
	port := e.listener.Addr().(*net.TCPAddr).Port
	info := map[string]string{
		"ID": string(e.id), "TYPE": wire.TypeEntrance,
		"IP": machineAddr().String(), "PORT": strconv.Itoa(port),
	}
	if u, err := url.Parse(ownURL); err == nil && ownURL != "" {
		info["IP"] = u.Hostname()
		if info["PORT"] = u.Port(); u.Port() == "" {
			info["PORT"] = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
	} else {
		ownURL = "http://" + net.JoinHostPort(info["IP"], info["PORT"]) + wire.EntranceWSPath
	}
	info["URL"] = ownURL
	return info
}

// machineAddr returns the address of this machine that reaches farthest, an IPv4 one if it can.
func machineAddr() netip.Addr {
	best := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		network, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		addr := network.Addr().Unmap()
		if addr.Is4() && netaddr.ScopeOf(addr) > netaddr.ScopeOf(best) {
			best = addr
		}
	}
	return best
}

// ID returns the entrance's ID.
func (e *Entrance) ID() id.EntranceID { return e.id }

// Addr returns the address that it listens on, its port known also where the configuration says 0.
func (e *Entrance) Addr() net.Addr { return e.listener.Addr() }

// Run works until ctx ends, then stops within 10 s: it takes no more sessions, tells those that
// are open, and writes what Redis does not have yet. It is called once, and closes what New opened.
func (e *Entrance) Run(ctx context.Context) error {
	defer e.close()
	e.log.Info("entrance starts", "id", e.id, "listen", e.listener.Addr().String())
	group := lifecycle.Group{Log: e.log}
	group.Add("registry", e.registry.Run, nil)
	group.Add("accounts", e.ledger.Run, nil)
	group.Add("dial-back", e.prober.Run, nil)
	if e.places != nil {
		group.Add("places", e.places.Run, nil)
	}
	group.Add("sessions", nil, e.door.Close)
	group.AddHTTP("http", e.server, e.listener)
	return group.Run(ctx)
}

// Close gives free what New opened, for an entrance that is not run.
func (e *Entrance) Close() error { return e.close() }

func (e *Entrance) close() error {
	e.closing.Do(func() { e.closeErr = e.closeAll() })
	return e.closeErr
}

func (e *Entrance) closeAll() error {
	var errs []error
	if e.listener != nil {
		if err := e.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if e.state != nil {
		errs = append(errs, e.state.Close())
	}
	if e.identity != nil {
		errs = append(errs, e.identity.Close())
	}
	return errors.Join(errs...)
}
