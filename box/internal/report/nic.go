package report

import (
	"bufio"
	"bytes"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"dandelion/pkg/netaddr"
)

// nic is a network interface.
type nic struct {
	name     string // "": none
	loopback bool
}

// interfaceOf returns the network interface that has the address, or else the one that the default
// route leads through; none where there is neither.
func interfaceOf(local netip.Addr) nic {
	if local.IsValid() {
		all, err := net.Interfaces()
		if err != nil {
			all = nil
		}
		for _, i := range all {
			found := nic{name: i.Name, loopback: i.Flags&net.FlagLoopback != 0}
			addrs, err := i.Addrs()
			if err != nil {
				continue
			}
			for _, a := range addrs {
				if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == local.Unmap().WithZone("") {
					return found
				}
			}
			if netaddr.ScopeOf(local) == netaddr.Loopback && found.loopback {
				return found // 127.0.0.7 is on it too, though no interface lists it
			}
		}
	}
	if routes, err := os.ReadFile("/proc/net/route"); err == nil {
		return nic{name: defaultRoute(routes)}
	}
	return nic{}
}

// defaultRoute finds the interface of the default route with the lowest metric in
// /proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric Mask …, numbers in hex but
// the metric.
func defaultRoute(routes []byte) (nic string) {
	best := -1
	lines := bufio.NewScanner(bytes.NewReader(routes))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 8 || f[1] != "00000000" || f[7] != "00000000" {
			continue
		}
		metric, err := strconv.Atoi(f[6])
		if err != nil {
			continue
		}
		if best < 0 || metric < best {
			nic, best = f[0], metric
		}
	}
	return nic
}
