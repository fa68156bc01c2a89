package grants

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestDivide(t *testing.T) {
	type claims = map[id.PublisherID]Claim
	for _, c := range []struct {
		name   string
		total  int64
		claims claims
		want   string
	}{
		{"nobody asks: alike", 100, claims{"a": {}, "b": {}}, "map[a:50 b:50]"},
		{"enough for all, the rest alike", 100, claims{"a": {Demand: 60}, "b": {Demand: 20}}, "map[a:70 b:30]"},
		{"the small one is not starved", 100, claims{"a": {Demand: 10_000}, "b": {Demand: 10}}, "map[a:90 b:10]"},
		{"two large ones have the same", 100, claims{"a": {Demand: 1000}, "b": {Demand: 5000}, "c": {Demand: 20}}, "map[a:40 b:40 c:20]"},
		{"favoured first", 100, claims{"a": {Demand: 80, Favoured: true}, "b": {Demand: 80}}, "map[a:80 b:20]"},
		{"old ones have a reserve and no more", 100, claims{"a": {Demand: 10}, "old": {Demand: 20, Old: true}}, "map[a:80 old:20]"},
		{"nothing there", 0, claims{"a": {Demand: 10}}, "map[a:0]"},
		{"less than nothing", -5, claims{"a": {Demand: 10}}, "map[a:0]"},
	} {
		if got := fmt.Sprint(Divide(c.total, c.claims)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestNeverMoreThanThereIs: whatever publishers demand, come and go, and the household uses, what is
// promised is at most what was there at the latest look, and each hears of it.
func TestNeverMoreThanThereIs(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	available := int64(1e6)
	heard := map[id.PublisherID]int64{}
	var s *Service
	s = New(Config{
		Available: func() int64 { return available },
		Tell: func(pub id.PublisherID) {
			heard[pub] = s.Terms(pub).Rate
			total := int64(0)
			for _, rate := range heard {
				total += rate
			}
			if total > 1e6 {
				t.Fatalf("promised meanwhile: %v", heard)
			}
		},
		Favours: func(pub id.PublisherID) bool { return pub == "p-0" },
	})
	now := time.Now()
	old := map[id.PublisherID]bool{}
	for range 20_000 {
		pub := id.PublisherID(fmt.Sprint("p-", rng.IntN(8)))
		_, open := heard[pub]
		switch rng.IntN(6) {
		case 0:
			if !open && !old[pub] {
				heard[pub] = s.Open(pub, true).Rate
			}
		case 1:
			if open {
				delete(heard, pub)
				s.Close(pub, true)
			}
		case 2:
			s.Demand(pub, rng.Int64N(2e6))
		case 3:
			available = rng.Int64N(1e6)
			s.divide(now)
			total := int64(0)
			for _, rate := range heard {
				total += rate
			}
			if promised := s.Promised(); total > promised || promised > available {
				t.Fatalf("%d promised of %d: %v", promised, available, heard)
			}
		case 4:
			now = now.Add(time.Second)
		case 5:
			if !open && !old[pub] && len(old) < 2 {
				old[pub] = true
				s.Open(pub, false)
			} else if old[pub] {
				delete(old, pub)
				s.Close(pub, false)
			}
		}
	}
}

// TestLatePublisher: one that comes when everything is promised has its share within a second or
// two.
func TestLatePublisher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := make(chan string, 100)
		var s *Service
		s = New(Config{
			Available: func() int64 { return 1e6 },
			Tell:      func(pub id.PublisherID) { told <- fmt.Sprint(pub, " ", s.Terms(pub).Rate) },
		})
		go s.Run(t.Context())
		if first := s.Open("a", true); first.Rate != 1e6 || first.Lasts() != wire.GrantTTL {
			t.Errorf("%+v", first)
		}
		s.Demand("a", 5e6)
		if second := s.Open("b", true); second.Rate != 0 {
			t.Errorf("%+v", second)
		}
		s.Demand("b", 200e3)
		time.Sleep(2 * time.Second)
		if a, b := <-told, <-told; a != "a 800000" || b != "b 200000" {
			t.Error(a, b)
		}
		time.Sleep(wire.GrantTTL / 3)
		if len(told) != 2 {
			t.Errorf("told again: %d", len(told))
		}
		s.Close("b", true)
		if granted := s.Terms("b"); granted.Rate != 0 {
			t.Error(granted)
		}
		time.Sleep(2 * time.Second)
		<-told
		<-told
		if a := <-told; a != "a 1000000" {
			t.Error(a)
		}
	})
}
