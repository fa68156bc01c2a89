package entrance

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// BenchmarkReports: CPU of the server for each report of 1.3 KB, parsed and in Redis, beside a
// websocket that only reads, at 4,000 reports a second; and that none is lost. Target: at most
// 35 µs.
func BenchmarkReports(b *testing.B) {
	const boxes, rounds, perSecond = 400, 30, 4000
	redisURL, h := redistest.Start(b), newHome(b)
	measure := func(role string) float64 {
		s := startBenchServer(b, role, redisURL)
		conns := s.connect(boxes)
		s.settle(h, conns, role)
		before := s.ask("cpu")
		s.drive(h, conns, rounds, perSecond)
		return (s.ask("cpu") - before) / (boxes * rounds) / 1000
	}
	for b.Loop() {
		reader := measure("reader")
		full := measure("entrance")
		b.ReportMetric(full, "µs/report")
		b.ReportMetric(reader, "reader-µs/report")
		b.ReportMetric(full/reader, "x-reader")
	}
	st, err := state.Open(b.Context(), state.Config{URL: redisURL}, b.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	entrances, err := st.Keys(b.Context(), "*:BOX_SET").Result()
	if err != nil || len(entrances) == 0 {
		b.Fatal(entrances, err)
	}
	own := keys.Entrance(id.EntranceID(strings.TrimSuffix(entrances[0], ":BOX_SET")))
	for n := range boxes {
		eventually(b, func() string {
			if last := st.HGet(b.Context(), own.Exchange(newBoxID(n)), "LOADAVG-1").Val(); last != fmt.Sprint(rounds-1) {
				return fmt.Sprintf("box %d: the last report in Redis is %s", n, last)
			}
			return ""
		})
	}
}

// BenchmarkMemory: what the server holds for each connected box, beside a bare gorilla
// connection. Target: at most 8 KB.
func BenchmarkMemory(b *testing.B) {
	const boxes = 5000
	redisURL, h := redistest.Start(b), newHome(b)
	measure := func(role string) float64 {
		s := startBenchServer(b, role, redisURL)
		before := s.ask("mem")
		conns := s.connect(boxes)
		s.drive(h, conns, 2, 4000)
		s.settle(h, conns, role)
		return (s.ask("mem") - before) / boxes
	}
	for b.Loop() {
		bare := measure("bare")
		full := measure("entrance")
		b.ReportMetric(full, "B/box")
		b.ReportMetric(bare, "bare-B/conn")
		b.ReportMetric(full/bare, "x-bare")
	}
}

// BenchmarkDials: an old box dials for each exchange. The fleet that exists did 346 to 654 a
// second on such a machine.
func BenchmarkDials(b *testing.B) {
	s := startBenchServer(b, "entrance", redistest.Start(b))
	before := s.ask("cpu")
	n := 0
	begin := time.Now()
	for b.Loop() {
		var wg sync.WaitGroup
		for client := range 8 {
			wg.Go(func() {
				ws, _, err := websocket.DefaultDialer.Dial("ws://"+s.addr+"/dandelion/ws/", nil)
				if err != nil {
					b.Error(err)
					return
				}
				defer ws.Close()
				_ = ws.WriteMessage(websocket.TextMessage, []byte(fmt.Sprintf(`{"ID": %q, "IP": "127.0.0.1", "PORT": "1", "TYPE": "BOX",
					"COMMAND": "EXCHANGE", "CONNECT_WS": "http://127.0.0.1:1%s", "CPU-IDLE": "97.5"}`, newBoxID(client), wire.BoxWSPath(newBoxID(client)))))
				if _, message, err := ws.ReadMessage(); err != nil || !strings.Contains(string(message), "ACCEPTED") {
					b.Errorf("%s %v", message, err)
				}
			})
		}
		wg.Wait()
		n += 8
	}
	b.ReportMetric(float64(n)/time.Since(begin).Seconds(), "exchanges/s")
	b.ReportMetric((s.ask("cpu")-before)/float64(n)/1000, "server-µs/exchange")
}
