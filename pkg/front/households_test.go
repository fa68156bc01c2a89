package front

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/saving"
)

// held is files that two boxes hold and the origin has.
type held struct {
	file       string
	boxes      *[2]id.BoxID
	complaints *[]string // "<box> <viewer>"
	doubts     *[]id.BoxID
}

func (held) Playlist(id.StreamName, string) (Playlist, bool) { return Playlist{ETag: `"1"`}, true }
func (held) Redirected(id.BoxID, int64)                      {}
func (held) Joined(string, id.BoxID, int64)                  {}

func (h held) Complained(box id.BoxID, _ id.Path, viewer netip.Addr) {
	if viewer.IsValid() {
		*h.complaints = append(*h.complaints, string(box)+" "+viewer.String())
	} else {
		*h.doubts = append(*h.doubts, box)
	}
}

func (h held) Locate(path id.Path, asker Asker) (Location, bool) {
	loc := Location{Path: string(path), Size: int64(len("segment")), Origin: true}
	for _, box := range h.boxes {
		if !slices.Contains(asker.Avoid, box) {
			loc.Boxes = append(loc.Boxes, Holder{Box: box, Base: "http://" + string(box)})
		}
	}
	loc.Room = len(loc.Boxes)
	return loc, true
}

func (h held) Open(id.Path) (*os.File, error) { return os.Open(h.file) }

// door is a front that viewers ask.
type door struct {
	t          *testing.T
	mux        *http.ServeMux
	saving     *saving.Book
	boxes      [2]id.BoxID
	complaints []string
	doubts     []id.BoxID
}

func newDoor(t *testing.T, trusted ...netip.Prefix) *door {
	d := &door{t: t, mux: http.NewServeMux(), saving: saving.NewBook(time.Now(), "demo"), boxes: [2]id.BoxID{"a", "b"}}
	file := filepath.Join(t.TempDir(), "0.ts")
	if err := os.WriteFile(file, []byte("segment"), 0o600); err != nil {
		t.Fatal(err)
	}
	New(Config{Content: held{file, &d.boxes, &d.complaints, &d.doubts}, Publisher: "publisher-0", TrustedProxies: trusted, Saving: d.saving, Log: slog.New(slog.DiscardHandler)}).Register(d.mux)
	return d
}

func segment(n int) string { return fmt.Sprintf("/live/demo/index/0123456789ab/%d.ts", n) }

// viewer is one more header of its requests, "" for none.
type viewer struct{ addr, agent, forwarded, span string }

// ask asks for a segment and says where it was sent: "a", "b" or "origin".
func (d *door) ask(path string, v viewer) string {
	d.t.Helper()
	w, r := d.request(path, v)
	d.mux.ServeHTTP(w, r)
	switch to := w.Header().Get("Location"); {
	case (w.Code == http.StatusOK || w.Code == http.StatusPartialContent) && strings.HasPrefix("segment", w.Body.String()):
		return "origin"
	case to == "http://"+string(d.boxes[0])+path:
		return "a"
	case to == "http://"+string(d.boxes[1])+path:
		return "b"
	default:
		d.t.Fatalf("status %d, Location %q", w.Code, to)
		return ""
	}
}

func (d *door) request(path string, v viewer) (*httptest.ResponseRecorder, *http.Request) {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = v.addr + ":1000"
	for name, value := range map[string]string{"User-Agent": v.agent, "X-Forwarded-For": v.forwarded, "Range": v.span} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	return httptest.NewRecorder(), r
}

// TestWhoAsksAgainIsSentElsewhere: the first time to the best box, the second to another one, the
// third to the origin, for this viewer and no other.
func TestWhoAsksAgainIsSentElsewhere(t *testing.T) {
	t.Parallel()
	proxy := netip.MustParsePrefix("127.0.0.1/32")
	for name, v := range map[string]viewer{
		"directly":        {addr: "192.0.2.1"},
		"for a range":     {addr: "192.0.2.1", span: "bytes=0-2"},
		"through a proxy": {addr: "127.0.0.1", forwarded: "192.0.2.1"},
	} {
		d := newDoor(t, proxy)
		d.ask(segment(0), v) // so that it is known
		for i, want := range []string{"a", "b", "origin", "a", "b", "origin"} {
			if got := d.ask(segment(1), v); got != want {
				t.Errorf("%s, request %d went to %s, want %s", name, i+1, got, want)
			}
		}
		if want := []string{"a 192.0.2.1", "b 192.0.2.1", "a 192.0.2.1", "b 192.0.2.1"}; !slices.Equal(d.complaints, want) {
			t.Errorf("%s: complaints %q, want %q", name, d.complaints, want)
		}
		for what, other := range map[string]viewer{
			"address": {addr: "192.0.2.2", span: v.span},
			"player":  {addr: "192.0.2.1", agent: "other", span: v.span},
			"range":   {addr: "192.0.2.3", span: "bytes=1-"},
		} {
			if got := d.ask(segment(1), other); got != "a" {
				t.Errorf("%s: a viewer with another %s was sent to %s", name, what, got)
			}
		}
	}
}

// TestABoxThatFailedIsShunned: for the next files another box comes first, as long as there is one.
func TestABoxThatFailedIsShunned(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	v := viewer{addr: "192.0.2.1"}
	d.ask(segment(0), v)
	d.ask(segment(1), v)
	d.ask(segment(1), v) // a failed
	for n := 2; n < 6; n++ {
		if got := d.ask(segment(n), v); got != "b" {
			t.Errorf("segment %d: sent to %s, which failed a moment ago", n, got)
		}
	}
	if got := d.ask(segment(6), viewer{addr: "192.0.2.2"}); got != "a" {
		t.Errorf("another viewer was sent to %s", got)
	}
}

// TestHouseholds: viewers with one address and the same player must not look like one who fails,
// wherever in the stream each of them is, and whatever else is watched there.
func TestHouseholds(t *testing.T) {
	t.Parallel()
	other := func(n int) string { return strings.Replace(segment(n), "/demo/", "/other/", 1) }
	for _, viewers := range []int{2, 3, 10, 40} {
		d := newDoor(t)
		v := viewer{addr: "192.0.2.1"}
		count := map[string]int{}
		for n := range 20 {
			d.ask(other(n), v)
			for i := range viewers {
				to := d.ask(segment(n+i%3), v) // a third is a segment ahead of the next
				if n > 3 {
					count[to]++
				}
			}
		}
		if total := 16 * viewers; count["origin"] > total/20 || len(d.complaints) > viewers {
			t.Errorf("%d viewers of a household were sent to %v, with %d complaints", viewers, count, len(d.complaints))
		}
		// One of them who fails still reaches the origin.
		count = map[string]int{}
		for range viewers + 2 {
			count[d.ask(segment(100), v)]++
		}
		if len(d.doubts) == 0 {
			t.Errorf("one of %d fails and no box is looked at", viewers)
		}
		if count["origin"] == 0 || count["b"] == 0 {
			t.Errorf("one of %d who asks again and again was sent to %v", viewers, count)
		}
	}
}

// TestHouseholdsThatAreNew: while nobody knows how many they are, the origin serves a third at most,
// and no box is blamed.
func TestHouseholdsThatAreNew(t *testing.T) {
	t.Parallel()
	d := newDoor(t)
	count := map[string]int{}
	for range 60 {
		count[d.ask(segment(1), viewer{addr: "192.0.2.1"})]++
	}
	if count["origin"] > 20 || len(d.complaints) > 0 {
		t.Errorf("60 at once were sent to %v, with %d complaints", count, len(d.complaints))
	}
	// Five more with each segment.
	count = map[string]int{}
	for n := 2; n < 22; n++ {
		for range 60 + 5*n {
			count[d.ask(segment(n), viewer{addr: "192.0.2.1"})]++
		}
	}
	if all := count["a"] + count["b"] + count["origin"]; count["origin"] > all/10 {
		t.Errorf("of a growing household: %v", count)
	}
}

// TestHouseholdsAreBounded: what is remembered is bounded, however much is asked for.
func TestHouseholdsAreBounded(t *testing.T) {
	t.Parallel()
	var all households
	now := time.Unix(1_800_000_000, 0)
	one := request{household: 1, what: 1}
	for i := range 1000 {
		all.answered(one, "a", id.BoxID(fmt.Sprint(i)), 0, now)
	}
	for i := range 1000 {
		all.answered(request{household: 2, what: uint64(i)}, "a", "", 0, now)
	}
	if h := all.household(1); len(h.asks) != 1 || len(h.asks[0].sent) > maxSent || len(h.shunned) > maxShunned {
		t.Errorf("%d answers to one request, %d boxes shunned", len(h.asks[0].sent), len(h.shunned))
	}
	if h := all.household(2); len(h.asks) > maxAsks {
		t.Errorf("%d requests of one household", len(h.asks))
	}
	for i := range 2*maxHouseholds + 10 {
		all.answered(request{household: uint64(i) + 10, what: 1}, "a", "", 0, now)
		all.ask(request{household: uint64(i) + 10_000_000, what: 1}, now) // of what nobody has
	}
	if n := len(all.now) + len(all.old); n > 2*maxHouseholds {
		t.Errorf("%d households are remembered", n)
	}
	all.answered(one, "b", "b", 0, now)
	if p := all.ask(one, now.Add(max(repeatWindow, shunFor))); len(p.tried) != 0 || len(p.shunned) != 0 || p.again > 0 {
		t.Errorf("still remembered: %+v", p)
	}
}
