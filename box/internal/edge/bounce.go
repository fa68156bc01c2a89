package edge

import (
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"dandelion/pkg/access"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/uplink"
)

// takePart makes an answer of n bytes a transfer of the upload, or reports that it would stall: what
// plays for that long would take longer to arrive. Those who come at once when a segment appears
// are taken one by one, until there is no room.
func (e *Edge) takePart(w *response, r *http.Request, plays time.Duration, n int64) bool {
	e.admit.Lock()
	fits := inTime(e.cfg.Uplink, plays, n)
	var flow *uplink.Flow
	if fits {
		flow = e.cfg.Uplink.Open(1)
		flow.Expect(n)
	}
	e.admit.Unlock()
	if fits {
		w.takePart(r, flow, e.cfg.Line, n)
	}
	return fits
}

// inTime reports whether n bytes can be sent while they play, beside all that is under way to others.
func inTime(l *uplink.Limiter, plays time.Duration, n int64) bool {
	return plays <= 0 || l.Within(n) <= plays // 0: nobody knows
}

// bounce answers a request that takePart turned away: back to the publisher's front, which knows other
// boxes. One that comes from there for this reason, or whose front is not known, is told to come
// later.
func (e *Edge) bounce(w *response, r *http.Request, pub id.PublisherID, p id.Path) {
	e.bounced.Add(1)
	e.metrics.bounced.Inc()
	w.admit, w.turnedAway = nil, false
	h := w.Header()
	for _, name := range []string{"Accept-Ranges", "Content-Length", "Content-Range", "Content-Security-Policy", "Content-Type", "Etag"} {
		h.Del(name)
	}
	front := ""
	if e.cfg.FrontURL != nil && !r.URL.Query().Has("hop") {
		front = strings.TrimSuffix(e.cfg.FrontURL(pub), "/")
	}
	if front == "" || !e.mayReach(r, front) {
		h.Set("Retry-After", "1")
		w.fail(http.StatusServiceUnavailable, "this box has no upload left for it now")
		return
	}
	if !strings.HasPrefix(string(p), "/live/") {
		front += "/" + string(pub)
	}
	h.Set("Location", front+p.Escaped()+"?avoid="+string(e.cfg.Box))
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusFound)
}

// mayReach reports whether the viewer may be sent to a URL: not to an address that is narrower than its
// own. A name passes.
func (e *Edge) mayReach(r *http.Request, to string) bool {
	u, err := url.Parse(to)
	if err != nil {
		return false
	}
	target, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return true
	}
	viewer := access.ClientAddr(r, e.cfg.Trusted)
	return viewer.IsValid() && netaddr.MayReach(viewer, target)
}
