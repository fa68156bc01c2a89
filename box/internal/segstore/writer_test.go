package segstore

import (
	"bytes"
	"io"
	"os"
	"testing"
	"testing/iotest"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.LiveLimit, cfg.StorageLimit = 1<<20, 2<<20
	s := open(t, cfg)
	mustPut(t, s, pubA, "/dir/file", time.Hour, content(1, 10))
	mustPut(t, s, pubA, "/live/file", time.Minute, content(1, 10))
	five := []byte("12345")
	tests := []struct {
		name string
		meta Meta
		send []byte
		want wire.Kind
	}{
		{"negative TTL", Meta{Path: "/x", TTL: -1, Size: 5}, five, wire.KindTTL},
		{"too short", Meta{Path: "/x", Size: 6}, five, wire.KindSize},
		{"too long", Meta{Path: "/x", Size: 4}, five, wire.KindSize},
		{"other bytes", Meta{Path: "/x", Size: 5, Digest: id.DigestOf([]byte("other"))}, five, wire.KindDigest},
		{"larger than all", Meta{Path: "/x", Size: 3 << 20}, nil, wire.KindTooLarge},
		{"live, larger than all", Meta{Path: "/x", TTL: time.Minute, Size: 3 << 20}, nil, wire.KindTooLarge},
		{"through a file", Meta{Path: "/dir/file/x", Size: 5}, five, wire.KindPath},
		{"over a directory", Meta{Path: "/dir", Size: 5}, five, wire.KindPath},
		{"over a live directory", Meta{Path: "/live", TTL: time.Minute, Size: 5}, five, wire.KindPath},
		{"no room beside files with a TTL", Meta{Path: "/x", Size: 2 << 20}, nil, wire.KindFull},
		{"larger than the rest, unannounced", Meta{Path: "/x", TTL: 2 * time.Hour, Size: -1}, content(1, 3<<20), wire.KindFull},
	}
	for _, tt := range tests {
		tt.meta.Publisher = pubA
		w, err := s.Create(tt.meta)
		if err == nil {
			_, err = w.ReadFrom(bytes.NewReader(tt.send))
		}
		if err == nil {
			_, err = w.Commit()
		}
		if w != nil {
			w.Cancel()
			w.Cancel()
		}
		if got := kindOf(err); got != tt.want {
			t.Errorf("%s: refused as %q (%v), want %q", tt.name, got, err, tt.want)
		}
	}
	if got := checkDisk(t, s); len(got) != 2 || s.Usage().Data.Evicted != 0 {
		t.Errorf("refusals left or took files: %v", got)
	}
}

// A source that breaks is not a source that ends.
func TestReadFromErrors(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	for _, size := range []int{0, 10, copyBuffer - 1, copyBuffer, copyBuffer + 1, 3*copyBuffer + 7} {
		b := content(size, size)
		for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, os.ErrDeadlineExceeded} {
			w, err := s.Create(Meta{Publisher: pubA, Path: "/a", Size: -1})
			if err != nil {
				t.Fatal(err)
			}
			n, err := w.ReadFrom(iotest.HalfReader(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(end))))
			if n != int64(size) || err != end && (err != nil || end != io.EOF) {
				t.Errorf("%d bytes, then %v: ReadFrom said %d, %v", size, end, n, err)
			}
			if end == io.EOF {
				if e, err := w.Commit(); err != nil || e.Digest != id.DigestOf(b) {
					t.Errorf("%d bytes: %v, digest %s", size, err, e.Digest)
				}
			}
			w.Cancel()
		}
		if !bytes.Equal(get(t, s, pubA, "/a"), b) {
			t.Errorf("%d bytes: others stored", size)
		}
	}
	checkDisk(t, s)
}

func TestPathThroughFileFoundAtCommit(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	w, err := s.Create(Meta{Publisher: pubA, Path: "/a/b", Size: 1})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("x"))
	mustPut(t, s, pubA, "/a", 0, []byte("y")) // after Create looked
	if _, err := w.Commit(); kindOf(err) != wire.KindPath {
		t.Errorf("Commit: %v, want kind path", err)
	}
	if !bytes.Equal(get(t, s, pubA, "/a"), []byte("y")) || len(checkDisk(t, s)) != 1 {
		t.Error("the refused file damaged the other")
	}
}
