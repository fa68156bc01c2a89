package segstore

import (
	"bytes"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"dandelion/pkg/id"
)

func incoming(t *testing.T, s *Store, content []byte) *Writer {
	t.Helper()
	w, err := s.Create(Meta{Publisher: pubA, Path: "/a.ts", TTL: time.Minute, Size: int64(len(content)), Digest: id.DigestOf(content)})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestFollow: who follows gets all bytes while they arrive, but for the last one, which comes when the digest
// was found right.
func TestFollow(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	content := make([]byte, 600_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(content)
	w := incoming(t, s, content)
	f, err := w.Follow()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	arriving, sender := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := w.ReadFrom(arriving)
		ended <- err
	}()
	for from := 0; from < len(content); from += 100_000 {
		_, _ = sender.Write(content[from : from+100_000])
		got := make([]byte, 100_000)
		short := 1 // the last byte of all so far waits
		if from > 0 {
			short = 0
		}
		if _, err := io.ReadFull(f, got[:len(got)-short]); err != nil {
			t.Fatal(err)
		}
		want := content[max(from-1, 0) : from+99_999]
		if !bytes.Equal(got[:len(got)-short], want) {
			t.Fatalf("other bytes at %d", from)
		}
	}
	sender.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	last := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(f)
		last <- b
	}()
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if b := <-last; !bytes.Equal(b, content[len(content)-1:]) {
		t.Errorf("%d bytes at the end", len(b))
	}
}

// TestFollowNothingWhole: a file that is not stored never looks whole to who follows.
func TestFollowNothingWhole(t *testing.T) {
	t.Parallel()
	content := []byte("these are the bytes")
	for name, end := range map[string]func(*Writer){
		"cancelled":    func(w *Writer) { w.Cancel() },
		"wrong digest": func(w *Writer) { _, _ = w.Write(append([]byte("T"), content[1:]...)); _, _ = w.Commit() },
		"broken off":   func(w *Writer) { _, _ = w.ReadFrom(iotest.TimeoutReader(bytes.NewReader(content))); w.Cancel() },
	} {
		s := open(t, testConfig(t))
		w := incoming(t, s, content)
		f, err := w.Follow()
		if err != nil {
			t.Fatal(err)
		}
		end(w)
		if got, err := io.ReadAll(f); err == nil || len(got) >= len(content) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		f.Close()
	}
}

// TestFollowWhatIsHeld: of a file that the store has already who follows gets the bytes all the same.
func TestFollowWhatIsHeld(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	content := []byte("these are the bytes")
	for range 2 {
		w := incoming(t, s, content)
		f, err := w.Follow()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(content)
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%q, %v", got, err)
		}
		f.Close()
	}
}

// TestFollowerLetsGo: a Read that waits ends with Close.
func TestFollowerLetsGo(t *testing.T) {
	t.Parallel()
	s := open(t, testConfig(t))
	w := incoming(t, s, []byte("these are the bytes"))
	defer w.Cancel()
	f, err := w.Follow()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := f.Read(make([]byte, 10))
		ended <- err
	}()
	f.Close()
	if err := <-ended; err != os.ErrClosed {
		t.Error(err)
	}
}

// TestLastByteWaits: nobody has the whole file before its digest was found right.
func TestLastByteWaits(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	synctest.Test(t, func(t *testing.T) {
		s, err := Open(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		content := []byte("these are the bytes")
		w := incoming(t, s, content)
		f, err := w.Follow()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, _ = w.Write(content)
		whole := make(chan int, 1)
		go func() {
			n, _ := io.ReadFull(f, make([]byte, len(content)))
			whole <- n
		}()
		synctest.Wait()
		if len(whole) > 0 {
			t.Errorf("%d bytes before the commit", <-whole)
			return
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if n := <-whole; n != len(content) {
			t.Errorf("%d bytes after it", n)
		}
	})
}
