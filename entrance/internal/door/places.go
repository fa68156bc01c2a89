package door

import (
	"net/netip"
	"sync"
)

// places is a number of places, of which one public network can take only some.
type places struct {
	most, perNetwork int

	mu       sync.Mutex
	taken    int
	networks map[netip.Prefix]int
}

func (p *places) init(most, perNetwork int) {
	p.most, p.perNetwork, p.networks = most, perNetwork, make(map[netip.Prefix]int)
}

// enter takes a place for addr; false: there is none. The zero Addr is of no network.
func (p *places) enter(addr netip.Addr) bool {
	n, public := network(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.most || public && p.networks[n] >= p.perNetwork {
		return false
	}
	p.taken++
	if public {
		p.networks[n]++
	}
	return true
}

// leave gives back a place that enter gave to addr.
func (p *places) leave(addr netip.Addr) {
	n, public := network(addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if public {
		if p.networks[n]--; p.networks[n] == 0 {
			delete(p.networks, n)
		}
	}
}
