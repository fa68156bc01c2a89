package api

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/entrance/internal/ledger"
	"dandelion/entrance/internal/registry"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func newAPI(t testing.TB, boxes int) (*http.ServeMux, *registry.Registry) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	reg := registry.New(registry.Config{LeaseTTL: time.Minute}, nil, log, prometheus.NewRegistry())
	for i := range boxes {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		box := id.BoxIDOf(fmt.Appendf(nil, "box %d", i))
		x := wire.Exchange{Peer: wire.Peer{ID: string(box), IP: addr.String()}, ConnectWS: "http://" + addr.String() + "/", System: wire.UnknownSystem()}
		x.System.NetUp = 1e6
		x.GeoIP = wire.GeoIP{City: "<script>alert(1)</script>"}
		if err := reg.Put(&registry.Box{ID: box, Exchange: x, Seen: addr, Address: addr}); err != nil {
			t.Fatal(err)
		}
	}
	mux := http.NewServeMux()
	accounts := ledger.New(ledger.Config{Keep: 48 * time.Hour}, nil, log, prometheus.NewRegistry())
	New(Config{ID: "entrance-x", Sessions: func() int { return 7 }}, reg, accounts, log).Register(mux)
	return mux, reg
}

func get(mux http.Handler, path string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	r.RemoteAddr, r.Host = "127.0.0.1:1", "127.0.0.1:7070"
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w
}

// TestPages: walking through a thousand boxes yields each exactly once.
func TestPages(t *testing.T) {
	t.Parallel()
	mux, _ := newAPI(t, 1000)
	for _, limit := range []int{1, 7, 100, 1000} {
		seen := map[string]bool{}
		after, pages := "", 0
		for more := true; more && pages <= 1001; pages++ {
			w := get(mux, fmt.Sprintf("/api/v1/boxes?limit=%d&after=%s", limit, after))
			var page Boxes
			if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != 200 {
				t.Fatalf("%d %v: %s", w.Code, err, w.Body)
			}
			if len(page.Boxes) > limit || page.Total != 1000 {
				t.Fatalf("%d boxes of %d", len(page.Boxes), page.Total)
			}
			for _, b := range page.Boxes {
				if seen[b.ID] {
					t.Fatalf("%s twice", b.ID)
				}
				seen[b.ID] = true
			}
			after, more = page.Next, page.Next != ""
		}
		if len(seen) != 1000 {
			t.Errorf("limit %d: %d boxes in %d pages", limit, len(seen), pages)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	mux, _ := newAPI(t, 1)
	for path, want := range map[string]int{
		"/api/v1/boxes?limit=0":         400,
		"/api/v1/boxes?limit=1001":      400,
		"/api/v1/boxes?limit=x":         400,
		"/api/v1/boxes?after=x":         400,
		"/api/v1/boxes/x":               404,
		"/api/v1/boxes/box-..%2f..%2fx": 404,
		"/api/v2":                       404,
	} {
		w := get(mux, path)
		var body struct{ Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != want || body.Error == "" {
			t.Errorf("%s: %d, want %d: %s", path, w.Code, want, w.Body)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/api/v1/boxes", nil)
	r.RemoteAddr = "192.0.2.1:1"
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("from another machine: %d", w.Code)
	}
}

func TestEntrance(t *testing.T) {
	t.Parallel()
	mux, reg := newAPI(t, 3)
	b := reg.Boxes()[0]
	reg.SetReach(b, registry.Reach{State: registry.ReachYes}, netip.Addr{})
	reg.SetReach(reg.Boxes()[1], registry.Reach{State: registry.ReachNo, Reason: "r"}, netip.Addr{})
	var e Entrance
	if err := json.Unmarshal(get(mux, "/api/v1/entrance").Body.Bytes(), &e); err != nil {
		t.Fatal(err)
	}
	if e.ID != "entrance-x" || e.Boxes != 3 || e.Sessions != 7 {
		t.Errorf("%+v", e)
	}
}

func TestPageEscapes(t *testing.T) {
	t.Parallel()
	mux, _ := newAPI(t, 2)
	w := get(mux, "/")
	body := w.Body.String()
	if w.Code != 200 || strings.Contains(body, "<script>") || !strings.Contains(body, "&lt;script&gt;") {
		t.Errorf("%d %s", w.Code, body)
	}
	for _, want := range []string{">8.0<", "not offered", "viewport", "prefers-color-scheme"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in the page", want)
		}
	}
	if mux, _ := newAPI(t, 0); !strings.Contains(get(mux, "/").Body.String(), "No box is here yet") {
		t.Error("the empty page does not say what to do")
	}
}
