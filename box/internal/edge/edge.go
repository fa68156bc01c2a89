// Package edge serves a box's files to viewers over HTTP, and says of each request what was
// really sent. It owns the viewers' side of HTTP: ranges, caching, CORS, content types, what a
// slow viewer may cost, and who is sent away because the upload is used up. It knows nothing of
// publishers' sessions, of limits on the disk, or of who is told about deliveries.
package edge

import (
	"cmp"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/capacity"
	"dandelion/box/internal/segstore"
	"dandelion/pkg/access"
	"dandelion/pkg/conns"
	"dandelion/pkg/id"
	"dandelion/pkg/uplink"
)

// Defaults of Config.
const (
	DefaultMinRate    = 32 << 10 // bytes/s
	DefaultRateWindow = 30 * time.Second
	DefaultMaxConns   = 4096
)

// Config says what to serve and how patient to be.
type Config struct {
	Store      *segstore.Store
	OnDelivery func(Delivery)        // called after each request, on its goroutine; must not block; nil: nobody asks
	Registerer prometheus.Registerer // nil: no metrics
	Log        *slog.Logger

	Trusted []netip.Prefix // web servers in front, whose X-Forwarded-For names the viewer

	Box      id.BoxID                        // said to fronts
	Uplink   *uplink.Limiter                 // what answers may send; nil: no limit
	Line     *capacity.Line                  // learns from answers; nil: nobody does
	FrontURL func(pub id.PublisherID) string // where the publisher takes viewers in; "": not known; nil: never known

	// Full: another server serves the files, and passes on here what it has no upload left for. It tells of its
	// answers by Account, and of these ones too.
	Full bool

	// MinRate, in bytes/s, is what a viewer must take over RateWindow or be cut off. Time in which it
	// waits for Uplink does not count. 0: DefaultMinRate.
	MinRate    int64
	RateWindow time.Duration // 0: DefaultRateWindow
	MaxConns   int           // connections of all Servers at once; 0: DefaultMaxConns
}

// Delivery is one request and its answer, as a traffic account needs it.
type Delivery struct {
	Time      time.Time // the end of the answer
	Took      time.Duration
	Method    string
	URL       string         // the escaped path, without query
	Publisher id.PublisherID // empty where the path names none
	Path      id.Path        // likewise
	Status    int
	Bytes     int64      // of the body: accepted by the viewer's side if Aborted, else given to the kernel
	Aborted   bool       // the viewer left, or was too slow, before the end
	Viewer    netip.Addr // the zero Addr: not known
}

// Edge answers viewers. Its methods may be called concurrently.
type Edge struct {
	cfg      Config
	metrics  metrics
	requests atomic.Uint64
	bytes    atomic.Uint64
	bounced  atomic.Uint64
	admit    sync.Mutex // one answer at a time looks whether there is upload for it and takes its part
	conns    *conns.Limit
	servers  []*http.Server
}

// New makes an Edge. It panics where cfg.Registerer has metrics of another Edge already.
func New(cfg Config) *Edge {
	cfg.MinRate = cmp.Or(cfg.MinRate, DefaultMinRate)
	cfg.RateWindow = cmp.Or(cfg.RateWindow, DefaultRateWindow)
	cfg.MaxConns = cmp.Or(cfg.MaxConns, DefaultMaxConns)
	e := &Edge{cfg: cfg}
	e.conns = conns.New(conns.Config{
		Max: cfg.MaxConns, Refused: func() { e.metrics.refused.Inc() }, Closed: func() { e.metrics.idleClosed.Inc() },
	})
	e.metrics = newMetrics(e, cfg.Registerer)
	return e
}

// Totals returns the requests answered and the body bytes sent since New.
func (e *Edge) Totals() (requests, bytes uint64) { return e.requests.Load(), e.bytes.Load() }

// Bounced returns how many requests were sent away since New because the upload was used up.
func (e *Edge) Bounced() uint64 { return e.bounced.Load() }

// Handler answers /<publisher-id>/<path>, and 404 for everything else. Mount it on what Server
// returns: without the write deadlines of a real connection a slow viewer is not cut off.
func (e *Edge) Handler() http.Handler { return http.HandlerFunc(e.handle) }

func (e *Edge) handle(rw http.ResponseWriter, r *http.Request) {
	start := time.Now()
	w := newResponse(rw, e.least(), e.cfg.RateWindow)
	d := Delivery{Method: r.Method, URL: r.URL.EscapedPath()}
	e.answer(w, r, &d)
	w.finish(r)
	if e.cfg.Full {
		return
	}

	d.Time = time.Now()
	d.Took = d.Time.Sub(start)
	d.Status, d.Bytes, d.Aborted = w.status, w.sent, w.err != nil
	e.Account(d)
	if e.cfg.OnDelivery != nil {
		d.Viewer = access.ClientAddr(r, e.cfg.Trusted)
		e.cfg.OnDelivery(d)
	}
}

// Account counts an answer, of Handler or of another server: its status, its bytes, whether it was aborted.
func (e *Edge) Account(d Delivery) {
	e.requests.Add(1)
	e.bytes.Add(uint64(d.Bytes))
	e.metrics.count(d)
}

// least is how many bytes a viewer must take within one window.
func (e *Edge) least() int64 {
	return max(1, int64(float64(e.cfg.MinRate)*e.cfg.RateWindow.Seconds()))
}

// everyAnswer has the headers that all answers carry, errors too: a player in a page of another
// origin must be able to read them. The values are shared; nobody changes them.
var everyAnswer = http.Header{
	"Access-Control-Allow-Origin":   {"*"},
	"Access-Control-Expose-Headers": {"Content-Length, Content-Range, ETag"},
	"Timing-Allow-Origin":           {"*"},
	"X-Content-Type-Options":        {"nosniff"},
}

func (e *Edge) answer(w *response, r *http.Request, d *Delivery) {
	h := w.Header()
	maps.Copy(h, everyAnswer)
	if e.conns.Over(r) {
		h.Set("Retry-After", "2")
		w.fail(http.StatusServiceUnavailable, "this box has too many viewers now")
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		e.serveFile(w, r, d)
	case http.MethodOptions:
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
		h.Set("Access-Control-Allow-Headers", "Range, If-None-Match, If-Range, Cache-Control")
		h.Set("Access-Control-Max-Age", "86400")
		w.WriteHeader(http.StatusNoContent)
	default:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		w.fail(http.StatusMethodNotAllowed, "only GET and HEAD")
	}
}

func (e *Edge) serveFile(w *response, r *http.Request, d *Delivery) {
	pub, p, ok := split(r.URL.Path)
	if !ok {
		w.fail(http.StatusNotFound, "not found")
		return
	}
	d.Publisher, d.Path = pub, p
	f, entry, err := e.cfg.Store.Open(pub, p)
	if errors.Is(err, fs.ErrNotExist) {
		w.fail(http.StatusNotFound, "not found")
		return
	}
	if err != nil {
		e.cfg.Log.Error("cannot open a stored file", "publisher", pub, "path", p, "err", err)
		w.fail(http.StatusInternalServerError, "the box cannot read the file")
		return
	}
	defer f.Close()
	if e.cfg.Full && r.Method == http.MethodGet {
		e.bounce(w, r, pub, p)
		return
	}

	h := w.Header()
	h["Etag"] = []string{`"` + entry.Digest.String() + `"`}
	h.Set("Cache-Control", cacheControl(entry, time.Now()))
	kind, known := contentTypes[strings.ToLower(path.Ext(p.Name()))]
	if !known {
		// What publishers upload must never run as a page of the box's own origin.
		kind = "application/octet-stream"
		h.Set("Content-Security-Policy", "sandbox")
	}
	h.Set("Content-Type", kind)
	if e.cfg.Uplink != nil && r.Method == http.MethodGet {
		w.admit = func(n int64) bool { return e.takePart(w, r, entry.Plays, n) }
	}
	// No modification time: the ETag is exact, a date only to the second.
	http.ServeContent(w, r, "", time.Time{}, f)
	if w.turnedAway {
		e.bounce(w, r, pub, p)
	}
}

// split takes a request's path, unescaped once, apart.
func split(urlPath string) (id.PublisherID, id.Path, bool) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(urlPath, "/"), "/")
	pub, err := id.ParsePublisherID(first)
	if err != nil {
		return "", "", false
	}
	p, err := id.ParsePath("/" + rest)
	return pub, p, err == nil
}

// keptMaxAge is how long caches may keep a file that the box keeps until it needs the room: its
// path may get other bytes.
const keptMaxAge = 60 * time.Second

func cacheControl(e segstore.Entry, now time.Time) string {
	if e.Path.ContentAddressed() {
		return "public, max-age=31536000, immutable"
	}
	left := keptMaxAge
	if !e.Expires.IsZero() {
		left = max(0, e.Expires.Sub(now))
	}
	return "public, max-age=" + strconv.FormatInt(int64(left/time.Second), 10)
}

// contentTypes are what players ask for. Nothing here may be active content.
var contentTypes = map[string]string{
	".ts":   "video/mp2t",
	".m4s":  "video/iso.segment",
	".mp4":  "video/mp4",
	".m4v":  "video/mp4",
	".m4a":  "audio/mp4",
	".aac":  "audio/aac",
	".mp3":  "audio/mpeg",
	".vtt":  "text/vtt; charset=utf-8",
	".m3u8": "application/vnd.apple.mpegurl",
}
