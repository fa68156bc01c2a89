package traffic

import (
	"fmt"
	"net/url"
	"path"
	"strings"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// entry is one delivery, or the sum of some that are alike. It is what stands in the journal.
type entry struct {
	Time    int64   `json:"t"` // unix seconds, of the latest
	URL     string  `json:"u"`
	Status  int     `json:"s"`
	Bytes   int64   `json:"b"`
	Count   int64   `json:"c"`
	Network network `json:"n,omitzero"`
}

// entryCost is what an entry takes in an EXCHANGE at most, its URL not counted.
const entryCost = 320

func (e *entry) cost() int { return entryCost + len(e.URL) }

// add puts another entry's deliveries into the sum.
func (e *entry) add(other *entry) {
	e.Time = max(e.Time, other.Time)
	e.Bytes += other.Bytes
	e.Count += other.Count
}

// key says which deliveries are summed up: those of one hour, because accounts are kept by hours.
type key struct {
	url     string
	status  int
	network network
	hour    int64
}

func keyOf(e *entry) key { return key{e.URL, e.Status, e.Network, e.Time / 3600} }

// Levels of sums, from the finest. A sum of one level is made when those of the levels before have used
// up their room.
const (
	byPath      = iota
	byRendition // URL /<publisher>/live/<stream>/<rendition>/; what is not live: /<publisher>/
	byStatus    // the same without the viewers' networks
	byPublisher // URL /<publisher>/
	levels
	// Last of all: URL / and the first digit of the status, whose sums are at most ten.
)

// Limits of what the deliveries of one second take in an EXCHANGE, in bytes: sums of each level are begun
// up to its limit.
var levelLimit = [levels]int{byPath: 48 << 10, byRendition: 56 << 10, byStatus: 60 << 10, byPublisher: 62 << 10}

// maxTable is what all entries of a table take at most.
const maxTable = 62<<10 + entryCost + wire.MaxField + 10*(entryCost+1)

// maxSingle is how many deliveries of one second have an entry of their own.
const maxSingle = 50

// maxURL is the longest URL that an entry has; what is longer is summed up.
const maxURL = wire.MaxField

// table is the deliveries that are not in the journal yet. What it takes is bounded by levelLimit, and its
// sums are exact whatever is put together.
type table struct {
	single   []entry
	sums     map[key]*entry
	cost     int
	count    int64  // deliveries
	bytes    int64  // of them
	position string // that they cover; "": none
}

func newTable() *table { return &table{sums: make(map[key]*entry)} }

// add takes deliveries, e.Count of them. It returns false where the URL is not one of a publisher's.
func (t *table) add(e entry) bool {
	k := keyOf(&e)
	if t.has(k, &e) { // as most that are above the rate
		return true
	}
	if publisherOf(e.URL) == "" {
		return false
	}
	t.begin(k, e)
	return true
}

// has adds e to the sum of its key where there is one.
func (t *table) has(k key, e *entry) bool {
	sum := t.sums[k]
	if sum == nil {
		return false
	}
	t.count, t.bytes = t.count+e.Count, t.bytes+e.Bytes
	sum.add(e)
	return true
}

// begin takes what no sum is there for.
func (t *table) begin(k key, e entry) {
	t.count, t.bytes = t.count+e.Count, t.bytes+e.Bytes
	if t.cost+e.cost() <= levelLimit[byPath] {
		exact := e
		exact.URL = printable(e.URL)
		if len(exact.URL) <= maxURL && len(t.single) < maxSingle {
			t.single = append(t.single, exact)
			t.cost += exact.cost()
			return
		}
		if len(exact.URL) <= maxURL && t.sum(k, exact, levelLimit[byPath]) {
			return
		}
	}
	for level := byRendition; level < levels; level++ {
		switch level {
		case byRendition:
			e.URL = renditionOf(e.URL)
		case byStatus:
			e.Network = 0
		case byPublisher:
			e.URL = publisherOf(e.URL)
		}
		if e.URL != "" && t.sum(keyOf(&e), e, levelLimit[level]) { // "": of many publishers already
			return
		}
	}
	e.URL, e.Status = "/", e.Status/100*100
	t.sum(key{url: e.URL, status: e.Status}, e, maxTable)
}

// sum adds e to the sum of a key, or begins it where that fits; false: it does not.
func (t *table) sum(k key, e entry, limit int) bool {
	if sum := t.sums[k]; sum != nil {
		sum.add(&e)
		return true
	}
	if t.cost+e.cost() > limit {
		return false
	}
	begun := e
	k.url, begun.URL = strings.Clone(k.url), strings.Clone(begun.URL) // they may be parts of a whole request
	t.sums[k] = &begun
	t.cost += e.cost()
	return true
}

// entries returns all of it.
func (t *table) entries() []entry {
	list := t.single
	for _, e := range t.sums {
		list = append(list, *e)
	}
	return list
}

// absorb takes back an earlier table, which could not be written.
func (t *table) absorb(earlier *table) {
	for _, e := range earlier.entries() {
		if k := keyOf(&e); !t.has(k, &e) {
			t.begin(k, e)
		}
	}
	if t.position == "" {
		t.position = earlier.position
	}
}

// publisherOf returns the /<publisher>/ that a URL begins with; "": none.
func publisherOf(url string) string {
	rest, ok := strings.CutPrefix(url, "/")
	if !ok {
		return ""
	}
	first, _, ok := strings.Cut(rest, "/")
	if !ok {
		return ""
	}
	if _, err := id.ParsePublisherID(first); err != nil {
		return ""
	}
	return url[:len(first)+2]
}

// usual writes a path as it usually is, where a viewer wrote it in another way that web servers understand;
// "": it is none.
func usual(escaped string) string {
	p, err := url.PathUnescape(escaped)
	if err != nil || !strings.HasPrefix(p, "/") {
		return ""
	}
	return (&url.URL{Path: path.Clean(p)}).EscapedPath()
}

// renditionOf returns /<publisher>/live/<stream>/<rendition>/ of a live file's URL, else
// /<publisher>/.
func renditionOf(url string) string {
	publisher := publisherOf(url)
	live, ok := strings.CutPrefix(url[len(publisher):], "live/")
	if !ok {
		return publisher
	}
	stream, rest, _ := strings.Cut(live, "/")
	rendition, _, ok := strings.Cut(rest, "/")
	_, errStream := id.ParseStreamName(stream)
	_, errRendition := id.ParseRenditionName(rendition)
	if !ok || errStream != nil || errRendition != nil {
		return publisher
	}
	return url[:len(publisher)+len("live/")+len(stream)+1+len(rendition)+1]
}

// printable returns a copy of the URL in which each byte that is not printable ASCII, or is a quote or a
// backslash, is escaped.
func printable(url string) string {
	if isPrintable(url) {
		return strings.Clone(url) // it may be a part of a whole request
	}
	var b strings.Builder
	for _, c := range []byte(url) {
		if plain(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isPrintable(url string) bool {
	for i := range len(url) {
		if !plain(url[i]) {
			return false
		}
	}
	return true
}

func plain(c byte) bool { return ' ' < c && c < 0x7f && c != '"' && c != '\\' }
