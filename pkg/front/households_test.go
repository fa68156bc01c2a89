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
)

// held is files that two boxes hold and the origin has.
type held struct {
	file       string
	complaints *[]string // "<box> <viewer>"
}

func (held) Playlist(id.StreamName, string) (Playlist, bool) { return Playlist{ETag: `"1"`}, true }
func (held) Redirected(id.BoxID, int64)                      {}

func (h held) Complained(box id.BoxID, _ id.Path, viewer netip.Addr) {
	*h.complaints = append(*h.complaints, string(box)+" "+viewer.String())
}

func (held) Locate(path id.Path, _ netip.Addr, avoid []id.BoxID) (Location, bool) {
	loc := Location{Path: string(path)}
	for _, box := range []id.BoxID{"a", "b"} {
		if !slices.Contains(avoid, box) {
			loc.Boxes = append(loc.Boxes, Holder{Box: box, Base: "http://" + string(box)})
		}
	}
	return loc, true
}

func (h held) Open(id.Path) (*os.File, error) { return os.Open(h.file) }

// door is a front that viewers ask.
type door struct {
	t          *testing.T
	mux        *http.ServeMux
	complaints []string
}

func newDoor(t *testing.T, trusted ...netip.Prefix) *door {
	d := &door{t: t, mux: http.NewServeMux()}
	file := filepath.Join(t.TempDir(), "0.ts")
	if err := os.WriteFile(file, []byte("segment"), 0o600); err != nil {
		t.Fatal(err)
	}
	New(Config{Content: held{file, &d.complaints}, Publisher: "publisher-0", TrustedProxies: trusted, Log: slog.New(slog.DiscardHandler)}).Register(d.mux)
	return d
}

func segment(n int) string { return fmt.Sprintf("/live/demo/index/0123456789ab/%d.ts", n) }

// viewer is one more header of its requests, "" for none.
type viewer struct{ addr, agent, forwarded, span string }

// ask asks for a segment and says where it was sent: "a", "b" or "origin".
func (d *door) ask(path string, v viewer) string {
	d.t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr = v.addr + ":1000"
	for name, value := range map[string]string{"User-Agent": v.agent, "X-Forwarded-For": v.forwarded, "Range": v.span} {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	d.mux.ServeHTTP(w, r)
	switch to := w.Header().Get("Location"); {
	case (w.Code == http.StatusOK || w.Code == http.StatusPartialContent) && strings.HasPrefix("segment", w.Body.String()):
		return "origin"
	case to == "http://a"+path:
		return "a"
	case to == "http://b"+path:
		return "b"
	default:
		d.t.Fatalf("status %d, Location %q", w.Code, to)
		return ""
	}
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
		for i, want := range []string{"a", "b", "origin", "origin"} {
			if got := d.ask(segment(1), v); got != want {
				t.Errorf("%s, request %d went to %s, want %s", name, i+1, got, want)
			}
		}
		if want := []string{"a 192.0.2.1", "b 192.0.2.1"}; !slices.Equal(slices.Compact(d.complaints)[:2], want) {
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

// TestAHouseholdIsSpreadOverTheHolders: viewers with one address and the same player must not look
// like one who fails, wherever in the stream each of them is.
func TestAHouseholdIsSpreadOverTheHolders(t *testing.T) {
	t.Parallel()
	for _, viewers := range []int{2, 3, 10, 40} {
		d := newDoor(t)
		v := viewer{addr: "192.0.2.1"}
		count := map[string]int{}
		for n := range 20 {
			for i := range viewers {
				to := d.ask(segment(n+i%3), v) // a third is a segment ahead of the next
				if n > 3 {
					count[to]++
				}
			}
		}
		if total := 16 * viewers; count["origin"] > total/20 || count["a"] < total/3 || count["b"] < total/3 {
			t.Errorf("%d viewers of a household were sent to %v", viewers, count)
		}
		// One of them who fails still reaches the origin.
		count = map[string]int{}
		for range viewers + 2 {
			count[d.ask(segment(100), v)]++
		}
		if count["origin"] == 0 {
			t.Errorf("one of %d who asks again and again was sent to %v", viewers, count)
		}
	}
}

// TestHouseholdsAreBounded: what is remembered is bounded, however much is asked for.
func TestHouseholdsAreBounded(t *testing.T) {
	t.Parallel()
	var all households
	now := time.Unix(1_800_000_000, 0)
	one := request{1, 1}
	for i := range 1000 {
		all.answered(one, "a", []id.BoxID{id.BoxID(fmt.Sprint(i))}, now)
	}
	for i := range 100 {
		all.answered(request{2, uint64(i)}, "a", nil, now)
	}
	if h := all.household(1, now); len(h.asks) != 1 || len(h.asks[0].sent) > maxSent || len(h.shunned) > maxShunned {
		t.Errorf("%d answers to one request, %d boxes shunned", len(h.asks[0].sent), len(h.shunned))
	}
	if h := all.household(2, now); len(h.asks) > maxAsks {
		t.Errorf("%d requests of one household", len(h.asks))
	}
	for i := range 2*maxHouseholds + 10 {
		all.answered(request{uint64(i) + 10, 1}, "a", nil, now)
	}
	if n := len(all.now) + len(all.old); n > 2*maxHouseholds {
		t.Errorf("%d households are remembered", n)
	}
	all.answered(one, "b", []id.BoxID{"b"}, now)
	if p := all.ask(one, now.Add(max(repeatWindow, shunFor))); len(p.sent) != 0 || len(p.shunned) != 0 || p.again != 0 {
		t.Errorf("still remembered: %+v", p)
	}
}
