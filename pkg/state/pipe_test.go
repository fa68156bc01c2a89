package state

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestPipe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, b := newPipe()
		big := bytes.Repeat([]byte("0123456789"), 100_000)
		if n, err := a.Write(big); n != len(big) || err != nil { // nobody reads yet
			t.Errorf("Write: %d, %v", n, err)
		}
		got := make([]byte, len(big))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, big) {
			t.Errorf("Read: %v", err)
		}

		// A deadline ends a read that waits, and a later one lets the next wait again.
		start := time.Now()
		b.SetReadDeadline(start.Add(3 * time.Second))
		if _, err := b.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 3*time.Second {
			t.Errorf("Read with a deadline of 3 s: %v after %v", err, time.Since(start))
		}
		b.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Hour, func() { a.Write([]byte("late")) })
		if n, err := b.Read(got); string(got[:n]) != "late" || err != nil {
			t.Errorf("Read without a deadline: %q, %v", got[:n], err)
		}
		// A deadline that is set while a read waits counts for it.
		time.AfterFunc(time.Second, func() { b.SetReadDeadline(time.Now()) })
		if _, err := b.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Read whose deadline is moved: %v", err)
		}
		b.SetReadDeadline(time.Time{})

		// What was written before Close still arrives.
		a.Write([]byte("last"))
		a.Close()
		if all, err := io.ReadAll(b); string(all) != "last" || err != nil {
			t.Errorf("after Close: %q, %v", all, err)
		}
		if _, err := b.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Write to a closed pipe: %v", err)
		}
	})
}
