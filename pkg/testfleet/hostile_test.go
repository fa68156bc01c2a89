package testfleet

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/publisher"
)

// below starts a fleet whose segments go to a fake box first, which is to pass them on to all others.
func below(t *testing.T, boxes int) (*Fleet, *Encoder, *FakeBox) {
	t.Helper()
	f := Start(t, Options{
		Replicas: boxes + 1,
		Box: func(_ int, c *box.Config) {
			c.UploadCapacity, c.UploadLimit = config.Fixed(8*config.Mbit), config.Fixed(8*config.Mbit)
		},
		Publisher: func(c *publisher.Config) { c.FirstCopies = 1 },
	})
	fake := f.StartFakeBox(2_000_000)
	f.AwaitBoxes(1)
	e := f.Encoder()
	e.Size = 100_000
	e.Write(1)
	f.planned(fake.ID, 1)
	f.AddBoxes(boxes)
	f.AwaitBoxes(boxes + 1)
	f.planned(fake.ID, boxes+1)
	e.Write(1)
	f.same(e.Segments[1], boxes+1)
	if fake.Asked() < boxes {
		t.Fatalf("the fake box was asked to pass on to %d boxes", fake.Asked())
	}
	return f, e, fake
}

// planned waits until so many boxes are to hold the stream, that one first.
func (f *Fleet) planned(first id.BoxID, n int) {
	f.tb.Helper()
	f.Await("a plan", func() bool {
		s := f.Publisher.Plans()
		return len(s) == 1 && len(s[0].Holders) == n && s[0].Holders[0] == first
	})
}

// unfit returns why a box is not asked to pass segments on, as the API has it.
func (f *Fleet) unfit(box id.BoxID) string {
	f.tb.Helper()
	var answer struct {
		Boxes []struct {
			ID    id.BoxID `json:"id"`
			Unfit string   `json:"unfit_to_relay"`
		} `json:"boxes"`
	}
	status, body := f.Get(f.Publisher.URL() + "/api/v1/boxes")
	if status != http.StatusOK {
		f.tb.Fatalf("%d: %s", status, body)
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		f.tb.Fatal(err)
	}
	for _, b := range answer.Boxes {
		if b.ID == box {
			return b.Unfit
		}
	}
	return ""
}

// TestHostileParents: whatever a box does with what it should pass on, the others get each segment while it is of
// use, nobody is sent to wrong bytes, the API names the box, and it is not asked any more.
func TestHostileParents(t *testing.T) {
	t.Parallel()
	const boxes = 3
	// A box counts as lagging after two target durations, 4 s; the rest is for machines under load.
	const soon = 25 * time.Second
	for name, tt := range map[string]struct {
		conduct Conduct
		unfit   string
	}{
		"other bytes":               {Spoiling, "refused_digest"},
		"other bytes, their digest": {Forging, "refused_digest"},
		"half of it":                {BreakingOff, "relay"},
		"accuses the others":        {Accusing, "relay"},
		"nothing":                   {Withholding, "lagging"},
		"slowly":                    {Trickling, "lagging"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, e, fake := below(t, boxes)
			fake.Turn(tt.conduct)
			began := time.Now()
			e.Write(1)
			f.same(e.Segments[2], boxes+1)
			if took := time.Since(began); took > soon {
				t.Errorf("the first segment took %v", took)
			}
			t.Logf("the first segment took %v", time.Since(began))
			if got := f.unfit(fake.ID); got != tt.unfit {
				t.Errorf("unfit: %q, want %q", got, tt.unfit)
			}
			asked := fake.Asked()
			began = time.Now()
			e.Write(1)
			f.same(e.Segments[3], boxes+1)
			t.Logf("the next segment took %v", time.Since(began))
			if n := fake.Asked() - asked; n > 0 {
				t.Errorf("it was asked to pass on %d more", n)
			}
			counted := int64(0)
			for reason, n := range f.Publisher.Totals().Placing.Undelivered {
				if string(reason) == tt.unfit {
					counted = n
				}
			}
			if counted < 2 {
				t.Errorf("the metrics count %d copies as %s", counted, tt.unfit)
			}
		})
	}
}

// TestHostileChild: a box that never answers for what is passed on to it costs the others nothing, and is not held
// against those that passed it on.
func TestHostileChild(t *testing.T) {
	t.Parallel()
	const boxes = 3
	f := Start(t, Options{
		Boxes: boxes, Replicas: boxes + 1,
		Box: func(_ int, c *box.Config) {
			c.UploadCapacity, c.UploadLimit = config.Fixed(8*config.Mbit), config.Fixed(8*config.Mbit)
		},
		Publisher: func(c *publisher.Config) { c.FirstCopies = 1 },
	})
	e := f.Encoder()
	e.Size = 100_000
	e.Write(1)
	f.holders(e.Segments[0], boxes)
	f.Await("a plan", func() bool { return len(f.Publisher.Plans()) == 1 && len(f.Publisher.Plans()[0].Holders) == boxes })
	fake := f.StartFakeBox(250_000)
	fake.Silence()
	f.AwaitBoxes(boxes + 1)
	f.Await("a plan with the fake box", func() bool { return len(f.Publisher.Plans()[0].Holders) == boxes+1 })
	lagging := func() (n int64) {
		for reason, count := range f.Publisher.Totals().Placing.Undelivered {
			if reason == "lagging" {
				n = count
			}
		}
		return n
	}
	for range 3 {
		e.Write(1)
		path := pathOf(e.Segments[len(e.Segments)-1], "demo")
		f.Await("the segment at the other boxes", func() bool {
			for _, b := range f.Boxes {
				if !f.holds(b, path) {
					return false
				}
			}
			return true
		})
	}
	if n := lagging(); n > 0 {
		t.Logf("%d copies lagged before all others had all", n)
	}
	f.Await("copies that count as lagging", func() bool { return lagging() > 1 })
	for _, b := range f.Boxes {
		if why := f.unfit(b.ID()); why != "" {
			t.Errorf("%s is not asked to pass on any more: %s", b.ID(), why)
		}
	}
}
