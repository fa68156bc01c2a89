// Package api is what people and programs see of an entrance over HTTP: its JSON API and its
// status page. It reads the registry and the accounts and changes nothing.
//
// It must not know sessions, nor Redis.
package api

import (
	"cmp"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"dandelion/entrance/internal/ledger"
	"dandelion/entrance/internal/registry"
	"dandelion/entrance/internal/search"
	"dandelion/pkg/access"
	"dandelion/pkg/geo"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Limits of one page of boxes.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// Config is what an API needs to know.
type Config struct {
	ID      id.EntranceID
	URL     string // the configured one; "" where each peer is told what it dialled
	Version string
	Trusted []netip.Prefix
	// Sessions returns the number of open websockets.
	Sessions func() int
}

// API answers HTTP requests. It may be used concurrently.
type API struct {
	cfg      Config
	registry *registry.Registry
	ledger   *ledger.Ledger
	log      *slog.Logger
	started  time.Time
}

// New returns an API over reg and accounts.
func New(cfg Config, reg *registry.Registry, accounts *ledger.Ledger, log *slog.Logger) *API {
	return &API{cfg: cfg, registry: reg, ledger: accounts, log: log, started: time.Now()}
}

// Register adds the API's routes to mux: GET /api/v1/boxes, /api/v1/boxes/{id},
// /api/v1/traffic, /api/v1/entrance and the page /.
func (a *API) Register(mux *http.ServeMux) {
	route := func(pattern string, h httperr.Handler) {
		mux.Handle(pattern, httperr.Wrap(a.log, func(w http.ResponseWriter, r *http.Request) error {
			if err := access.Check(r, access.ReadAPI, a.cfg.Trusted); err != nil {
				return err
			}
			return h(w, r)
		}))
	}
	route("GET /api/v1/boxes", a.boxes)
	route("GET /api/v1/boxes/{id}", a.box)
	route("GET /api/v1/traffic", a.traffic)
	route("GET /api/v1/entrance", a.entrance)
	route("GET /{$}", a.page)
	mux.Handle("/api/", httperr.Wrap(a.log, func(_ http.ResponseWriter, r *http.Request) error {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return httperr.New(http.StatusMethodNotAllowed, "this API is read with GET", nil)
		}
		return httperr.NotFound("there is /api/v1/boxes, /api/v1/boxes/{id}, /api/v1/traffic and /api/v1/entrance")
	}))
}

// Box is a box in the API.
type Box struct {
	ID           string             `json:"id"`
	Address      string             `json:"address"` // that others reach it at
	Seen         string             `json:"seen"`    // that its session comes from
	ConnectWS    string             `json:"connect_ws"`
	EdgeURL      string             `json:"edge_url"`
	FirstSeen    time.Time          `json:"first_seen"`
	ReportAge    float64            `json:"report_age_s"`
	LeaseExpires time.Time          `json:"lease_expires"`
	Reachable    string             `json:"reachable"` // yes, no or unknown
	Reason       string             `json:"reason,omitempty"`
	Searchable   bool               `json:"searchable"`
	WhyNot       string             `json:"why_not,omitempty"`
	Session      string             `json:"session"` // persistent, dialled, left
	OtherProcess bool               `json:"other_process,omitempty"`
	Features     []string           `json:"features"`
	Place        string             `json:"place"`           // for people; "unknown"
	GeoIP        *wire.GeoIP        `json:"geoip,omitempty"` // absent where it is unknown
	System       map[string]float64 `json:"system"`
	// Traffic is what the box claims for the last 24 h, at most about a minute old; nil: nothing.
	Traffic      *ledger.Claim `json:"traffic,omitempty"`
	ClaimsExceed bool          `json:"claims_exceed"`           // what it claims, what publishers say
	ClaimsReason string        `json:"claims_reason,omitempty"` // one sentence, where they do
}

// Boxes is one page of boxes.
type Boxes struct {
	Boxes []Box `json:"boxes"`
	Total int   `json:"total"`
	// Next is the after= of the next page; "" at the end.
	Next string `json:"next,omitempty"`
}

// Entrance is what the entrance says of itself.
type Entrance struct {
	ID           string   `json:"id"`
	URL          string   `json:"url"`
	OtherURLs    []string `json:"other_urls"`
	Version      string   `json:"version"`
	UptimeS      float64  `json:"uptime_s"`
	Boxes        int      `json:"boxes"`
	Searchable   int      `json:"searchable"`
	Unreachable  int      `json:"unreachable"`
	Sessions     int      `json:"sessions"`
	RedisAnswers bool     `json:"redis_answers"`
	Unwritten    int      `json:"unwritten"` // boxes whose last change is not in Redis yet
}

func (a *API) boxes(w http.ResponseWriter, r *http.Request) error {
	limit := defaultLimit
	if text := r.FormValue("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxLimit {
			return httperr.BadRequest("limit must be a number from 1 to "+strconv.Itoa(maxLimit), err)
		}
		limit = n
	}
	after := r.FormValue("after")
	if after != "" {
		if _, err := id.ParseBoxID(after); err != nil {
			return httperr.BadRequest("after must be the ID of a box, as next of the page before gives it", err)
		}
	}
	known := a.known()
	page := Boxes{Boxes: []Box{}, Total: len(known)}
	start, found := slices.BinarySearchFunc(known, id.BoxID(after), func(b *registry.Box, after id.BoxID) int { return cmp.Compare(b.ID, after) })
	if found {
		start++
	}
	rest := known[start:]
	if len(rest) > limit {
		rest = rest[:limit]
		page.Next = string(rest[limit-1].ID)
	}
	now := time.Now()
	for _, b := range rest {
		page.Boxes = append(page.Boxes, a.describe(b, now))
	}
	return writeJSON(w, page)
}

// known returns the boxes that are there and those that left lately, by ID.
func (a *API) known() []*registry.Box {
	list := append(a.registry.Boxes(), a.registry.Gone()...)
	slices.SortFunc(list, func(x, y *registry.Box) int { return cmp.Compare(x.ID, y.ID) })
	// One that left between the two questions is in both.
	return slices.CompactFunc(list, func(x, y *registry.Box) bool { return x.ID == y.ID })
}

func (a *API) box(w http.ResponseWriter, r *http.Request) error {
	box, err := id.ParseBoxID(r.PathValue("id"))
	if err != nil {
		return httperr.New(http.StatusNotFound, err.Error(), nil)
	}
	b, known := a.registry.Get(box)
	if !known {
		return httperr.NotFound("no box " + string(box) + " is here, and none left within the last 10 minutes")
	}
	return writeJSON(w, a.describe(b, time.Now()))
}

func (a *API) entrance(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, a.summary(time.Now()))
}

func (a *API) summary(now time.Time) Entrance {
	e := Entrance{
		ID:           string(a.cfg.ID),
		URL:          a.cfg.URL,
		OtherURLs:    append([]string{}, a.registry.OtherURLs()...),
		Version:      a.cfg.Version,
		UptimeS:      now.Sub(a.started).Seconds(),
		Sessions:     a.cfg.Sessions(),
		RedisAnswers: a.registry.RedisAnswers(),
		Unwritten:    a.registry.Unwritten(),
	}
	for _, b := range a.registry.Boxes() {
		e.Boxes++
		if search.WhyNot(b, now) == "" {
			e.Searchable++
		}
		if b.Reach.State == registry.ReachNo {
			e.Unreachable++
		}
	}
	return e
}

func (a *API) describe(b *registry.Box, now time.Time) Box {
	why := search.WhyNot(b, now)
	d := Box{
		ID:           string(b.ID),
		Address:      b.Address.String(),
		Seen:         b.Seen.String(),
		ConnectWS:    b.ConnectWS,
		EdgeURL:      b.EdgeBase(),
		FirstSeen:    b.FirstSeen.UTC().Round(time.Second),
		ReportAge:    float64(now.Sub(b.Reported).Milliseconds()) / 1000,
		LeaseExpires: b.Expires.UTC().Round(time.Millisecond),
		Reachable:    b.Reach.State.String(),
		Reason:       b.Reach.Reason,
		Searchable:   why == "",
		WhyNot:       why,
		Session:      "dialled",
		OtherProcess: !b.Own,
		Features:     make([]string, 0, len(b.Features)),
		Place:        geo.Text(b.GeoIP),
		System:       b.System.SystemMap(),
	}
	switch {
	case b.GoneWhy != "":
		d.Session = "left"
	case b.Persistent:
		d.Session = "persistent"
	}
	for _, f := range b.Features {
		d.Features = append(d.Features, string(f))
	}
	if b.GeoIP != (wire.GeoIP{}) {
		d.GeoIP = &b.GeoIP
	}
	if claim, some := a.ledger.Claim(b.ID); some {
		d.Traffic, d.ClaimsExceed, d.ClaimsReason = &claim, claim.Exceeds(), claim.Reason()
	}
	return d
}

func writeJSON(w http.ResponseWriter, v any) error {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(append(body, '\n'))
	return nil
}
