// Package geo says where an address is, from GeoIP databases on disk, and how near two places
// are to each other. It must not know who asks, nor what nearness is good for.
package geo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

const lookEvery = 5 * time.Second // at the files of a database

// DB is one GeoIP database or several, whose answers are joined: City, Country, Enterprise, ISP or ASN
// ones in MaxMind's schema. A nil *DB is one that knows no address. Any goroutine may use it.
type DB struct {
	files  []*file
	log    *slog.Logger
	loaded atomic.Uint64 // files, since the start
	mu     sync.Mutex    // of Look
}

// Open reads the databases at these paths into memory, of which they take as much as the files; no
// paths are a nil DB. The error names the file, what is wrong with it and what would do.
func Open(paths []string, log *slog.Logger) (*DB, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	db := &DB{log: log}
	for _, path := range paths {
		d, info, err := load(path)
		if err != nil {
			return nil, err
		}
		f := &file{path: path, seen: info, looked: info}
		f.now.Store(d)
		db.files = append(db.files, f)
	}
	return db, nil
}

// Run takes in files that change, until ctx ends.
func (db *DB) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			db.Look()
		}
	}
}

// Look looks at the files, as Run does every 5 s. A file that was replaced or rewritten is read when two
// looks in a row find it the same, so that it is whole. One that is no database, or away, is named once
// in the log, and what was read before stays.
func (db *DB) Look() {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, f := range db.files {
		changed, err := f.look()
		switch {
		case err != nil && f.said != err.Error():
			f.said = err.Error()
			db.log.Warn("a GeoIP database cannot be read; what was read before is used", "file", f.path, "reason", err)
		case changed:
			f.said = ""
			db.loaded.Add(1)
			db.log.Info("a GeoIP database changed and was read again", "file", f.path)
		}
	}
}

// Loaded changes when a file was read again: what was looked up before may be out of date.
func (db *DB) Loaded() uint64 {
	if db == nil {
		return 0
	}
	return db.loaded.Load()
}

// Lookup returns what the databases know of a public address: COUNTRY as an ISO 3166-1 code,
// CITY and REGION in English, ORG as "AS<number> <name>", LOC as "lat,lon" in degrees. What they do
// not know is empty, and HOSTNAME always: it would be a question to the network. Where two databases say
// different things the first one counts. ok is false where nothing is known; other addresses than
// public ones are nowhere.
func (db *DB) Lookup(addr netip.Addr) (place wire.GeoIP, ok bool) {
	addr = addr.Unmap().WithZone("")
	if db == nil || netaddr.ScopeOf(addr) != netaddr.Public {
		return wire.GeoIP{}, false
	}
	for _, f := range db.files {
		// A record that cannot be read is worth no more than none.
		if found, err := f.now.Load().find(addr); err == nil {
			join(&place, found)
		}
	}
	if place == (wire.GeoIP{}) {
		return place, false
	}
	place.IP = addr.String()
	return place, true
}

// join adds what is not known yet, but no city of another country.
func join(place *wire.GeoIP, more wire.GeoIP) {
	if place.Org == "" {
		place.Org = more.Org
	}
	if place.Country != "" && more.Country != "" && place.Country != more.Country {
		return
	}
	for _, f := range []struct{ to, from *string }{
		{&place.Country, &more.Country},
		{&place.City, &more.City},
		{&place.Region, &more.Region},
		{&place.Loc, &more.Loc},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
}

// errNoPlaces is of a database that says other things than where addresses are.
var errNoPlaces = errors.New("it does not say where addresses are; want a City, Country or ASN database")

func unknownType(kind string) error {
	return fmt.Errorf("it is of type %q; want a City, Country or ASN database in MaxMind's schema (GeoLite2, GeoIP2, DB-IP lite, "+
		"or what `dandelion geoip fetch` makes)", kind)
}
