package state

import (
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"testing"
	"time"
)

func sampleImage() []byte {
	now := time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)
	w := newImageWriter(nil, now, now.Add(time.Second))
	w.key(kindString, 0, "s", now.Add(time.Hour), 1)
	w.text("value")
	w.key(kindHash, 3, "h", time.Time{}, 2)
	for _, s := range []string{"f", "v", "g", ""} {
		w.text(s)
	}
	w.key(kindSortedSet, 0, "z", time.Time{}, 1)
	w.score(1.5)
	w.text("m")
	w.key(kindList, 0, "l", time.Time{}, 2)
	w.text("a")
	w.text("b")
	w.key(kindSet, 0, "e", time.Time{}, 1)
	w.text("a")
	return w.finish()
}

// withChecksum makes body a file that passes the checksum, so that the fuzzer gets past it.
func withChecksum(body []byte) []byte {
	b := append([]byte(imageMagic), body...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func FuzzReadImage(f *testing.F) {
	sample := sampleImage()
	f.Add(sample[len(imageMagic) : len(sample)-4])
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0, 0, 'l', 0, 1, 'k', 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 'z', 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := readImage(body); err == nil && len(body) == 0 {
			t.Error("nothing is an image")
		}
		img, err := readImage(withChecksum(body))
		if err != nil {
			return
		}
		// What was read can be written and read again.
		w := newImageWriter(nil, img.now, img.wall)
		elements := 0
		for _, r := range img.records {
			n := len(r.elements)
			elements += n
			if r.kind == kindHash {
				n /= 2
			}
			w.key(r.kind, r.db, r.key, r.expires, n)
			for i, e := range r.elements {
				if r.kind == kindSortedSet {
					w.score(r.scores[i])
				}
				w.text(e)
			}
		}
		if elements > len(body) {
			t.Errorf("%d elements out of %d bytes", elements, len(body))
		}
		again, err := readImage(w.finish())
		if err != nil || len(again.records) != len(img.records) {
			t.Fatalf("read again: %v", err)
		}
		for i, r := range img.records {
			if r.scores == nil && !reflect.DeepEqual(again.records[i], r) { // NaN is not equal to itself
				t.Errorf("record %d: got %v, want %v", i, again.records[i], r)
			}
		}
	})
}

func TestEveryDamageIsSeen(t *testing.T) {
	t.Parallel()
	sample := sampleImage()
	if img, err := readImage(sample); err != nil || len(img.records) != 5 {
		t.Fatalf("the whole one: %v", err)
	}
	for i := range sample {
		if _, err := readImage(sample[:i]); err == nil {
			t.Errorf("cut to %d of %d bytes: no error", i, len(sample))
		}
		for bit := range 8 {
			sample[i] ^= 1 << bit
			if _, err := readImage(sample); err == nil {
				t.Errorf("bit %d of byte %d flipped: no error", bit, i)
			}
			sample[i] ^= 1 << bit
		}
	}
	if _, err := readImage(append(sample, 0)); err == nil {
		t.Error("a byte too many: no error")
	}
}
