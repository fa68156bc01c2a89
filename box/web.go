package box

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/ingest"
	"dandelion/box/internal/report"
	"dandelion/box/internal/segstore"
	"dandelion/box/internal/traffic"
	"dandelion/pkg/access"
	"dandelion/pkg/config"
	"dandelion/pkg/debugweb"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// handler serves everything on listen: publishers, entrances that dial back, the owner, viewers.
func (b *Box) handler() http.Handler {
	mux := http.NewServeMux()
	ws := httperr.Wrap(b.log, b.ingest.Connect)
	mux.Handle("GET "+wire.BoxWSPath(b.id)+"{$}", ws)
	mux.Handle("GET "+strings.TrimSuffix(wire.BoxWSPath(b.id), "/"), ws)
	mux.Handle("GET /api/v1/box", httperr.Wrap(b.log, b.api))
	mux.HandleFunc("GET /{$}", b.front)
	debugweb.Register(mux, debugweb.Options{
		Log: b.log, Metrics: b.metrics, TrustedProxies: b.cfg.trusted(),
		Checks: []debugweb.Check{{Name: "entrances", Ready: b.connected}},
	})
	return b.withViewers(mux)
}

// viewersHandler serves edge_listen.
func (b *Box) viewersHandler() http.Handler { return b.withViewers(http.NewServeMux()) }

// withViewers adds what an entrance looks at when it dials back, and gives viewers all other paths.
func (b *Box) withViewers(mux *http.ServeMux) http.Handler {
	index := httperr.Wrap(b.log, b.index)
	mux.Handle("GET "+wire.BoxIndexPath(b.id)+"{$}", index)
	mux.Handle("GET "+strings.TrimSuffix(wire.BoxIndexPath(b.id), "/"), index)
	mux.Handle("GET "+wire.NoncePath(b.id, "{short}"), httperr.Wrap(b.log, b.nonce))
	viewers := b.edge.Handler()
	mux.Handle("/", viewers)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Viewers' paths are taken as they are: the mux would redirect some to cleaner ones.
		if strings.HasPrefix(r.URL.Path, "/publisher-") {
			viewers.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func plain(w http.ResponseWriter, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = io.WriteString(w, text)
}

// index says who answers here; peers ask it.
func (b *Box) index(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.PeerSession, b.cfg.trusted()); err != nil {
		return err
	}
	plain(w, "HI "+string(b.id))
	return nil
}

func (b *Box) front(w http.ResponseWriter, _ *http.Request) {
	plain(w, "This is box "+string(b.id)+" of Dandelion. Its owner sees more at /api/v1/box, from the machine that it runs on.\n")
}

// nonce answers an entrance that dials back.
func (b *Box) nonce(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.PeerSession, b.cfg.trusted()); err != nil {
		return err
	}
	nonce, ok := b.report.Nonce(r.Context(), r.PathValue("short"))
	if !ok {
		return httperr.NotFound("no entrance gave this box such a nonce")
	}
	plain(w, nonce)
	return nil
}

// apiBox is the answer of /api/v1/box.
type apiBox struct {
	ID        id.BoxID         `json:"id"`
	Version   string           `json:"version"`
	Listen    string           `json:"listen"`
	Edge      string           `json:"edge_listen,omitempty"`
	Reachable string           `json:"reachable"` // one sentence for people
	Entrances []report.Status  `json:"entrances"`
	Storage   map[string]usage `json:"storage"` // "live" and "data"
	Upload    uploadState      `json:"upload"`
	Traffic   traffic.State    `json:"traffic"`
	Totals    Totals           `json:"totals"`
	Sessions  []ingest.Info    `json:"sessions"`
}

type usage struct {
	Path      string `json:"path"`
	Files     int    `json:"files"`
	Used      int64  `json:"used"`     // bytes
	Incoming  int64  `json:"incoming"` // bytes promised to files on their way
	Limit     int64  `json:"limit"`    // bytes
	DiskTotal int64  `json:"disk_total"`
	DiskFree  int64  `json:"disk_free"`
	Evicted   int64  `json:"evicted"` // files that went for room, since the start
	NoSpace   int64  `json:"no_space"`
	Expired   int64  `json:"expired"`
}

func usageOf(d segstore.DirUsage) usage {
	return usage{
		Path: d.Path, Files: d.Files, Used: d.Used, Incoming: d.Incoming, Limit: d.Limit, DiskTotal: d.DiskTotal,
		DiskFree: d.DiskFree, Evicted: d.Evicted, NoSpace: d.NoSpace, Expired: d.Expired,
	}
}

func (b *Box) api(w http.ResponseWriter, r *http.Request) error {
	if err := access.Check(r, access.ReadAPI, b.cfg.trusted()); err != nil {
		return err
	}
	used := b.store.Usage()
	answer := apiBox{
		ID: b.id, Version: config.Version(), Listen: b.listener.Addr().String(),
		Entrances: b.report.Entrances(),
		Storage:   map[string]usage{"live": usageOf(used.Live), "data": usageOf(used.Data)},
		Upload:    b.uploadState(),
		Traffic:   b.traffic.State(),
		Totals:    b.Totals(), Sessions: b.ingest.Sessions(),
	}
	answer.Reachable = reachability(answer.Entrances)
	if b.edgeListener != nil {
		answer.Edge = b.edgeListener.Addr().String()
	}
	encoded, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, err = w.Write(append(encoded, '\n'))
	if err != nil {
		return fmt.Errorf("%w: %w", http.ErrAbortHandler, err)
	}
	return nil
}

// reachability sums up what the entrances say: one that cannot reach the box is what its owner
// should know first.
func reachability(entrances []report.Status) string {
	best := "not known: no entrance is configured; set box.entrances"
	if len(entrances) > 0 {
		best = entrances[0].Sentence
	}
	for _, want := range []string{wire.ReachableNo, wire.ReachableYes} {
		for _, e := range entrances {
			if e.Connected && e.Reachable == want {
				return e.Sentence
			}
		}
	}
	return best
}

// connected is the readiness of a box: an entrance knows it.
func (b *Box) connected(context.Context) error {
	entrances := b.report.Entrances()
	for _, e := range entrances {
		if e.Connected {
			return nil
		}
	}
	if len(entrances) == 0 {
		return errors.New("no entrance is configured: set box.entrances")
	}
	return errors.New("no entrance answers: " + entrances[0].Sentence)
}

// newStorageMetrics shows the store's state as gauges that are read when asked for.
func newStorageMetrics(reg prometheus.Registerer, store *segstore.Store) {
	for name, read := range map[string]func(segstore.DirUsage) float64{
		"used_bytes":  func(d segstore.DirUsage) float64 { return float64(d.Used) },
		"limit_bytes": func(d segstore.DirUsage) float64 { return float64(d.Limit) },
		"files":       func(d segstore.DirUsage) float64 { return float64(d.Files) },
	} {
		for dir, of := range map[string]func(segstore.Usage) segstore.DirUsage{
			"live": func(u segstore.Usage) segstore.DirUsage { return u.Live },
			"data": func(u segstore.Usage) segstore.DirUsage { return u.Data },
		} {
			reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "dandelion_box_storage_" + name, Help: "Of the live and the data directory.",
				ConstLabels: prometheus.Labels{"dir": dir},
			}, func() float64 { return read(of(store.Usage())) }))
		}
	}
}
