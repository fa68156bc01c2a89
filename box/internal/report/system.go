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
	dataDir string
	usage   func() segstore.Usage
	log     *slog.Logger
	minAge  time.Duration // a sample younger than this is used again

	mu      sync.Mutex
	last    wire.System
	at      time.Time
	mhz     float64 // read once: some kernels take long for it, and it says little
	count   float64
	cpu     cpu.TimesStat
	hasCPU  bool
	nic     string
	nicOf   netip.Addr // whose address made the choice of nic
	traffic psnet.IOCountersStat
	hasNet  bool
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

func (c *collector) readNet(sys *wire.System, local netip.Addr, passed time.Duration) {
	if c.nic == "" || local.IsValid() && local != c.nicOf {
		nic := interfaceOf(local)
		if nic != c.nic {
			c.nic, c.hasNet = nic, false
		}
		c.nicOf = local
	}
	if c.nic == "" {
		return
	}
	all, err := psnet.IOCounters(true)
	if c.failed("network traffic", err) {
		return
	}
	for _, now := range all {
		if now.Name != c.nic {
			continue
		}
		was := c.traffic
		// A counter that fell was reset, or is one of 32 bits that began anew.
		if seconds := passed.Seconds(); c.hasNet && seconds > 0 && now.BytesSent >= was.BytesSent && now.BytesRecv >= was.BytesRecv {
			sys.NetUp = float64(now.BytesSent-was.BytesSent) / seconds
			sys.NetDown = float64(now.BytesRecv-was.BytesRecv) / seconds
		}
		c.traffic, c.hasNet = now, true
		return
	}
	c.nic, c.hasNet = "", false // gone: choose again next time
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
