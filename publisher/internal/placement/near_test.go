//go:build !386 && !arm && !mips && !mipsle

package placement

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/front"
	"dandelion/pkg/geo"
	"dandelion/pkg/geo/geotest"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// town is one of the places of the test. Viewers come from its network.
type town struct {
	name    string
	geo     wire.GeoIP
	network string
	slots   int // of each of its boxes
	viewers int
	order   []int // the towns by distance from here
}

// nearContent is what the front shows: one segment.
type nearContent struct {
	front.Content
	p *Placement
	s *Live
}

func (c nearContent) Locate(path id.Path, asker front.Asker) (front.Location, bool) {
	found := c.p.Find(path, c.s.Digest, asker)
	return front.Location{
		Digest: c.s.Digest, Size: c.s.Size, Path: "/x" + path.Escaped(),
		Boxes: found.Holders, Room: found.Room, Watching: found.Watching, Origin: found.Origin,
	}, true
}

func (c nearContent) Joined(rendition string, box id.BoxID, bytes int64) {
	c.p.Joined(rendition, box, bytes)
}
func (c nearContent) Redirected(box id.BoxID, bytes int64)     { c.p.Redirected(box, bytes) }
func (c nearContent) Complained(id.BoxID, id.Path, netip.Addr) {}
func (c nearContent) Open(id.Path) (*os.File, error)           { return nil, fs.ErrNotExist }

// TestViewersGoToTheNearestPlaceWithCapacity: fifty boxes in five places and viewers in three, who come
// one after another, through the real front, placement, plan and links. Taipei's boxes have room for two thirds
// of its viewers; the others belong into Tokyo, and not farther.
func TestViewersGoToTheNearestPlaceWithCapacity(t *testing.T) {
	t.Parallel()
	towns := []*town{
		{name: "Taipei", geo: wire.GeoIP{Country: "TW", City: "Taipei", Loc: "25.05,121.53"}, network: "203.0.113", slots: 4, viewers: 60},
		{name: "Tokyo", geo: wire.GeoIP{Country: "JP", City: "Tokyo", Loc: "35.69,139.69"}, slots: 8},
		{name: "Berlin", geo: wire.GeoIP{Country: "DE", City: "Berlin", Loc: "52.52,13.40"}, network: "198.51.100", slots: 8, viewers: 30},
		{name: "Paris", geo: wire.GeoIP{Country: "FR", City: "Paris", Loc: "48.85,2.35"}, slots: 8},
		{name: "New York", geo: wire.GeoIP{Country: "US", City: "New York", Loc: "40.71,-74.01"}, network: "192.0.2", slots: 8, viewers: 20},
	}
	const rate, plays = 1000, 20 * time.Second // bytes/s
	records := map[string]mmdbtype.Map{}
	for _, v := range towns {
		for j := range towns {
			v.order = append(v.order, j)
		}
		slices.SortFunc(v.order, func(a, b int) int {
			kmA, _ := geo.Distance(v.geo, towns[a].geo)
			kmB, _ := geo.Distance(v.geo, towns[b].geo)
			return int(kmA - kmB)
		})
		if v.network != "" {
			var lat, lon float64
			fmt.Sscanf(v.geo.Loc, "%f,%f", &lat, &lon)
			records[v.network+".0/24"] = geotest.City(v.geo.Country, "", v.geo.City, lat, lon)
		}
	}
	db, err := geo.Open([]string{geotest.New(t, "GeoLite2-City", records)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	audience := front.NewAudience()
	r := newRigWith(t, func(c *Config) {
		c.MinBoxes, c.MaxBoxes, c.FirstCopies, c.Origin, c.Audience = 50, 50, 50, 1, audience
		c.Renditions = func() []Rendition {
			return []Rendition{{Name: "demo/v", Rate: rate, Longest: plays, Replicas: 2, TTL: time.Minute}}
		}
	})
	townOf := map[string]int{} // by EdgeBase
	for i := range 50 {
		v := towns[i%5]
		grant := &wire.Terms{Rate: int64((float64(v.slots) + 0.5) * rate / 0.8), Seconds: 3600}
		r.boxAt(i, v.geo, grant, nil, stores(0))
		townOf[r.boxes[i].EdgeBase] = i % 5
	}

	segment := r.segment(0, 2)
	f := front.New(front.Config{
		Content: nearContent{p: r.Placement, s: &segment}, Publisher: testPublisher, Audience: audience, Places: geo.NewCache(db),
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, Log: slog.New(slog.DiscardHandler),
	})
	mux := http.NewServeMux()
	f.Register(mux)

	sits := map[string]int{} // the town of each viewer
	seated := make([]int, len(towns))
	right, all, turnedAway := 0, 0, 0
	ask := func(v *town, n int) {
		req := httptest.NewRequest(http.MethodGet, string(segment.Path), nil)
		req.RemoteAddr = "127.0.0.1:1"
		viewer := fmt.Sprintf("%s.%d", v.network, n)
		req.Header.Set("X-Forwarded-For", viewer)
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, req)
		if w.Code != http.StatusFound {
			turnedAway++
			return
		}
		base, _, _ := strings.Cut(w.Header().Get("Location"), "/x/")
		to, ok := townOf[base]
		if !ok {
			t.Fatalf("sent to %s", base)
		}
		if was, ok := sits[viewer]; ok {
			seated[was]--
		}
		all++
		for _, j := range v.order {
			if j == to {
				right++
				break
			}
			if seated[j] < 10*towns[j].slots {
				break // it had room
			}
		}
		sits[viewer] = to
		seated[to]++
	}
	for round := range 25 {
		segment = r.segment(round, 2)
		segment.Duration = plays // or boxes of a busy machine count as slow
		r.Place(segment)
		r.await("the holders of the plan have the segment", func() bool {
			r.Placement.mu.Lock()
			defer r.Placement.mu.Unlock()
			have := r.records.holders(segment.Path, segment.Digest)
			wanted := r.plan.Holders["demo/v"].Boxes
			return len(wanted) > 0 && r.jobs[segment.Path] == nil && !slices.ContainsFunc(wanted, func(b id.BoxID) bool { return !slices.Contains(have, b) })
		})
		for _, v := range towns {
			for n := range v.viewers {
				if n < (round+1)*10 { // ten more with each segment
					ask(v, n+1)
				}
			}
		}
		came := 0
		for _, v := range towns {
			came += min(v.viewers, (round+1)*10)
		}
		r.await("a plan for all who came", func() bool {
			r.Placement.mu.Lock()
			defer r.Placement.mu.Unlock()
			return r.viewers["demo/v"] == came
		})
	}
	share := float64(right) / float64(all)
	t.Logf("%d of %d redirects to the nearest place with room (%.1f %%), %d turned away; seats %v", right, all, 100*share, turnedAway, seated)
	if share < 0.95 || all < 1500 {
		t.Errorf("%d of %d redirects to the nearest place with room, %d turned away; seats %v", right, all, turnedAway, seated)
	}
	if seated[0] != 40 || seated[1] != 20 || seated[2] != 30 || seated[4] != 20 {
		t.Errorf("at last, seats %v", seated)
	}
}
