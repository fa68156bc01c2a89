package state

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/state/redistest"
)

// BenchmarkReport writes what an entrance writes for 16 boxes' reports, on both kinds of state; ns
// of the embedded one are CPU time of both sides, those of Redis leave out the server's.
func BenchmarkReport(b *testing.B) {
	for name, start := range map[string]func(b *testing.B) *State{
		"embedded": func(b *testing.B) *State { return open(b, Default(), b.TempDir()) },
		"redis":    func(b *testing.B) *State { return open(b, Config{URL: redistest.Start(b)}, "") },
	} {
		b.Run(name, func(b *testing.B) {
			s := start(b)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				p := s.Pipeline()
				scores := make([]redis.Z, 16)
				for i := range scores {
					p.HSet(ctx, fmt.Sprint("entrance:EXCHANGE:box-", i), "ID", "box", "IP", "203.0.113.7", "PORT", "7072",
						"CPU-IDLE", "97.5", "LOADAVG-1", "0.11", "MEM-AVAIL", "731", "GEOIP", `{"LOC":"48.1,11.5"}`)
					scores[i] = redis.Z{Score: 1.75e9, Member: fmt.Sprint("box-", i)}
				}
				p.ZAdd(ctx, "entrance:BOX_SET", scores...)
				if _, err := p.Exec(ctx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/16, "µs/box")
		})
	}
}

// farAway is when the keys of benchmarks expire.
var farAway = time.Date(2100, time.January, 1, 0, 0, 0, 0, time.UTC)

func fill(b *testing.B, s *State, keys int) {
	b.Helper()
	ctx := b.Context()
	p := s.Pipeline()
	for i := range keys {
		key := fmt.Sprintf("publisher-0123456789abcdef0123456789abcdef:FILE:HOLDERS:/live/demo/1080p/%012x/seg-%d.ts", i, i)
		p.HSet(ctx, key, "ID", "box-0123456789abcdef0123456789abcdef", "MSG", "Success", "TTL", "60", "FILE_PATH", key[:60])
		p.ExpireAt(ctx, key, farAway)
		if i%500 == 499 {
			if _, err := p.Exec(ctx); err != nil {
				b.Fatal(err)
			}
		}
	}
	if _, err := p.Exec(ctx); err != nil {
		b.Fatal(err)
	}
}

// Of a state of 10,000 hashes that expire: what holds the lock (dump), what waits for the disk
// (sync), and what every 100 ms cost (tick).
func BenchmarkSnapshot10000Keys(b *testing.B) {
	s, err := Open(b.Context(), Default(), b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	fill(b, s, 10_000)
	e := s.embedded.(*embedded)
	b.Run("dump", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf = e.in.dump(buf[:0], e.clock)
		}
		b.ReportMetric(float64(len(buf)), "bytes")
	})
	b.Run("sync", func(b *testing.B) {
		for b.Loop() {
			if err := s.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tick", func(b *testing.B) {
		for b.Loop() {
			e.in.pass(e.clock.advance())
		}
	})
	b.Run("tick with FastForward", func(b *testing.B) {
		for b.Loop() {
			e.server.FastForward(1)
		}
	})
	b.Run("load", func(b *testing.B) {
		data := e.in.dump(nil, e.clock)
		for b.Loop() {
			img, err := readImage(data)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := img.restore(newServer(b), e.clock.wall()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkScript(b *testing.B) {
	script := redis.NewScript(`if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '0') == 1 then return redis.call('ZREM', KEYS[1], ARGV[1]) end return 0`)
	for name, start := range map[string]func(b *testing.B) *State{
		"embedded": func(b *testing.B) *State { return open(b, Default(), b.TempDir()) },
		"redis":    func(b *testing.B) *State { return open(b, Config{URL: redistest.Start(b)}, "") },
	} {
		b.Run(name, func(b *testing.B) {
			s := start(b)
			for b.Loop() {
				if err := script.Run(b.Context(), s, []string{"z"}, "box").Err(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
