package publisher

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/access"
	"dandelion/pkg/front"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/saving"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/placement"
	"dandelion/publisher/internal/stream"
)

const (
	defaultUploadTTL = 24 * time.Hour
	placeWait        = 15 * time.Second      // for which an upload waits to be placed
	placeLook        = 50 * time.Millisecond // between two looks
	slowestUpload    = 64 << 10              // bytes/s
	answerTimeout    = 30 * time.Second      // for an answer to be taken, unless its handler allows more
)

func (p *Publisher) registerAPI(mux *http.ServeMux) {
	handle := func(pattern string, action access.Action, h httperr.Handler) {
		mux.Handle(pattern, httperr.Wrap(p.log, func(w http.ResponseWriter, r *http.Request) error {
			if err := access.Check(r, action, p.cfg.TrustedProxies.Prefixes()); err != nil {
				return err
			}
			return h(w, r)
		}))
	}
	handle("GET /api/v1/streams", access.ViewStream, p.getStreams)
	handle("GET /api/v1/boxes", access.ReadAPI, p.getBoxes)
	handle("POST /api/v1/uploads", access.Upload, p.postUpload)
}

func answer(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	return json.MarshalWrite(w, v, json.Deterministic(true))
}

// Streams is the answer of GET /api/v1/streams.
type Streams struct {
	ID      id.PublisherID `json:"id"`
	Streams []StreamStatus `json:"streams"`
	Boxes   BoxCount       `json:"boxes"`
	Totals  Totals         `json:"totals"`
}

// StreamStatus is a stream, the URL that plays it, what of its upload is planned, and what boxes save.
type StreamStatus struct {
	URL string `json:"url"`
	stream.Status
	Upload []placement.StreamPlan `json:"upload"`
	Saving saving.Windows         `json:"saving"`
}

// BoxCount counts boxes.
type BoxCount struct {
	Up    int `json:"up"`    // files can be pushed there now
	Known int `json:"known"` // that entrances told of
}

// Totals counts since the start.
type Totals struct {
	Placing placement.Totals      `json:"placing"`
	Tasks   placement.QueueTotals `json:"tasks"`
	Viewers front.Totals          `json:"viewers"`
}

// Totals returns what was placed and answered since the start.
func (p *Publisher) Totals() Totals {
	return Totals{Placing: p.placement.Totals(), Tasks: p.queue.Totals(), Viewers: p.front.Totals()}
}

// Plans returns what is planned for each rendition.
func (p *Publisher) Plans() []placement.StreamPlan { return p.placement.Plans() }

// Boxes counts the boxes.
func (p *Publisher) Boxes() BoxCount {
	return BoxCount{Up: p.placement.Up(), Known: len(p.fleet.Boxes())}
}

func (p *Publisher) getStreams(w http.ResponseWriter, r *http.Request) error {
	s := Streams{ID: p.id, Streams: []StreamStatus{}, Boxes: p.Boxes(), Totals: p.Totals()}
	plans := p.placement.Plans()
	for _, name := range p.order {
		status := p.streams[name].Status()
		if access.Check(r, access.ReadAPI, p.cfg.TrustedProxies.Prefixes()) != nil {
			status.Problem = "" // it may name directories of this machine
		}
		s.Streams = append(s.Streams, StreamStatus{
			URL: front.BaseURL(r, p.cfg.PublicURL) + "/live/" + string(name) + "/index.m3u8", Status: status, Upload: plansOf(plans, name),
			Saving: p.saving.Stream(name).Windows(time.Now()),
		})
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	return answer(w, http.StatusOK, s)
}

func plansOf(all []placement.StreamPlan, name id.StreamName) []placement.StreamPlan {
	own := []placement.StreamPlan{}
	for _, plan := range all {
		if strings.HasPrefix(plan.Rendition, string(name)+"/") {
			own = append(own, plan)
		}
	}
	return own
}

// boxes is the answer of GET /api/v1/boxes.
type boxes struct {
	Boxes     []placement.BoxStatus `json:"boxes"`
	Entrances map[string]string     `json:"entrances"` // by URL: "", or why there is no session
}

func (p *Publisher) getBoxes(w http.ResponseWriter, _ *http.Request) error {
	return answer(w, http.StatusOK, boxes{p.placement.Boxes(), p.fleet.Entrances()})
}

// Upload is the answer of POST /api/v1/uploads.
type Upload struct {
	Path   id.Path `json:"path"`
	URL    string  `json:"url"` // plays or downloads it, from a box where one holds it
	Digest string  `json:"digest,omitempty"`
	Size   int64   `json:"size,omitempty"`
	Placed bool    `json:"placed"` // a box holds it; otherwise it will be placed as soon as one can
	TTL    int64   `json:"ttl"`    // seconds; 0: until boxes need the room
}

// postUpload takes the request's body as a file: ?name= is its name, ?ttl= how long it is kept,
// such as 12h (0: until boxes need the room). It is acknowledged when the task for it is durable.
func (p *Publisher) postUpload(w http.ResponseWriter, r *http.Request) error {
	ttl, err := uploadTTL(r.URL.Query().Get("ttl"))
	if err != nil {
		return httperr.BadRequest(err.Error(), nil)
	}
	if r.ContentLength > int64(p.cfg.MaxUpload) {
		return httperr.New(http.StatusRequestEntityTooLarge, fmt.Sprintf("a file of %d bytes: publisher.max_upload is %v", r.ContentLength, p.cfg.MaxUpload), nil)
	}
	patience := 30*time.Second + time.Duration(cmp.Or(max(r.ContentLength, 0), int64(p.cfg.MaxUpload))/slowestUpload)*time.Second
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(patience))
	_ = control.SetWriteDeadline(time.Now().Add(patience + placeWait + answerTimeout))

	path, err := p.uploads.add(r.URL.Query().Get("name"), ttl, r.Body)
	switch {
	case errors.Is(err, id.ErrPath):
		return httperr.BadRequest("want ?name= with the file's name: "+err.Error(), nil)
	case errors.Is(err, errTooLarge):
		return httperr.New(http.StatusRequestEntityTooLarge, fmt.Sprintf("the file is larger than publisher.max_upload, %v", p.cfg.MaxUpload), nil)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return httperr.New(http.StatusRequestTimeout, fmt.Sprintf("the file did not arrive within %v", patience), nil)
	case err != nil:
		return httperr.New(http.StatusInternalServerError, "the file could not be stored; the publisher's log says why", err)
	}
	_ = control.SetReadDeadline(time.Time{}) // or the time for the body would end the request that waits
	if err := p.enqueue(r.Context(), path, ttl); err != nil {
		return httperr.New(http.StatusServiceUnavailable, "the publisher's state does not answer; try again", err)
	}
	u := Upload{Path: path, URL: front.BaseURL(r, p.cfg.PublicURL) + "/" + string(p.id) + path.Escaped(), TTL: int64(ttl / time.Second)}
	placed, ok := p.awaitPlaced(r.Context(), path)
	if u.Placed = ok; ok {
		u.Digest, u.Size = placed.Digest.String(), placed.Size
		return answer(w, http.StatusCreated, u)
	}
	return answer(w, http.StatusAccepted, u)
}

func uploadTTL(text string) (time.Duration, error) {
	if text == "" {
		return defaultUploadTTL, nil
	}
	if text == "0" {
		return 0, nil
	}
	ttl, err := time.ParseDuration(text)
	if err != nil || ttl < time.Second {
		return 0, fmt.Errorf("ttl is %s: want a duration of at least 1s, such as 12h, or 0", id.Quote(text))
	}
	return min(ttl, wire.MaxTTL), nil // as boxes take it
}

func (p *Publisher) enqueue(ctx context.Context, path id.Path, ttl time.Duration) error {
	task, err := json.Marshal(map[string]any{"FILE_PATH": path, "TTL": strconv.FormatInt(int64(ttl/time.Second), 10)}, json.Deterministic(true))
	if err != nil {
		return err
	}
	if err := p.state.RPush(ctx, keys.Publisher(p.id).SendingQueue(), task).Err(); err != nil {
		return err
	}
	return p.state.Sync(ctx)
}

func (p *Publisher) awaitPlaced(ctx context.Context, path id.Path) (placement.Placed, bool) {
	ctx, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	ticker := time.NewTicker(placeLook)
	defer ticker.Stop()
	for {
		if placed, ok := p.placement.Records().Lookup(path); ok && placed.Local.Name != "" {
			return placed, true
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return placement.Placed{}, false
		}
	}
}

func (p *Publisher) registerMetrics(r *prometheus.Registry) {
	gauge := func(name, help string, f func() float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "dandelion", Subsystem: "publisher", Name: name, Help: help}, f))
	}
	count := func(name, help string, f func() int64) {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "dandelion", Subsystem: "publisher", Name: name, Help: help}, func() float64 { return float64(f()) }))
	}
	gauge("boxes_up", "Boxes that files can be pushed to now.", func() float64 { return float64(p.placement.Up()) })
	gauge("viewers", "Viewers of live segments.", func() float64 { return float64(p.placement.Watching()) })
	gauge("upload_short_bytes", "Bytes per second of viewers that boxes have no upload for.", p.placement.Short)
	gauge("granted_bytes", "Bytes per second of upload that boxes have granted.", p.placement.Granted)
	gauge("connections", "Connections of viewers and of who uses the API.", func() float64 { all, _ := p.conns.Count(); return float64(all) })
	count("connections_refused_total", "Connections that found no place: closed, or told to come back.", p.refusedConns.Load)
	count("connections_gave_way_total", "Connections that waited and were closed for new ones.", p.closedConns.Load)
	gauge("records", "Files that boxes hold.", func() float64 { return float64(p.placement.Records().Count()) })
	count("segments_placed_total", "Live segments with a first copy.", func() int64 { return p.placement.Totals().Placed })
	count("placing_bytes_total", "Bytes of files sent to boxes, failed attempts included.", func() int64 { return p.placement.Totals().Sent })
	for reason := range p.placement.Totals().Undelivered {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "dandelion", Subsystem: "publisher", Name: "undelivered_total", ConstLabels: prometheus.Labels{"reason": string(reason)},
			Help: "Files that a chosen box did not get, by reason; another box was asked.",
		}, func() float64 { return float64(p.placement.Totals().Undelivered[reason]) }))
	}
	for outcome := range p.queue.Totals().Ended {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "dandelion", Subsystem: "publisher", Name: "tasks_ended_total", ConstLabels: prometheus.Labels{"outcome": string(outcome)},
			Help: "Tasks that left the queue, by how.",
		}, func() float64 { return float64(p.queue.Totals().Ended[outcome]) }))
	}
	gauge("tasks_resting", "Tasks that no box takes now; they are tried again.", func() float64 { return float64(p.queue.Totals().Resting) })
	records := p.placement.Records()
	count("records_forgotten_total", "Records dropped because too many waited for Redis or were kept.", func() int64 { return records.Totals().Forgotten })
	count("holdings_aged_total", "Holdings of boxes that were not seen for a day.", func() int64 { return records.Totals().Aged })
	count("records_unwritten_total", "Records whose key in Redis cannot be written; the log names it.", func() int64 { return records.Totals().Unwritten })
	count("claims_contradicted_total", "What boxes said they hold, and the own file or Redis says otherwise.", func() int64 { return records.Totals().Contradicted })
	untold := func() map[string]int64 {
		dropped := p.fleet.Untold().Dropped
		dropped["boxes"] = p.saving.Lost()
		return dropped
	}
	for reason := range untold() {
		r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Namespace: "dandelion", Subsystem: "publisher", Name: "redirects_untold_total", ConstLabels: prometheus.Labels{"reason": reason},
			Help: "Redirects that an entrance is not told of, by reason: too many boxes at once, too many that it has not acknowledged, too many entrances.",
		}, func() float64 { return float64(untold()[reason]) }))
	}
	gauge("redirects_waiting", "Redirects that entrances have not acknowledged yet.", func() float64 { return float64(p.fleet.Untold().Waiting) })
	for _, c := range p.cfg.Streams {
		for kind, of := range map[string]func(saving.Bytes) int64{
			"redirected": func(b saving.Bytes) int64 { return b.Redirected },
			"returned":   func(b saving.Bytes) int64 { return b.Returned },
			"origin":     func(b saving.Bytes) int64 { return b.Origin },
			"placing":    func(b saving.Bytes) int64 { return b.Placing },
			"relayed":    func(b saving.Bytes) int64 { return b.Relayed },
		} {
			r.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "dandelion", Subsystem: "publisher", Name: "stream_bytes_total", ConstLabels: prometheus.Labels{"stream": c.Name, "kind": kind},
				Help: "Bytes of a stream: that viewers were sent to boxes for, those of them that they came back without, sent by the origin, sent to boxes, and passed on by boxes.",
			}, func() float64 { return float64(of(p.saving.Stream(id.StreamName(c.Name)).Total())) }))
		}
	}
	count("redirects_total", "Viewers sent to boxes.", func() int64 { return p.front.Totals().Redirects })
	count("bounced_total", "Viewers that a box over its limit sent back.", func() int64 { return p.front.Totals().Bounced })
	count("turned_away_total", "Requests of new viewers that neither boxes nor the origin had upload for.", func() int64 { return p.front.Totals().TurnedAway })
	count("origin_files_total", "Files that the origin answered with itself.", func() int64 { return p.front.Totals().OriginFiles })
	count("origin_bytes_total", "Bytes of files that the origin sent.", func() int64 { return p.front.Totals().OriginBytes })
	count("playlists_total", "Playlists answered.", func() int64 { return p.front.Totals().Playlists })
}
