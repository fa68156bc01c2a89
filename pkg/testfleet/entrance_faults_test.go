package testfleet

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/pkg/id"
)

// searchable returns how many boxes an entrance can offer; -1 while it does not answer.
func (e *Entrance) searchable() int {
	known := struct{ Searchable int }{-1}
	e.api("entrance", &known)
	return known.Searchable
}

// whyNot returns why an entrance does not offer a box.
func (e *Entrance) whyNot(box id.BoxID) string {
	var known struct {
		WhyNot string `json:"why_not"`
	}
	e.api("boxes/"+string(box), &known)
	return known.WhyNot
}

// api reads what an entrance says; nothing while it does not answer.
func (e *Entrance) api(path string, into any) {
	resp, err := http.Get("http://" + e.Addr().String() + "/api/v1/" + path)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	_ = json.NewDecoder(resp.Body).Decode(into)
}

// TestEntrancesAway: while no entrance is there boxes take and serve as before, and after the
// restart every entrance offers all of them again. The boxes report as rarely as boxes of households
// do.
func TestEntrancesAway(t *testing.T) {
	t.Parallel()
	const boxes = 3
	f := Start(t, Options{Boxes: boxes, Entrances: 2, Box: func(_ int, c *box.Config) { c.ReportInterval = 5 * config.Second }})
	for _, e := range f.Entrances {
		f.Await("all boxes offered", func() bool { return e.searchable() == boxes })
	}
	e := f.Encoder()
	e.Seconds = 10 // a TTL that outlives the test
	e.Write(2)
	f.holders(e.Segments[1], 2)
	for _, entrance := range f.Entrances {
		entrance.Stop()
	}
	e.Write(2)
	for _, s := range e.Segments {
		for _, u := range f.holders(s, 2) {
			if status, body := f.Get(u); status != http.StatusOK || id.DigestOf(body) != s.Digest() {
				t.Errorf("%s: status %d, %d bytes, not the segment", u, status, len(body))
			}
		}
	}
	if up := f.Publisher.Boxes().Up; up != boxes {
		t.Errorf("%d boxes are up at the publisher", up)
	}
	for _, entrance := range f.Entrances {
		entrance.Start()
	}
	back := time.Now()
	for _, entrance := range f.Entrances {
		f.Await("all boxes offered again", func() bool { return entrance.searchable() == boxes })
	}
	t.Logf("all boxes were offered again after %v", time.Since(back))
}

// TestDrainedBoxIsOutOfSearchAtOnce: it says goodbye to every entrance before all else.
func TestDrainedBoxIsOutOfSearchAtOnce(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2, Entrances: 2})
	for _, e := range f.Entrances {
		f.Await("all boxes offered", func() bool { return e.searchable() == 2 })
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		f.Boxes[0].Stop()
	}()
	for _, e := range f.Entrances {
		f.Await("the box has left", func() bool { return e.searchable() == 1 })
		if why := e.whyNot(f.Boxes[0].ID()); !strings.HasPrefix(why, "it left: it said goodbye") {
			t.Errorf("%q", why)
		}
	}
	<-stopped
}
