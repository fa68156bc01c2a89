package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dandelion/entrance/internal/registry"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

var now = time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)

// candidate is a box that nothing speaks against, in a household of its own.
func candidate(n int, change func(*registry.Box)) *registry.Box {
	addr := netip.AddrFrom4([4]byte{198, 51, byte(n), 1})
	b := &registry.Box{
		ID: id.BoxIDOf(fmt.Appendf(nil, "box %d", n)), Address: addr, Seen: addr,
		FirstSeen: now.Add(-24 * time.Hour), Reported: now, Expires: now.Add(20 * time.Second),
		Reach: registry.Reach{State: registry.ReachYes},
	}
	b.System = wire.UnknownSystem()
	if change != nil {
		change(b)
	}
	b.Locate(b.Address)
	return b
}

var publisher = Publisher{Addr: netip.MustParseAddr("203.0.113.1"), Place: wire.GeoIP{Loc: "52.5,13.4"}}

func half() float64 { return 0.5 }

func TestWhyNot(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*registry.Box)
		want   string
	}{
		{"good", nil, ""},
		{"nothing known", func(b *registry.Box) { b.System = wire.UnknownSystem() }, ""},
		{"left", func(b *registry.Box) { b.GoneWhy = "unplugged" }, "it left: unplugged"},
		{"lease over", func(b *registry.Box) { b.Expires = now }, "its lease is over"},
		{"not tried", func(b *registry.Box) { b.Reach = registry.Reach{} }, "not dialled back yet"},
		{"not reachable", func(b *registry.Box) {
			b.Reach = registry.Reach{State: registry.ReachNo, Reason: "not reachable at X"}
		}, "not reachable at X"},
		{"stores nothing", func(b *registry.Box) { b.System.StorageLimit = 0 }, "storage_limit is 0"},
		{"its cache is full, which it handles", func(b *registry.Box) {
			b.System.StorageLimit, b.System.StorageUsed, b.System.StorageFree = 1e9, 1e9, 1e6
		}, ""},
		{"disk full", func(b *registry.Box) {
			b.System.StorageLimit, b.System.StorageUsed, b.System.StorageFree = 1e9, 1e6, 1e6
		}, "its disk is full"},
		{"upload full", func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = 1e6, 1e6 }, "its upload is used up"},
		{"upload nearly full", func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = 1e6, 0.9e6 }, ""},
		{"busy: it ranks lower and is offered, for a busy moment must not empty a fleet", func(b *registry.Box) { b.System.CPUIdle, b.System.Load1, b.System.CPUCount = 0, 20, 4 }, ""},
	} {
		got := WhyNot(candidate(1, test.change), now)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestWhyNotFor(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		publisher, box string
		offered        bool
	}{
		{"203.0.113.1", "198.51.100.1", true},
		{"203.0.113.1", "192.168.1.1", false},
		{"203.0.113.1", "127.0.0.1", false},
		{"192.168.1.2", "192.168.1.1", true},
		{"192.168.1.2", "198.51.100.1", true},
		{"192.168.1.2", "127.0.0.1", false},
		{"127.0.0.1", "127.0.0.1", true},
		{"127.0.0.1", "192.168.1.1", true},
		{"2001:db8::1", "192.168.1.1", false},
		{"169.254.1.1", "198.51.100.1", false},
	} {
		b := candidate(1, func(b *registry.Box) { b.Address = netip.MustParseAddr(test.box) })
		why := WhyNotFor(b, Publisher{Addr: netip.MustParseAddr(test.publisher)}, now)
		if (why == "") != test.offered {
			t.Errorf("%s to %s: %q", test.publisher, test.box, why)
		}
		if got := offered(b, netaddr.ScopeOf(netip.MustParseAddr(test.publisher)), now); got != test.offered {
			t.Errorf("%s to %s: offered %v", test.publisher, test.box, got)
		}
	}
}

// TestRank: what makes a box better, all else alike.
func TestRank(t *testing.T) {
	t.Parallel()
	upload := func(capacity, up float64) func(*registry.Box) {
		return func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = capacity, up }
	}
	at := func(loc string) func(*registry.Box) {
		return func(b *registry.Box) { b.GeoIP = wire.GeoIP{Loc: loc} }
	}
	idle := func(v float64) func(*registry.Box) {
		return func(b *registry.Box) { b.System.CPUIdle = v }
	}
	storage := func(limit, used float64) func(*registry.Box) {
		return func(b *registry.Box) {
			b.System.StorageLimit, b.System.StorageUsed, b.System.StorageFree = limit, used, 1e12
		}
	}
	since := func(d time.Duration) func(*registry.Box) {
		return func(b *registry.Box) { b.FirstSeen = now.Add(-d) }
	}
	for _, test := range []struct {
		name  string
		order []func(*registry.Box) // the best first
	}{
		{"free upload", []func(*registry.Box){upload(10e6, 0), upload(5e6, 0), nil, upload(5e6, 4.5e6)}},
		{"distance", []func(*registry.Box){at("52.5,13.4"), at("48.8,2.3"), nil, at("-33.8,151.2")}},
		{"CPU", []func(*registry.Box){idle(100), idle(60), nil, idle(0)}},
		{"storage", []func(*registry.Box){storage(8e9, 0), nil, storage(8e9, 8e9)}},
		{"time up", []func(*registry.Box){since(100 * time.Hour), since(time.Hour), since(0)}},
		{"upload before distance", []func(*registry.Box){
			func(b *registry.Box) { upload(50e6, 0)(b); at("48.8,2.3")(b) },
			func(b *registry.Box) { upload(1e6, 0)(b); at("52.5,13.4")(b) },
		}},
	} {
		var boxes []*registry.Box
		for i, change := range test.order {
			boxes = append([]*registry.Box{candidate(i, change)}, boxes...)
		}
		ranked := rank(boxes, publisher, now)
		for i := range test.order {
			if want := candidate(i, nil).ID; ranked[i].ID != want {
				t.Errorf("%s: place %d is taken by another box", test.name, i)
			}
		}
	}
}

// TestUnknownIsNeitherBestNorWorst whatever the others are like.
func TestUnknownIsNeitherBestNorWorst(t *testing.T) {
	t.Parallel()
	for _, uploads := range [][2]float64{{1e3, 2e3}, {1e6, 2e6}, {1e9, 2e9}} {
		boxes := []*registry.Box{candidate(0, nil)}
		for i, capacity := range uploads {
			boxes = append(boxes, candidate(i+1, func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = capacity, 0 }))
		}
		if ranked := rank(boxes, publisher, now); ranked[1].ID != boxes[0].ID {
			t.Errorf("uploads of %v: the unknown one is not in the middle", uploads)
		}
	}
}

// TestNoNumberBreaksTheOrder: boxes say what they like.
func TestNoNumberBreaksTheOrder(t *testing.T) {
	t.Parallel()
	for _, v := range []float64{0, math.SmallestNonzeroFloat64, 1, math.MaxFloat64, math.NaN()} {
		b := candidate(1, func(b *registry.Box) {
			b.System.NetCapacity, b.System.NetUp, b.System.CPUIdle, b.System.StorageLimit, b.System.StorageUsed = v, v/2, v, v, v/2
			b.FirstSeen = now.Add(time.Hour) // its clock is not ours
		})
		for f, value := range measure(b, publisher, now) {
			if value < 0 || value > 1 {
				t.Errorf("%v: factor %d is %v", v, f, value)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	crowd := func(n, from int, change func(*registry.Box)) (list []*registry.Box) {
		for i := range n {
			list = append(list, candidate(from+i, change))
		}
		return list
	}
	household := func(b *registry.Box) { b.Address = netip.MustParseAddr("198.51.99.7") }
	strong := func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = 100e6, 0 }
	weak := func(b *registry.Box) { b.System.NetCapacity, b.System.NetUp = 1e5, 0 }
	fresh := func(b *registry.Box) { weak(b); b.FirstSeen = now.Add(-time.Minute) }
	both := func(a, b func(*registry.Box)) func(*registry.Box) {
		return func(box *registry.Box) { a(box); b(box) }
	}
	isFresh := func(b *registry.Box) bool { return now.Sub(b.FirstSeen) < newFor }
	ofHousehold := func(b *registry.Box) bool { return b.Address.String() == "198.51.99.7" }
	unreachable := func(b *registry.Box) { strong(b); b.Reach = registry.Reach{State: registry.ReachNo, Reason: "x"} }

	for _, test := range []struct {
		name  string
		boxes []*registry.Box
		count int
		want  int
		of    func(*registry.Box) bool // nil: none is counted
		num   int
	}{
		{"none", nil, 20, 0, nil, 0},
		{"fewer than asked for", crowd(3, 0, nil), 20, 3, nil, 0},
		{"more than asked for", crowd(30, 0, nil), 20, 20, nil, 0},
		{"unreachable ones are left out", append(crowd(5, 0, nil), crowd(5, 10, unreachable)...), 20, 5, nil, 0},
		{"new boxes get a tenth", append(crowd(30, 0, strong), crowd(30, 40, fresh)...), 20, 20, isFresh, 2},
		{"new boxes get at least one", append(crowd(30, 0, strong), crowd(30, 40, fresh)...), 5, 5, isFresh, 1},
		{"not of a few", append(crowd(30, 0, strong), crowd(30, 40, fresh)...), 3, 3, isFresh, 0},
		{"new boxes alone get all", crowd(30, 0, fresh), 20, 20, isFresh, 20},
		{"no place stays empty for new ones", crowd(20, 0, strong), 20, 20, isFresh, 0},
		{"two of a household", append(crowd(30, 0, both(strong, household)), crowd(30, 40, weak)...), 20, 20, ofHousehold, 2},
		{"all of a household, when there are no others", crowd(30, 0, household), 20, 20, ofHousehold, 20},
		{"more of a household, when there are few others", append(crowd(30, 0, household), crowd(5, 40, nil)...), 20, 20, ofHousehold, 15},
		{"new ones of a household", append(crowd(30, 0, strong), crowd(30, 40, both(fresh, household))...), 40, 40, ofHousehold, 10},
	} {
		chosen := Choose(test.boxes, publisher, test.count, now, half)
		seen := map[id.BoxID]bool{}
		num := 0
		for _, b := range chosen {
			if seen[b.ID] {
				t.Errorf("%s: a box twice", test.name)
			}
			seen[b.ID] = true
			if WhyNotFor(b, publisher, now) != "" {
				t.Errorf("%s: a box that is not to be offered", test.name)
			}
			if test.of != nil && test.of(b) {
				num++
			}
		}
		if len(chosen) != test.want || num != test.num {
			t.Errorf("%s: %d boxes, %d of the counted ones; want %d and %d", test.name, len(chosen), num, test.want, test.num)
		}
	}
}

// TestNewBoxesTakeTurns: chance decides which of them are tried.
func TestNewBoxesTakeTurns(t *testing.T) {
	t.Parallel()
	var boxes []*registry.Box
	for i := range 40 {
		boxes = append(boxes, candidate(i, func(b *registry.Box) {
			if i >= 20 {
				b.FirstSeen = now
			} else {
				b.System.NetCapacity, b.System.NetUp = 100e6, 0
			}
		}))
	}
	tried := map[id.BoxID]bool{}
	chance := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		for _, b := range Choose(boxes, publisher, 20, now, chance.Float64) {
			if now.Sub(b.FirstSeen) < newFor {
				tried[b.ID] = true
			}
		}
	}
	if len(tried) < 20 {
		t.Errorf("only %d of 20 new boxes were ever offered", len(tried))
	}
}

// TestHouseholdsOfTheTable keeps the table honest: candidates are of different households.
func TestHouseholdsOfTheTable(t *testing.T) {
	t.Parallel()
	if netaddr.Household(candidate(1, nil).Address) == netaddr.Household(candidate(2, nil).Address) {
		t.Error("two candidates share a household")
	}
}

func BenchmarkChoose10000(b *testing.B) {
	var boxes []*registry.Box
	for i := range 10_000 {
		boxes = append(boxes, candidate(i, func(b *registry.Box) {
			b.Address = netip.AddrFrom4([4]byte{198, byte(51 + i>>16), byte(i >> 8), byte(i)})
			b.System.NetCapacity, b.System.NetUp = float64(1+i)*1e4, 0
			b.GeoIP.Loc = fmt.Sprintf("%d,%d", i%90, i%180)
		}))
	}
	for b.Loop() {
		if n := len(Choose(boxes, publisher, 20, now, half)); n != 20 {
			b.Fatal(n)
		}
	}
}
