package report

import (
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/disk"
	"github.com/shirou/gopsutil/v3/load"
	"github.com/shirou/gopsutil/v3/mem"
	psnet "github.com/shirou/gopsutil/v3/net"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/wire"
)

const (
	megabyte = 1e6
	gigabyte = 1e9
)

// collector reads the system information. Rates and percentages are those of the time between
// two samples, so nothing here waits and nothing is started for it.
type collector struct {
	dataDir  string
	usage    func() segstore.Usage
	capacity func() int64 // as Config has them
	sent     func() int64
	log      *slog.Logger
	minAge   time.Duration // a sample younger than this is used again

	mu      sync.Mutex
	last    wire.System
	at      time.Time
	mhz     float64 // read once: some kernels take long for it, and it says little
	count   float64
	cpu     cpu.TimesStat
	hasCPU  bool
	nic     nic
	nicOf   netip.Addr  // whose address made the choice of nic
	traffic netCounters // at the last sample; without a NIC: none
	other   other
	said    map[string]bool // what could not be read, said once
}

// sample returns the system information at now; fresh is false where it is that of a moment ago,
// asked for by another entrance's session. local is the address that the sessions with entrances
// go out from: its interface is the one whose traffic counts. It never fails; what cannot be read
// is unknown.
func (c *collector) sample(local netip.Addr, now time.Time) (sys wire.System, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	passed := now.Sub(c.at)
	if !c.at.IsZero() && passed < c.minAge {
		return c.last, false
	}
	sys = wire.UnknownSystem()
	c.readCPU(&sys)
	c.readLoadAndMemory(&sys)
	c.readNet(&sys, local, passed)
	c.readStorage(&sys)
	c.last, c.at = sys, now
	return sys, true
}

// failed says once that something cannot be read here.
func (c *collector) failed(what string, err error) bool {
	if err == nil {
		return false
	}
	if !c.said[what] {
		if c.said == nil {
			c.said = make(map[string]bool)
		}
		c.said[what] = true
		c.log.Warn("system information cannot be read; reports go without it", "what", what, "error", err)
	}
	return true
}

func (c *collector) readCPU(sys *wire.System) {
	if c.count == 0 {
		c.count, c.mhz = math.NaN(), math.NaN()
		if n, err := cpu.Counts(true); !c.failed("CPU count", err) {
			c.count = float64(n)
		}
		if infos, err := cpu.Info(); !c.failed("CPU clock", err) && len(infos) > 0 && infos[0].Mhz > 0 {
			c.mhz = infos[0].Mhz
		}
	}
	sys.CPUCount, sys.CPUMHz = c.count, c.mhz
	all, err := cpu.Times(false)
	if c.failed("CPU times", err) || len(all) == 0 {
		return
	}
	now, was := all[0], c.cpu
	if c.hasCPU {
		total := busy(now) - busy(was) + now.Idle - was.Idle
		if total > 0 {
			percent := func(now, was float64) float64 { return max(0, min(100, (now-was)/total*100)) }
			sys.CPUUser, sys.CPUSystem = percent(now.User, was.User), percent(now.System, was.System)
			sys.CPUNice, sys.CPUIdle = percent(now.Nice, was.Nice), percent(now.Idle, was.Idle)
			sys.CPUIOWait = percent(now.Iowait, was.Iowait)
			sys.CPUIRQ, sys.CPUSoftIRQ = percent(now.Irq, was.Irq), percent(now.Softirq, was.Softirq)
		}
	}
	c.cpu, c.hasCPU = now, true
}

// busy leaves guests out: the kernel counts their time in User and Nice already.
func busy(t cpu.TimesStat) float64 {
	return t.User + t.System + t.Nice + t.Iowait + t.Irq + t.Softirq + t.Steal
}

func (c *collector) readLoadAndMemory(sys *wire.System) {
	if avg, err := load.Avg(); !c.failed("load", err) {
		sys.Load1, sys.Load5, sys.Load15 = avg.Load1, avg.Load5, avg.Load15
	}
	if m, err := mem.VirtualMemory(); !c.failed("memory", err) {
		sys.MemTotal, sys.MemAvailable = float64(m.Total)/megabyte, float64(m.Available)/megabyte
	}
}

// netCounters is what the counters say at one moment.
type netCounters struct {
	nic      nic
	up, down uint64 // bytes through it
	sent     int64  // bytes that the box sent
}

// choose makes the choice of the NIC for sessions that go out from local. c.mu is held.
func (c *collector) choose(local netip.Addr) {
	if c.nic.name == "" || local.IsValid() && local != c.nicOf {
		c.nic, c.nicOf = interfaceOf(local), local
	}
}

// readTraffic reads the counters of the NIC; without one they are of none. c.mu is held.
func (c *collector) readTraffic(local netip.Addr) (t netCounters) {
	c.choose(local)
	if c.nic.name == "" {
		return t
	}
	all, err := psnet.IOCounters(true)
	if c.failed("network traffic", err) {
		return t
	}
	if c.sent != nil {
		t.sent = c.sent()
	}
	for _, now := range all {
		if now.Name == c.nic.name {
			t.nic, t.up, t.down = c.nic, now.BytesSent, now.BytesRecv
			return t
		}
	}
	c.nic = nic{} // gone: choose again next time
	return t
}

// follows reports whether the counters went on from was. One that fell was reset, or is one of 32 bits that
// began anew.
func (t netCounters) follows(was netCounters) bool {
	return t.nic.name != "" && t.nic == was.nic && t.up >= was.up && t.down >= was.down
}

func (c *collector) readNet(sys *wire.System, local netip.Addr, passed time.Duration) {
	if c.capacity != nil {
		if capacity := c.capacity(); capacity > 0 {
			sys.NetCapacity = float64(capacity)
		}
	}
	now, was := c.readTraffic(local), c.traffic
	c.traffic = now
	seconds := passed.Seconds()
	if !now.follows(was) || seconds <= 0 {
		return
	}
	sys.NetUp = float64(now.up-was.up) / seconds
	sys.NetDown = float64(now.down-was.down) / seconds
	if now.nic.loopback && c.sent != nil {
		// What other programs say to each other on this machine takes nothing from the line.
		sys.NetUp = float64(max(0, now.sent-was.sent)) / seconds
	}
}

const (
	// headers is what packets take beyond the bytes that the box counts.
	headers = 1.03
	// otherAge is how old OtherUpload's answer may be.
	otherAge = 500 * time.Millisecond
	// otherSmooth is over which time it is taken: what the box counts as sent waits in the kernel for
	// a moment, and would look like the household's.
	otherSmooth = 3 * time.Second
)

// other is the upload of the rest of the household.
type other struct {
	at      time.Time
	traffic netCounters
	rate    float64 // bytes/s; below 0 while what the box counted has not left yet
}

// otherUpload is Service.OtherUpload at now.
func (c *collector) otherUpload(local netip.Addr, now time.Time) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	passed := now.Sub(c.other.at)
	if passed >= otherAge {
		was, t := c.other, c.readTraffic(local)
		c.other.at, c.other.traffic = now, t
		switch {
		case t.nic.name == "" || t.nic.loopback || t.nic != was.traffic.nic:
			c.other.rate = 0
		case t.follows(was.traffic):
			rate := (float64(t.up-was.traffic.up) - headers*float64(t.sent-was.traffic.sent)) / passed.Seconds()
			c.other.rate += (rate - was.rate) * (1 - math.Exp(-passed.Seconds()/otherSmooth.Seconds()))
		}
	}
	return int64(max(0, c.other.rate))
}

func (c *collector) readStorage(sys *wire.System) {
	if d, err := disk.Usage(c.dataDir); !c.failed("disk", err) {
		sys.DiskTotal, sys.DiskAvailable = float64(d.Total)/gigabyte, float64(d.Free)/gigabyte
	}
	u := c.usage()
	sys.StorageTotal, sys.StorageFree = float64(u.Data.DiskTotal), float64(u.Data.DiskFree)
	sys.StorageLimit = float64(u.Data.Limit + u.Live.Limit)
	sys.StorageUsed = float64(u.Data.Used + u.Live.Used)
}
