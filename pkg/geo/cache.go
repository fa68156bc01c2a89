package geo

import (
	"net/netip"
	"sync"

	"dandelion/pkg/wire"
)

// Cache remembers the places of the addresses that were asked for lately, at most 65,536 of them and as
// many before, until a database is read again. Any goroutine may use it.
type Cache struct {
	db *DB

	mu       sync.Mutex
	now, old generation
	loaded   uint64
}

// generation is what was asked for since the one before was full.
type generation struct {
	addrs  map[netip.Addr]*Place // nil: nowhere
	places map[wire.GeoIP]*Place // without IP: many addresses share one
}

const mostCached = 1 << 16 // addresses of one generation

// NewCache returns a cache before db, which may be nil: then nothing is known of any address.
func NewCache(db *DB) *Cache { return &Cache{db: db, now: newGeneration()} }

func newGeneration() generation {
	return generation{map[netip.Addr]*Place{}, map[wire.GeoIP]*Place{}}
}

// Place returns where an address is; nil: unknown. It is the same pointer for as long as it is remembered.
func (c *Cache) Place(addr netip.Addr) *Place {
	if c == nil || c.db == nil || !addr.IsValid() {
		return nil
	}
	addr, loaded := addr.Unmap().WithZone(""), c.db.Loaded()
	c.mu.Lock()
	defer c.mu.Unlock()
	if loaded != c.loaded {
		c.now, c.old, c.loaded = newGeneration(), generation{}, loaded
	}
	p, ok := c.now.addrs[addr]
	if ok {
		return p
	}
	if p, ok = c.old.addrs[addr]; !ok {
		p = c.find(addr)
	}
	if len(c.now.addrs) >= mostCached {
		c.old, c.now = c.now, newGeneration()
	}
	c.now.addrs[addr] = p
	return p
}

// find looks an address up. c.mu is held: a lookup takes some microseconds.
func (c *Cache) find(addr netip.Addr) *Place {
	found, ok := c.db.Lookup(addr)
	if !ok {
		return nil
	}
	found.IP = ""
	p := c.now.places[found]
	if p == nil {
		p = PlaceOf(found)
		c.now.places[found] = p
	}
	return p
}
