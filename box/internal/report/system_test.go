package report

import (
	"log/slog"
	"math"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/wire"
)

func newCollector(t testing.TB) *collector {
	return &collector{
		dataDir: t.TempDir(), log: slog.New(slog.DiscardHandler), minAge: time.Second,
		usage: func() segstore.Usage { return segstore.Usage{} },
	}
}

func TestSample(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	lo := netip.MustParseAddr("127.0.0.1")
	start := time.Now()
	first, fresh := c.sample(lo, start)
	if !fresh || !math.IsNaN(first.CPUIdle) || !math.IsNaN(first.NetUp) {
		t.Errorf("percentages and rates of no time at all: %+v", first)
	}
	if again, fresh := c.sample(lo, start.Add(c.minAge/2)); fresh || again != first && again.MemTotal != first.MemTotal {
		t.Error("a second one at once is not the first one")
	}
	const sent = 3 << 20
	throughLoopback(t, sent)
	burn()
	s, fresh := c.sample(lo, start.Add(2*time.Second))
	if !fresh {
		t.Fatal("not a new one")
	}
	if sum := s.CPUUser + s.CPUSystem + s.CPUNice + s.CPUIdle + s.CPUIOWait + s.CPUIRQ + s.CPUSoftIRQ; sum < 50 || sum > 100.5 {
		t.Errorf("percentages sum up to %v: %+v", sum, s)
	}
	if s.NetUp < sent/2 || s.NetDown < sent/2 {
		t.Errorf("%d bytes in 2 s are %v up and %v down", sent, s.NetUp, s.NetDown)
	}
	for name, v := range map[string]float64{"count": s.CPUCount, "memory": s.MemTotal, "available": s.MemAvailable, "disk": s.DiskTotal} {
		if !(v > 0) {
			t.Errorf("%s is %v", name, v)
		}
	}
	if s.MemTotal != first.MemTotal || s.CPUMHz != first.CPUMHz && !math.IsNaN(s.CPUMHz) {
		t.Error("what does not change changed")
	}
}

// burn lets the kernel's clock ticks go on, of which CPU times are made.
func burn() {
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
	}
}

func throughLoopback(t *testing.T, n int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		conn, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			_, _ = conn.Write(make([]byte, n))
			conn.Close()
		}
	}()
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

// TestReportIsCheap: a report takes at most 5 ms of CPU (docs/performance.md).
func TestReportIsCheap(t *testing.T) {
	t.Parallel()
	s := newService(t, slog.New(slog.DiscardHandler), nil)
	s.collector.minAge = 0
	l := &link{s: s}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s.exchange(l) // reads what is read once
	const reports = 50
	before := threadTime(t)
	for range reports {
		wire.Encode(s.exchange(l))
	}
	each := (threadTime(t) - before) / reports
	if each > 5*time.Millisecond {
		t.Errorf("%v of CPU for each report", each)
	}
	t.Logf("%v of CPU for each report", each)
}

func threadTime(t *testing.T) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &ru); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func TestInterfaceOf(t *testing.T) {
	t.Parallel()
	for _, a := range []string{"127.0.0.1", "127.0.0.7"} {
		if got := interfaceOf(netip.MustParseAddr(a)); got != (nic{"lo", true}) {
			t.Errorf("%s is on %v", a, got)
		}
	}
	routes := `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
wlan0	00000000	0101A8C0	0003	0	0	600	00000000	0	0	0
eth0	00000000	0100A8C0	0003	0	0	100	00000000	0	0	0
tun0	00000000	00000000	0001	0	0	0	00000080	0	0	0
eth0	0000A8C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
`
	if got := defaultRoute([]byte(routes)); got != "eth0" {
		t.Errorf("default route through %q", got)
	}
	for _, none := range []string{"", "x", "eth0 00000000"} {
		if got := defaultRoute([]byte(none)); got != "" {
			t.Errorf("%q: %q", none, got)
		}
	}
}

// TestOtherUpload: the rest of the household sends what the box does not, smoothed; loopback says nothing.
func TestOtherUpload(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	var sent int64
	c.sent = func() int64 { return sent }
	lo := netip.MustParseAddr("127.0.0.1")
	now := time.Now()
	c.otherUpload(lo, now)
	throughLoopback(t, 1<<20)
	if got := c.otherUpload(lo, now.Add(time.Second)); got != 0 {
		t.Errorf("%d bytes/s on loopback", got)
	}
	// The same interface, were it none of this machine alone. What other tests send comes on top.
	c.nic.loopback = false
	now = now.Add(2 * time.Second)
	c.otherUpload(lo, now)
	throughLoopback(t, 30<<20)
	now = now.Add(10 * time.Second)
	high := c.otherUpload(lo, now)
	if high < 2<<20 {
		t.Errorf("30 MiB in 10 s are %d bytes/s", high)
	}
	throughLoopback(t, 30<<20)
	if again := c.otherUpload(lo, now.Add(otherAge-1)); again != high {
		t.Errorf("%d and %d at once", high, again)
	}
	sent = 1 << 40 // all was the box's own
	if got := c.otherUpload(lo, now.Add(20*time.Second)); got != 0 {
		t.Errorf("%d bytes/s where the box sent all", got)
	}
}

// TestNetCapacity: it is reported where it is known; on loopback only what the box sends is its upload.
func TestNetCapacity(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	var capacity, sent int64
	c.capacity, c.sent = func() int64 { return capacity }, func() int64 { return sent }
	lo := netip.MustParseAddr("127.0.0.1")
	start := time.Now()
	if sys, _ := c.sample(lo, start); !math.IsNaN(sys.NetCapacity) {
		t.Errorf("capacity %v, not known", sys.NetCapacity)
	}
	capacity, sent = 2_500_000, 4_000_000
	throughLoopback(t, 10<<20)
	if sys, _ := c.sample(lo, start.Add(4*time.Second)); sys.NetCapacity != 2_500_000 || sys.NetUp != 1_000_000 {
		t.Errorf("capacity %v, upload %v", sys.NetCapacity, sys.NetUp)
	}
}

// BenchmarkOtherUpload: it may be asked for every second on the smallest device.
func BenchmarkOtherUpload(b *testing.B) {
	c := newCollector(b)
	now := time.Now()
	for b.Loop() {
		now = now.Add(time.Second)
		c.otherUpload(netip.MustParseAddr("127.0.0.1"), now)
	}
}
