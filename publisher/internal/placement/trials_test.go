package placement

import (
	"bytes"
	"math"
	"net/netip"
	"os"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/saving"
	"dandelion/pkg/wire"
)

// TestTrials: of boxes that hold a segment, the one whose line nobody knows is asked now and then to pass it on to
// another one, until the line is known, or it has been tried often enough.
func TestTrials(t *testing.T) {
	t.Parallel()
	book := saving.NewBook(time.Now())
	r := newRigWith(t, func(c *Config) {
		c.Saving = book
		c.Renditions = func() []Rendition {
			return []Rendition{{Name: "demo/v", Rate: 375_000, Longest: time.Second, Replicas: 2, TTL: time.Minute}}
		}
	})
	unknown := r.boxAt(1, wire.GeoIP{Country: "TW"}, &wire.Terms{Rate: 125_000, Seconds: 60}, nil, stores(0))
	known := r.boxAt(2, wire.GeoIP{Country: "TW"}, &wire.Terms{Rate: 125_000, Seconds: 60}, nil, stores(0))
	r.says(unknown, math.NaN())
	s := r.segment(1, 2)
	content := bytes.Repeat([]byte("x"), leastTrial)
	if err := os.WriteFile(s.File, content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.Digest, s.Size = id.DigestOf(content), int64(len(content))
	path, err := id.NewSegmentPath("demo", "v", s.Digest, "1.ts")
	if err != nil {
		t.Fatal(err)
	}
	s.Path = path.Path()
	r.show(s)
	var c wire.Copy
	r.await("both hold it, and one was asked", func() bool {
		select {
		case c = <-r.copied:
		default:
			return false
		}
		return true
	})
	if c.FilePath != string(s.Path) || c.SHA256 != s.Digest || len(c.Relay) != 1 || c.Relay[0].Box != known || c.Relay[0].RequestID == "" {
		t.Fatalf("%+v", c)
	}
	before := book.Of(s.Path).Total().Relayed
	for _, from := range []id.BoxID{unknown, known} { // its own word does not count
		r.answered(r.member(from), wire.Stored{RequestID: c.Relay[0].RequestID, FilePath: s.Path, Size: s.Size, SHA256: s.Digest})
	}
	if got := book.Of(s.Path).Total().Relayed - before; got != s.Size {
		t.Errorf("%d bytes count as passed on, want %d", got, s.Size)
	}
	if holders := r.records.holders(s.Path, s.Digest); len(holders) != 2 {
		t.Errorf("%v", holders)
	}

	at, asked := time.Now(), 0
	for range 2 * mostTrials {
		at = at.Add(trialEvery)
		r.tryAt(at.Add(-time.Second)) // too soon
		asked += r.tryAt(at)
	}
	if asked != mostTrials-1 {
		t.Errorf("%d trials more, want %d", asked, mostTrials-1)
	}
	if at = at.Add(trialRest + time.Second); r.tryAt(at) != 1 {
		t.Error("never again")
	}
	r.says(unknown, 1e6)
	if r.tryAt(at.Add(time.Hour)) != 0 {
		t.Error("its line is known")
	}
}

// says sets what a box says of its line, bytes/s; NaN: nothing.
func (r *rig) says(box id.BoxID, capacity float64) {
	r.mu.Lock()
	for i := range r.boxes {
		if r.boxes[i].ID == box {
			r.boxes[i].Exchange.System.NetCapacity = capacity
		}
	}
	r.mu.Unlock()
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	r.members[box].box.Exchange.System.NetCapacity = capacity
}

// tryAt returns how many boxes are asked for a trial at a moment to come.
func (r *rig) tryAt(now time.Time) (asked int) {
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	r.tryLines(now)
	for _, t := range r.trials {
		if t.at.Equal(now) {
			asked++
		}
	}
	return asked
}

func TestAcrossLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		from, to string
		want     bool
	}{
		{"1.1.1.1", "8.8.8.8", true},
		{"1.1.1.1", "1.1.1.2", false},
		{"1.1.1.1", "192.168.1.2", false},
		{"127.0.0.1", "127.0.0.1", false},
		{"", "8.8.8.8", true},
		{"", "", true},
		{"", "10.0.0.1", false},
	} {
		from, _ := netip.ParseAddr(c.from)
		to, _ := netip.ParseAddr(c.to)
		if got := acrossLine(from, to); got != c.want {
			t.Errorf("from %q to %q: %v", c.from, c.to, got)
		}
	}
}
