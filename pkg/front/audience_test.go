package front

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/id"
)

func TestAudience(t *testing.T) {
	t.Parallel()
	a, now := NewAudience(), time.Unix(1_800_000_000, 0)
	rate := func(rendition string) float64 { return map[string]float64{"s/low": 10, "s/high": 100}[rendition] }
	patience := func(string) time.Duration { return 5 * time.Second }
	a.sit("s/low", 1, nil, "box-a", now)
	a.sit("s/low", 2, nil, "box-a", now)
	a.sit("s/high", 1, nil, "box-a", now)
	a.sit("s/high", 3, nil, atOrigin, now)
	a.sit("s/high", 4, nil, nowhere, now)
	check := func(what string, boxA, boxB, origin float64, low, high, seated int) {
		t.Helper()
		v := a.Viewers(now, patience)
		if a.Load("box-a", rate) != boxA || a.Load("box-b", rate) != boxB || a.Load("", rate) != origin || v["s/low"].All != low || v["s/high"].All != high || a.Seated("s/high") != seated {
			t.Errorf("%s: loads %v, %v and %v, %v, %d seated in high", what, a.Load("box-a", rate), a.Load("box-b", rate), a.Load("", rate), v, a.Seated("s/high"))
		}
	}
	check("all came", 120, 0, 100, 2, 3, 1)
	a.sit("s/low", 1, nil, "box-b", now)
	a.sit("s/high", 4, nil, "box-b", now)
	check("one moved, one found a place", 110, 110, 100, 2, 3, 2)
	if box, watching := a.Sits("s/high", 4); box != "box-b" || !watching {
		t.Error(box, watching)
	}
	now = now.Add(4 * time.Second)
	a.sit("s/high", 1, nil, "box-a", now)
	now = now.Add(2 * time.Second)
	check("who asks stays", 100, 0, 0, 0, 1, 1)
	if len(a.boxes) != 1 || a.seats != 1 {
		t.Errorf("%v, %d seats", a.boxes, a.seats)
	}
}

const fullBox = id.BoxID("box-0123456789abcdef0123456789abcdef")

// crowded is content of which nobody has upload left, but as a test says.
type crowded struct {
	held
	location Location
	askers   []Asker
}

func (c *crowded) Locate(path id.Path, asker Asker) (Location, bool) {
	c.askers = append(c.askers, asker)
	loc := c.location
	loc.Boxes = slices.Clone(loc.Boxes)
	loc.Boxes = slices.DeleteFunc(loc.Boxes, func(h Holder) bool { return slices.Contains(asker.Avoid, h.Box) })
	loc.Room, loc.Path = min(loc.Room, len(loc.Boxes)), string(path)
	return loc, true
}

func (c *crowded) ask(f *Front, query string) *http.Response {
	mux := http.NewServeMux()
	f.Register(mux)
	r := httptest.NewRequest("GET", "http://127.0.0.1/live/demo/v/0123456789ab/1.ts"+query, nil)
	r.RemoteAddr = "127.0.0.1:1"
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, r)
	return w.Result()
}

// TestNoUploadLeft: who is new is told to come back, and who watches is not, while any box has the
// segment.
func TestNoUploadLeft(t *testing.T) {
	t.Parallel()
	boxes := []Holder{{"box-a", "http://a"}}
	for name, tt := range map[string]struct {
		location Location
		status   int
		seated   int
	}{
		"new, all full":              {Location{Boxes: boxes}, 503, 0},
		"new, room":                  {Location{Boxes: boxes, Room: 1}, 302, 1},
		"watches, all full":          {Location{Boxes: boxes, Watching: true}, 302, 1},
		"watches, no box has it":     {Location{Watching: true}, 503, 0},
		"new, no box, and no upload": {Location{}, 503, 0},
	} {
		c := &crowded{location: tt.location}
		f := New(Config{Content: c, Publisher: "publisher-0", Log: slog.New(slog.DiscardHandler)})
		resp := c.ask(f, "")
		if resp.StatusCode != tt.status || (resp.Header.Get("Retry-After") == "1") != (tt.status == 503) || f.cfg.Audience.Seated("demo/v") != tt.seated {
			t.Errorf("%s: status %d, %v, %d seated", name, resp.StatusCode, resp.Header, f.cfg.Audience.Seated("demo/v"))
		}
		if resp.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s: without CORS", name)
		}
		if n := f.cfg.Audience.Viewers(time.Now(), func(string) time.Duration { return time.Minute })["demo/v"].All; n != min(1, n) || !tt.location.Watching && n != 1 {
			t.Errorf("%s: %d viewers count", name, n)
		}
	}
}

// TestSentBack: a viewer whom a full box sends back gets another one that does not send it back again, and
// counts as no failure; without another one the full one is better than nobody.
func TestSentBack(t *testing.T) {
	t.Parallel()
	c := &crowded{location: Location{Boxes: []Holder{{fullBox, "http://full"}, {"box-b", "http://b"}}, Room: 2}}
	f := New(Config{Content: c, Publisher: "publisher-0", Log: slog.New(slog.DiscardHandler)})
	if at := c.ask(f, "").Header.Get("Location"); at != "http://full/live/demo/v/0123456789ab/1.ts" {
		t.Fatal(at)
	}
	if at := c.ask(f, "?avoid="+string(fullBox)).Header.Get("Location"); at != "http://b/live/demo/v/0123456789ab/1.ts?hop=1" {
		t.Error(at)
	}
	if last := c.askers[len(c.askers)-1]; len(last.Avoid) != 1 || f.Totals().Bounced != 1 {
		t.Errorf("%+v, %+v", last, f.Totals())
	}
	c.location.Boxes = c.location.Boxes[:1]
	if at := c.ask(f, "?avoid="+string(fullBox)).Header.Get("Location"); at != "http://full/live/demo/v/0123456789ab/1.ts?hop=1" {
		t.Error(at)
	}
	if resp := c.ask(f, "?avoid=../../x"); resp.StatusCode != 302 || f.Totals().Bounced != 1 {
		t.Errorf("%d, %+v", resp.StatusCode, f.Totals())
	}
}
