package geo

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/oschwald/geoip2-golang/v2"

	"dandelion/pkg/wire"
)

const mostBytes = 1 << 30 // of a file: the largest that are sold have half of that

// file is one database and its file.
type file struct {
	path   string
	now    atomic.Pointer[database]
	seen   os.FileInfo // of what was read last, or could not be read
	looked os.FileInfo // when it was looked at last
	said   string      // what is wrong, as it was logged last
}

// look reads the file again if it changed and is not being written.
func (f *file) look() (changed bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return false, err
	}
	still := same(info, f.looked)
	f.looked = info
	if same(info, f.seen) || !still {
		return false, nil
	}
	f.seen = info // a broken one is not read again until it changes
	d, info, err := load(f.path)
	if err != nil {
		return false, err
	}
	f.seen, f.looked = info, info
	f.now.Store(d)
	return true, nil
}

func same(a, b os.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// database is a file as it was read. It is in memory of its own, not mapped: whoever cuts a mapped file
// short ends the process. Nor is it on the Go heap, which would grow by a multiple of it.
type database struct {
	reader *geoip2.Reader
	lookup func(*geoip2.Reader, netip.Addr) (wire.GeoIP, error)
}

func load(path string) (*database, os.FileInfo, error) {
	d, info, err := read(path)
	if err != nil {
		return nil, nil, fmt.Errorf("GeoIP database %s: %w", path, err)
	}
	return d, info, nil
}

func read(path string) (*database, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, errors.Unwrap(err) // the caller names the file
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, nil, err
	case !info.Mode().IsRegular() || info.Size() == 0:
		return nil, nil, errors.New("it is empty or no file")
	case info.Size() > mostBytes:
		return nil, nil, fmt.Errorf("it has more than %d bytes: this is no GeoIP database", mostBytes)
	}
	memory, err := syscall.Mmap(-1, 0, int(info.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return nil, nil, fmt.Errorf("no memory for its %d bytes: %w", info.Size(), err)
	}
	d := &database{}
	runtime.AddCleanup(d, func(memory []byte) { _ = syscall.Munmap(memory) }, memory) // after the last lookup
	if _, err := io.ReadFull(f, memory); err != nil {
		return nil, nil, fmt.Errorf("it cannot be read whole: %w", err)
	}
	if err := d.open(memory); err != nil {
		return nil, nil, err
	}
	return d, info, nil
}

func (d *database) open(memory []byte) (err error) {
	defer runtime.KeepAlive(d)
	d.reader, err = geoip2.OpenBytes(memory)
	var unknown geoip2.UnknownDatabaseTypeError
	switch {
	case errors.As(err, &unknown):
		return unknownType(unknown.DatabaseType)
	case err != nil:
		return err
	}
	for _, d.lookup = range []func(*geoip2.Reader, netip.Addr) (wire.GeoIP, error){enterprise, city, organisation} {
		// Which methods a database has is told only by calling them.
		if _, err := d.lookup(d.reader, netip.IPv4Unspecified()); !errors.As(err, new(geoip2.InvalidMethodError)) {
			return nil
		}
	}
	return errNoPlaces
}

// find looks an address up.
func (d *database) find(addr netip.Addr) (wire.GeoIP, error) {
	defer runtime.KeepAlive(d) // and so its memory
	return d.lookup(d.reader, addr)
}

func enterprise(r *geoip2.Reader, addr netip.Addr) (wire.GeoIP, error) {
	record, err := r.Enterprise(addr)
	if err != nil {
		return wire.GeoIP{}, err
	}
	place := wire.GeoIP{
		Country: record.Country.ISOCode, City: record.City.Names.English, Loc: locOf(record.Location),
		Org: orgOf(record.Traits.AutonomousSystemNumber, record.Traits.AutonomousSystemOrganization),
	}
	if len(record.Subdivisions) > 0 {
		place.Region = record.Subdivisions[0].Names.English
	}
	return place, nil
}

// city reads City and Country databases.
func city(r *geoip2.Reader, addr netip.Addr) (wire.GeoIP, error) {
	record, err := r.City(addr)
	if err != nil {
		return wire.GeoIP{}, err
	}
	place := wire.GeoIP{Country: record.Country.ISOCode, City: record.City.Names.English, Loc: locOf(record.Location)}
	if len(record.Subdivisions) > 0 {
		place.Region = record.Subdivisions[0].Names.English
	}
	return place, nil
}

func organisation(r *geoip2.Reader, addr netip.Addr) (wire.GeoIP, error) {
	record, err := r.ASN(addr)
	if err != nil {
		return wire.GeoIP{}, err
	}
	return wire.GeoIP{Org: orgOf(record.AutonomousSystemNumber, record.AutonomousSystemOrganization)}, nil
}

func orgOf(number uint, name string) string {
	if number == 0 {
		return ""
	}
	return strings.TrimSpace("AS" + strconv.FormatUint(uint64(number), 10) + " " + name)
}

func locOf(l geoip2.Location) string {
	if !l.HasCoordinates() {
		return ""
	}
	return formatLoc(*l.Latitude, *l.Longitude)
}
