// Package front is the viewer's door: playlists, redirects to boxes, ranked lists, and the
// origin's own bytes where no box can serve. It answers from memory through Content, which the
// publisher implements; it does not know how copies are placed.
package front

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"dandelion/pkg/access"
	"dandelion/pkg/geo"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/saving"
	"dandelion/pkg/uplink"
)

// Content is what a front shows. Its methods answer from memory, at once, and may be called
// from any goroutine.
type Content interface {
	// Playlist returns a playlist as it is now: name is "index.m3u8" or
	// "<rendition>/index.m3u8".
	Playlist(stream id.StreamName, name string) (Playlist, bool)
	// Locate says where a file is for who asks. ok is false when nothing is known of the path.
	Locate(path id.Path, asker Asker) (Location, bool)
	// Redirected notes that somebody was sent to a box for so many bytes of a file that is no live
	// segment: what those cost, the Audience knows.
	Redirected(box id.BoxID, bytes int64)
	// Joined notes that a viewer of a rendition is new who is sent to a box, for a segment of so many bytes.
	Joined(rendition string, box id.BoxID, bytes int64)
	// Complained notes that a viewer asks for a file again that it was sent to the box for; the zero
	// Addr where it may have been sent to another one. One viewer's word condemns no box.
	Complained(box id.BoxID, path id.Path, viewer netip.Addr)
	// Open opens the origin's own copy; fs.ErrNotExist where it has none.
	Open(path id.Path) (*os.File, error)
}

// Playlist is a rendered playlist.
type Playlist struct {
	Body     []byte
	ETag     string // quoted
	Modified time.Time
	MaxAge   time.Duration // for which a cache may answer with it
}

// Asker is who asks for a file. The zero value is nobody in particular.
type Asker struct {
	Addr      netip.Addr
	Place     *geo.Place // nil: unknown
	Rendition string     // of a live segment: "<stream>/<rendition>", as the Audience has it; "" of another file
	Viewer    uint64     // likewise
	Avoid     []id.BoxID // that are not to be named
}

// Location is where a file is.
type Location struct {
	Digest id.Digest // zero: not known
	Size   int64
	// Boxes hold the file and may be reached by the viewer, best first. Each has it at its Base
	// followed by Path.
	Boxes []Holder
	// Room is how many of them, from the first on, have upload left for this viewer.
	Room int
	// Watching: the viewer has a seat already. Origin: the origin has upload left for it.
	Watching, Origin bool
	Path             string
	// Own says that the origin serves the file itself even when boxes hold it: init segments
	// and keys.
	Own bool
}

// Holder is a box that holds a file.
type Holder struct {
	Box  id.BoxID
	Base string // URL, no slash at its end
}

// Config of a front.
type Config struct {
	Content   Content
	Publisher id.PublisherID // whose files are also found at /<publisher-id>/<path>
	PublicURL string         // base of the URLs that Locate's origin has; "": as the request came
	// TrustedProxies may say who the viewer is (X-Forwarded-For).
	TrustedProxies []netip.Prefix
	Places         *geo.Cache // that know where viewers are; nil: nobody does
	Audience       *Audience
	Saving         *saving.Book    // gets what viewers are sent to boxes for, and what the origin sends
	Uplink         *uplink.Limiter // of what the origin sends; nil: not limited
	Log            *slog.Logger
}

// Front answers viewers.
type Front struct {
	cfg        Config
	households households

	redirects   atomic.Int64
	originFiles atomic.Int64
	playlists   atomic.Int64
	bounced     atomic.Int64
	turnedAway  atomic.Int64
}

// New returns a front.
func New(cfg Config) *Front {
	if cfg.Audience == nil {
		cfg.Audience = NewAudience()
	}
	if cfg.Saving == nil {
		cfg.Saving = saving.NewBook(time.Now())
	}
	return &Front{cfg: cfg}
}

// Totals counts since the start.
type Totals struct {
	Playlists     int64 `json:"playlists"`
	Redirects     int64 `json:"redirects"`
	RedirectBytes int64 `json:"redirect_bytes"` // sizes of the files that viewers were sent to boxes for
	ReturnedBytes int64 `json:"returned_bytes"` // those of them that viewers came back without
	OriginFiles   int64 `json:"origin_files"`   // answered by the origin itself
	OriginBytes   int64 `json:"origin_bytes"`   // bytes of files that the origin really sent
	Bounced       int64 `json:"bounced"`        // sent back by a box that was over its limit
	TurnedAway    int64 `json:"turned_away"`    // told to come back: neither boxes nor the origin had upload left
}

// Totals returns what was answered since the start.
func (f *Front) Totals() Totals {
	bytes := f.cfg.Saving.Total()
	return Totals{
		Playlists: f.playlists.Load(), Redirects: f.redirects.Load(), RedirectBytes: bytes.Redirected, ReturnedBytes: bytes.Returned,
		OriginFiles: f.originFiles.Load(), OriginBytes: bytes.Origin, Bounced: f.bounced.Load(), TurnedAway: f.turnedAway.Load(),
	}
}

// Register adds the front's routes.
func (f *Front) Register(mux *http.ServeMux) {
	handle := func(pattern string, h httperr.Handler) {
		mux.Handle(pattern, httperr.Wrap(f.cfg.Log, func(w http.ResponseWriter, r *http.Request) error {
			w.Header()["Access-Control-Allow-Origin"] = anyone
			if err := access.Check(r, access.ViewStream, f.cfg.TrustedProxies); err != nil {
				return err
			}
			return h(w, r)
		}))
	}
	handle("GET /live/{stream}/{name...}", f.live)
	handle("GET /"+string(f.cfg.Publisher)+"/{path...}", f.file)
	handle("GET /origin/{path...}", f.origin)
	handle("GET /api/v1/locate", f.locate)
	for _, prefix := range []string{"/live/", "/" + string(f.cfg.Publisher) + "/", "/origin/"} {
		mux.HandleFunc("OPTIONS "+prefix, preflight)
	}
}

// preflight lets players on other sites send Range.
func preflight(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "Range")
	h.Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

func (f *Front) live(w http.ResponseWriter, r *http.Request) error {
	stream, err := id.ParseStreamName(r.PathValue("stream"))
	if err != nil {
		return httperr.NotFound(err.Error())
	}
	name := r.PathValue("name")
	if strings.HasSuffix(name, ".m3u8") {
		if p, ok := f.cfg.Content.Playlist(stream, name); ok {
			f.playlist(w, r, p)
			return nil
		}
	}
	path, err := id.ParsePath("/live/" + string(stream) + "/" + name)
	if err != nil {
		return httperr.BadRequest(err.Error(), nil)
	}
	return f.answer(w, r, path)
}

func (f *Front) file(w http.ResponseWriter, r *http.Request) error {
	path, err := id.ParsePath(r.PathValue("path"))
	if err != nil {
		return httperr.BadRequest(err.Error(), nil)
	}
	return f.answer(w, r, path)
}

func (f *Front) playlist(w http.ResponseWriter, r *http.Request, p Playlist) {
	f.playlists.Add(1)
	h := w.Header()
	h.Set("Content-Type", "application/vnd.apple.mpegurl")
	h.Set("Cache-Control", "max-age="+strconv.Itoa(int(p.MaxAge/time.Second)))
	h.Set("ETag", p.ETag)
	if matches(r.Header.Get("If-None-Match"), p.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Last-Modified", p.Modified.UTC().Format(http.TimeFormat))
	h.Set("Content-Length", strconv.Itoa(len(p.Body)))
	_, _ = w.Write(p.Body)
}

// matches reports whether an If-None-Match names the tag (RFC 9110 section 13.1.2).
func matches(header, tag string) bool {
	for candidate := range strings.SplitSeq(header, ",") {
		candidate = strings.TrimSpace(candidate)
		if candidate == "*" || strings.TrimPrefix(candidate, "W/") == tag {
			return true
		}
	}
	return false
}

// spanOf is how many bytes of a file the request asks for: none with HEAD, and those of a range. Of
// several ranges, and of what is no range, it is the whole.
func spanOf(r *http.Request, size int64) int64 {
	if r.Method == http.MethodHead {
		return 0
	}
	from, to, ok := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	if !ok {
		return size
	}
	last, err := strconv.ParseInt(to, 10, 64)
	switch {
	case to == "":
		last = size - 1
	case err != nil || last < 0:
		return size
	case from == "": // so many at the end
		return min(last, size)
	}
	first, err := strconv.ParseInt(from, 10, 64)
	if err != nil || first < 0 || first > last || first >= size {
		return size
	}
	return min(last, size-1) - first + 1
}

// answer sends the viewer to the best box for it; one that asks for the same again to another one,
// and the third time the origin serves it. Where neither boxes nor the origin have upload left, who
// watches already goes on, and who is new is told to come back.
func (f *Front) answer(w http.ResponseWriter, r *http.Request, path id.Path) error {
	viewer, now := access.ClientAddr(r, f.cfg.TrustedProxies), time.Now()
	asked, rendition := requestOf(viewer, r, path), renditionOf(path)
	meter := f.cfg.Saving.OfRendition(rendition)
	full := f.sentBack(r, asked, meter, now)
	past := f.households.ask(asked, now)
	failed := past.failed()
	if failed != "" {
		f.cfg.Content.Complained(failed, path, viewer)
	}
	for _, box := range past.doubted() {
		f.cfg.Content.Complained(box, path, netip.Addr{})
	}
	asker := Asker{Addr: viewer, Place: f.cfg.Places.Place(viewer), Rendition: rendition, Viewer: asked.seat(past), Avoid: past.avoid()}
	if full != "" {
		asker.Avoid = append(slices.Clone(asker.Avoid), full)
	}
	loc, ok := f.cfg.Content.Locate(path, asker)
	if !ok {
		return httperr.NotFound("not here: the segment is gone, or it never was; reload the playlist")
	}
	if len(loc.Boxes) == 0 && !loc.Own && !loc.Origin && len(asker.Avoid) > 0 {
		asker.Avoid = nil // a box that was full a moment ago is better than nobody
		if again, ok := f.cfg.Content.Locate(path, asker); ok {
			loc = again
		}
	}
	boxes := loc.Boxes[:loc.Room]
	if len(boxes) == 0 && !loc.Own {
		switch {
		case loc.Watching && !loc.Origin && len(loc.Boxes) > 0:
			boxes = loc.Boxes
		case !loc.Origin && asker.Rendition != "":
			return f.turnAway(w, asker, loc.Watching, now)
		}
	}
	if loc.Own || len(boxes) == 0 || past.origin() && loc.Origin {
		file, err := f.cfg.Content.Open(path)
		if err == nil {
			defer file.Close()
			if !loc.Own {
				f.answered(asked, past, "", spanOf(r, loc.Size), meter, now)
				f.sit(asker, atOrigin, now)
			}
			f.serve(w, r, path, loc.Digest, file, meter)
			return nil
		}
		// The origin has it no more: a box that may have failed is better than nobody.
		asker.Avoid = nil
		if loc, ok = f.cfg.Content.Locate(path, asker); !ok || len(loc.Boxes) == 0 {
			return noCopy(err)
		}
		boxes = loc.Boxes
	}
	best := choose(boxes, past)
	bytes := spanOf(r, loc.Size)
	f.answered(asked, past, best.Box, bytes, meter, now)
	meter.Redirected(best.Box, bytes, now)
	f.sit(asker, best.Box, now)
	switch {
	case asker.Rendition == "":
		f.cfg.Content.Redirected(best.Box, bytes)
	case !loc.Watching:
		f.cfg.Content.Joined(asker.Rendition, best.Box, bytes)
	}
	f.redirects.Add(1)
	// Written directly, and not with http.Redirect: this is the answer that is given most.
	h := w.Header()
	to := best.Base + loc.Path
	if full != "" {
		to += "?hop=1" // a second box that is full says so, and does not send the viewer round again
	}
	h["Location"] = []string{to}
	h["Cache-Control"] = noStore
	h["Content-Length"] = empty
	w.WriteHeader(http.StatusFound)
	return nil
}

// answered notes where a request was sent, "" for the origin, and that it is a repeat where it is one.
func (f *Front) answered(asked request, p past, to id.BoxID, bytes int64, meter *saving.Meter, now time.Time) {
	f.households.answered(asked, to, p.failed(), bytes, now)
	if p.repeats() {
		meter.Repeated(p.bytes, now)
	}
}

// sentBack returns the box that sent the viewer back because it was over its limit; "" for none. It is
// no failure: the request is not a repeat.
func (f *Front) sentBack(r *http.Request, asked request, meter *saving.Meter, now time.Time) id.BoxID {
	if r.URL.RawQuery == "" {
		return ""
	}
	box, err := id.ParseBoxID(r.URL.Query().Get("avoid"))
	if err != nil {
		return ""
	}
	if bytes, was := f.households.takeBack(asked, box, now); was {
		f.bounced.Add(1)
		meter.Bounced(box, bytes, now)
	}
	return box
}

// turnAway tells a viewer that there is no upload for it now: one who is new, who counts as one that wants
// some, or one who watches and whose segment no box has yet.
func (f *Front) turnAway(w http.ResponseWriter, asker Asker, watching bool, now time.Time) error {
	if !watching {
		f.sit(asker, nowhere, now)
		f.turnedAway.Add(1)
	}
	w.Header().Set("Retry-After", "1")
	return httperr.New(http.StatusServiceUnavailable, "all boxes and the origin have as many viewers as they can carry now; try again in a second", nil)
}

func (f *Front) sit(asker Asker, at id.BoxID, now time.Time) {
	if asker.Rendition != "" {
		f.cfg.Audience.sit(asker.Rendition, asker.Viewer, asker.Place, at, now)
	}
}

// renditionOf is "<stream>/<rendition>" of a live segment, "" of another file.
func renditionOf(path id.Path) string {
	if !path.ContentAddressed() {
		return ""
	}
	rendition := strings.TrimPrefix(string(path), "/live/")
	for range 2 {
		rendition = rendition[:strings.LastIndexByte(rendition, '/')]
	}
	return rendition
}

func noCopy(err error) error {
	return httperr.New(http.StatusNotFound, "no box can serve this file now and the origin does not have it any more", err)
}

// Values of headers that all answers share; nobody changes them.
var (
	anyone  = []string{"*"}
	noStore = []string{"no-store"}
	empty   = []string{"0"}
)

func (f *Front) origin(w http.ResponseWriter, r *http.Request) error {
	path, err := id.ParsePath(r.PathValue("path"))
	if err != nil {
		return httperr.BadRequest(err.Error(), nil)
	}
	loc, ok := f.cfg.Content.Locate(path, Asker{})
	if !ok {
		return httperr.NotFound("the origin does not have this file")
	}
	file, err := f.cfg.Content.Open(path)
	if err != nil {
		return noCopy(err)
	}
	defer file.Close()
	f.serve(w, r, path, loc.Digest, file, f.cfg.Saving.Of(path))
	return nil
}

// A viewer that takes a file of the origin more slowly is cut off.
const (
	leastPatience = 30 * time.Second
	slowestViewer = 32 << 10 // bytes/s, after leastPatience
)

// serve sends the origin's own copy.
func (f *Front) serve(w http.ResponseWriter, r *http.Request, path id.Path, digest id.Digest, file *os.File, meter *saving.Meter) {
	h := w.Header()
	h.Set("Content-Type", ContentType(path.Name()))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox")
	if !digest.IsZero() {
		h.Set("ETag", `"`+digest.String()+`"`)
	}
	h.Set("Cache-Control", "no-cache")
	if path.ContentAddressed() {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if info, err := file.Stat(); err == nil {
		patience := leastPatience + time.Duration(info.Size()/slowestViewer)*time.Second
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience)) // a test's writer has none
	}
	f.originFiles.Add(1)
	body := &counter{ResponseWriter: w, meter: meter}
	if f.cfg.Uplink != nil && f.cfg.Uplink.Rate() > 0 && r.Method != http.MethodHead {
		body.ctx, body.flow = r.Context(), f.cfg.Uplink.Open(1)
		defer body.flow.Close()
	}
	http.ServeContent(body, r, "", time.Time{}, file)
}

// counter counts the bytes of bodies, holds them to the limit, and keeps sendfile.
type counter struct {
	http.ResponseWriter
	meter *saving.Meter
	ctx   context.Context
	flow  *uplink.Flow // nil: no limit
}

func (c *counter) add(n int64) { c.meter.Add(saving.Bytes{Origin: n}, time.Now()) }

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.add(int64(n))
	return n, err
}

func (c *counter) ReadFrom(r io.Reader) (total int64, err error) {
	part, ok := r.(*io.LimitedReader)
	if c.flow == nil || !ok {
		total, err = io.Copy(c.ResponseWriter, r) // which is its ReadFrom where it has one
		c.add(total)
		return total, err
	}
	for left := part.N; left > 0; {
		may, err := c.flow.Take(c.ctx, left)
		if err != nil {
			return total, err
		}
		n, err := io.Copy(c.ResponseWriter, io.LimitReader(part.R, may))
		total += n
		left -= n
		c.add(n)
		if err != nil || n < may {
			return total, err
		}
	}
	return total, nil
}

func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// located is the answer of /api/v1/locate.
type located struct {
	URLs   []string `json:"urls"`
	Digest string   `json:"digest,omitempty"` // absent where it is not known
	Size   int64    `json:"size"`
}

// locate lists where a file is: the boxes in the order for this viewer, the origin last.
func (f *Front) locate(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	text := q.Get("path")
	if text == "" {
		text = "/live/" + q.Get("stream") + "/" + q.Get("segment")
		if q.Get("stream") == "" || q.Get("segment") == "" {
			return httperr.BadRequest("want ?path=, or ?stream= with segment=<rendition>/<digest>/<name> as the playlist has it", nil)
		}
	}
	path, err := id.ParsePath(text)
	if err != nil {
		return httperr.BadRequest(err.Error(), nil)
	}
	viewer := access.ClientAddr(r, f.cfg.TrustedProxies)
	loc, ok := f.cfg.Content.Locate(path, Asker{Addr: viewer, Place: f.cfg.Places.Place(viewer)})
	if !ok {
		return httperr.NotFound(fmt.Sprintf("nothing is known of %s", path))
	}
	answer := located{URLs: []string{}, Size: loc.Size}
	if !loc.Digest.IsZero() {
		answer.Digest = loc.Digest.String()
	}
	for _, b := range loc.Boxes {
		answer.URLs = append(answer.URLs, b.Base+loc.Path)
	}
	if file, err := f.cfg.Content.Open(path); err == nil {
		file.Close()
		answer.URLs = append(answer.URLs, BaseURL(r, f.cfg.PublicURL)+(&url.URL{Path: "/origin" + string(path)}).EscapedPath())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.MarshalWrite(w, answer)
}

// BaseURL is the public URL without a slash at its end, or, where none is configured, the one
// that the request came by.
func BaseURL(r *http.Request, public string) string {
	if public != "" {
		return strings.TrimSuffix(public, "/")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// ContentType returns the media type of what HLS consists of, by the file's ending;
// application/octet-stream for everything else, so that nothing becomes active content.
func ContentType(name string) string {
	switch strings.ToLower(name[strings.LastIndexByte(name, '.')+1:]) {
	case "ts":
		return "video/mp2t"
	case "m4s", "cmfv", "cmfa":
		return "video/iso.segment"
	case "mp4", "m4v":
		return "video/mp4"
	case "m4a":
		return "audio/mp4"
	case "aac":
		return "audio/aac"
	case "vtt":
		return "text/vtt"
	}
	return "application/octet-stream"
}
