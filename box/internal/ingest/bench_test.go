package ingest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// BenchmarkPush pushes acknowledged files, one at a time, beside the same bytes over a bare TCP
// connection copied into a file and acknowledged with one byte; the two take turns. It reports
// push's throughput as a part of TCP's (target: 0.85 and more), and push's p99 as a multiple of
// TCP's (1.5 and less). best is the ratio of the two fastest, which a busy machine disturbs least.
// sha256 is how much faster than TCP hashing alone is: a push does both, on cores that it may not
// have.
func BenchmarkPush(b *testing.B) {
	for _, size := range []int{1 << 20, 6 << 20} {
		b.Run(fmt.Sprintf("%dMB", size>>20), func(b *testing.B) { benchmarkPush(b, size) })
	}
}

func benchmarkPush(b *testing.B, size int) {
	content := pattern(size)
	next, push := pusher(b, content)
	raw := rawTCP(b, content)
	var pushes, raws []time.Duration
	var hashing time.Duration
	for range 5 { // fills pools and page cache
		next()
		push()
		raw()
	}
	for b.Loop() {
		next()
		pushes = append(pushes, timed(push))
		raws = append(raws, timed(raw))
		hashing += timed(func() { id.DigestOf(content) })
	}
	b.ReportMetric(float64(size)*float64(len(pushes))/sum(pushes).Seconds()/1e6, "push_MB/s")
	b.ReportMetric(part(raws, 50)/part(pushes, 50), "push/tcp")
	b.ReportMetric(part(raws, 0)/part(pushes, 0), "best_push/tcp")
	b.ReportMetric(float64(sum(raws))/float64(hashing), "sha256/tcp")
	b.ReportMetric(part(pushes, 99)/part(raws, 99), "p99/tcp_p99")
}

func timed(f func()) time.Duration {
	began := time.Now()
	f()
	return time.Since(began)
}

func sum(all []time.Duration) (total time.Duration) {
	for _, d := range all {
		total += d
	}
	return total
}

// part returns the time in seconds that so many percent of all are not above.
func part(all []time.Duration, percent int) float64 {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)].Seconds()
}

// keep is how many files each side leaves on disk, so that both write to as many.
const keep = 8

// pusher returns two functions: next prepares the following file, as a publisher does when it comes
// from the encoder, and push sends it.
func pusher(b *testing.B, content []byte) (next, push func()) {
	log := slog.New(slog.DiscardHandler)
	store, err := segstore.Open(segstore.Config{DataDir: b.TempDir(), StorageLimit: 1 << 30}, log)
	if err != nil {
		b.Fatal(err)
	}
	service := New(Config{
		Store: store, Log: log,
		Own: func(netip.Addr) wire.Peer {
			return wire.Peer{ID: string(boxID), IP: "x", Port: "1", Type: wire.TypeBox}
		},
	})
	srv := httptest.NewServer(httperr.Wrap(log, service.Connect))
	conn, err := wsconn.Dial(b.Context(), srv.URL, wsconn.Dialing{Files: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Abort()
		srv.Close()
		service.Drain(cancelled(), "")
		store.Close()
	})
	conn.SetSilence(time.Minute)
	if err := conn.WriteText(wire.Encode(wire.Publish{
		Peer: wire.Peer{ID: string(pubA), IP: "x", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck},
	})); err != nil {
		b.Fatal(err)
	}
	if _, err := conn.ReadText(wire.MaxMessage); err != nil {
		b.Fatal(err)
	}
	n := 0
	var h wire.FileHeader
	next = func() {
		n++
		content[n%len(content)]++ // or the store would only extend what it has
		h = header(pubA, id.Path("/"+strconv.Itoa(n%keep)), content)
	}
	return next, func() {
		if err := conn.WriteFile(b.Context(), h.AppendTo(nil), bytes.NewReader(content), int64(len(content))); err != nil {
			b.Fatal(err)
		}
		raw, err := conn.ReadText(wire.MaxMessage)
		if err != nil {
			b.Fatal(err)
		}
		var stored wire.Stored
		if err := json.Unmarshal(raw, &stored); err != nil || stored.Command != wire.CommandStored {
			b.Fatalf("%s", raw)
		}
	}
}

func rawTCP(b *testing.B, content []byte) func() {
	dir := b.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for n := 0; ; n++ {
			f, err := os.Create(filepath.Join(dir, "incoming"))
			if err != nil {
				b.Error(err)
				return
			}
			_, err = io.CopyN(f, conn, int64(len(content)))
			f.Close()
			if err != nil {
				return // the client is done
			}
			if err := os.Rename(f.Name(), filepath.Join(dir, strconv.Itoa(n%keep))); err != nil {
				b.Error(err)
				return
			}
			if _, err := conn.Write([]byte{1}); err != nil {
				return
			}
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		conn.Close()
		ln.Close()
		<-done
	})
	one := make([]byte, 1)
	return func() {
		if _, err := conn.Write(content); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, one); err != nil {
			b.Fatal(err)
		}
	}
}
