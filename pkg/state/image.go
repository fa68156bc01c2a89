package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// An image is the content of a snapshot:
//
//	magic, varint time of the embedded clock, varint time of the system's clock (ms since 1970),
//	records, kindEnd, uvarint number of records, CRC-32C of all before it (4 bytes, little endian)
//
// and a record
//
//	kind, uvarint database, text key, varint expiry (ms since 1970 on the embedded clock, 0 none),
//	uvarint number of elements, elements
//
// where text is a uvarint length and bytes. Elements: a string's value; a hash's field and value;
// a list's or set's text; a sorted set's score (8 bytes, IEEE 754, little endian) and text.
const imageMagic = "dandelion state 1\n"

type kind byte

const (
	kindEnd       kind = 0
	kindString    kind = 's'
	kindHash      kind = 'h'
	kindList      kind = 'l'
	kindSet       kind = 'e'
	kindSortedSet kind = 'z'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type imageWriter struct {
	buf     []byte
	start   int
	records uint64
}

func newImageWriter(buf []byte, now, wall time.Time) *imageWriter {
	w := &imageWriter{buf: buf, start: len(buf)}
	w.buf = append(w.buf, imageMagic...)
	w.buf = binary.AppendVarint(w.buf, now.UnixMilli())
	w.buf = binary.AppendVarint(w.buf, wall.UnixMilli())
	return w
}

func (w *imageWriter) key(k kind, db int, key string, expires time.Time, elements int) {
	w.records++
	w.buf = append(w.buf, byte(k))
	w.buf = binary.AppendUvarint(w.buf, uint64(db))
	w.text(key)
	var ms int64
	if !expires.IsZero() {
		ms = expires.UnixMilli()
	}
	w.buf = binary.AppendVarint(w.buf, ms)
	w.buf = binary.AppendUvarint(w.buf, uint64(elements))
}

func (w *imageWriter) text(s string) {
	w.buf = binary.AppendUvarint(w.buf, uint64(len(s)))
	w.buf = append(w.buf, s...)
}

func (w *imageWriter) score(f float64) {
	w.buf = binary.LittleEndian.AppendUint64(w.buf, math.Float64bits(f))
}

func (w *imageWriter) finish() []byte {
	w.buf = append(w.buf, byte(kindEnd))
	w.buf = binary.AppendUvarint(w.buf, w.records)
	return binary.LittleEndian.AppendUint32(w.buf, crc32.Checksum(w.buf[w.start:], castagnoli))
}

// image is a snapshot that was read.
type image struct {
	now, wall time.Time // of the embedded and the system's clock when it was taken
	records   []record
}

type record struct {
	kind     kind
	db       int
	key      string
	expires  time.Time // zero: never
	elements []string  // a hash's fields and values in turn
	scores   []float64 // of a sorted set's elements
}

var errShort = errors.New("it ends too early")

// readImage reads a whole image. It never uses more than a few times the memory of data.
func readImage(data []byte) (*image, error) {
	if len(data) < len(imageMagic)+4 || string(data[:len(imageMagic)]) != imageMagic {
		return nil, errors.New("it does not begin like a snapshot")
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, errors.New("its checksum is wrong")
	}
	r := imageReader{data: body[len(imageMagic):]}
	img := &image{now: r.time(), wall: r.time()}
	for r.err == nil {
		k := kind(r.byte())
		if k == kindEnd {
			break
		}
		img.records = append(img.records, r.record(k))
	}
	if n := r.uvarint(); r.err == nil && (n != uint64(len(img.records)) || len(r.data) > 0) {
		r.err = errors.New("its number of records is wrong")
	}
	if r.err != nil {
		return nil, r.err
	}
	return img, nil
}

type imageReader struct {
	data []byte
	err  error
}

func (r *imageReader) record(k kind) record {
	rec := record{kind: k, db: int(min(r.uvarint(), math.MaxInt32)), key: r.text()}
	if ms := r.varint(); ms != 0 {
		rec.expires = time.UnixMilli(ms).UTC()
	}
	n := r.uvarint()
	if n > uint64(len(r.data)) { // each element has at least its length
		r.fail(errShort)
		return rec
	}
	switch k {
	case kindString:
		if n != 1 {
			r.fail(errors.New("a string has not one value"))
			return rec
		}
	case kindHash:
		n *= 2
	case kindList, kindSet, kindSortedSet:
	default:
		r.fail(fmt.Errorf("it has a record of the unknown kind %q", byte(k)))
		return rec
	}
	for ; n > 0 && r.err == nil; n-- {
		if k == kindSortedSet {
			rec.scores = append(rec.scores, math.Float64frombits(binary.LittleEndian.Uint64(r.bytes(8))))
		}
		rec.elements = append(rec.elements, r.text())
	}
	return rec
}

func (r *imageReader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// bytes returns the next n bytes, or as many zeros when there are no more and n is small.
func (r *imageReader) bytes(n uint64) []byte {
	if r.err != nil || n > uint64(len(r.data)) {
		r.fail(errShort)
		return make([]byte, min(n, 8))
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *imageReader) byte() byte   { return r.bytes(1)[0] }
func (r *imageReader) text() string { return string(r.bytes(r.uvarint())) }

func (r *imageReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *imageReader) varint() int64 {
	v, n := binary.Varint(r.data)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *imageReader) time() time.Time { return time.UnixMilli(r.varint()).UTC() }

// downtime is how long ago the image was taken: nothing, while one of the two clocks is
// obviously unset or the system's was set back.
func (img *image) downtime(wall time.Time) time.Duration {
	if !isSet(img.wall) || !isSet(wall) {
		return 0
	}
	return max(0, wall.Sub(img.wall))
}

// restore puts the image into an empty server and returns how many keys it has. Keys whose
// time ended while nothing ran are left out.
func (img *image) restore(server *miniredis.Miniredis, wall time.Time) (keys int, err error) {
	down := img.downtime(wall)
	for _, rec := range img.records {
		if len(rec.elements) == 0 {
			continue // no such key exists in Redis, and miniredis would fall over it
		}
		var ttl time.Duration
		if !rec.expires.IsZero() {
			if ttl = rec.expires.Sub(img.now) - down; ttl <= 0 {
				continue
			}
		}
		if err := rec.restore(server.DB(rec.db)); err != nil {
			return keys, fmt.Errorf("key %q cannot be restored: %w", rec.key, err)
		}
		if ttl > 0 {
			server.DB(rec.db).SetTTL(rec.key, ttl)
		}
		keys++
	}
	return keys, nil
}

func (rec *record) restore(db *miniredis.RedisDB) (err error) {
	switch rec.kind {
	case kindString:
		return db.Set(rec.key, rec.elements[0])
	case kindHash:
		db.HSet(rec.key, rec.elements...)
	case kindList:
		_, err = db.Push(rec.key, rec.elements...)
	case kindSet:
		_, err = db.SetAdd(rec.key, rec.elements...)
	case kindSortedSet:
		for i, member := range rec.elements {
			if _, err = db.ZAdd(rec.key, rec.scores[i], member); err != nil {
				return err
			}
		}
	}
	return err
}
