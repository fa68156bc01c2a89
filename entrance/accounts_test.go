package entrance

import (
	"fmt"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// want returns "" where both print alike, and else what is wrong.
func want(got, want any) string {
	if fmt.Sprint(got) == fmt.Sprint(want) {
		return ""
	}
	return fmt.Sprintf("got %v, want %v", got, want)
}

// batch adds deliveries of one batch to a report.
func batch(b *box, boot string, seq, bytes int) func(map[string]any) {
	return func(m map[string]any) {
		m["TRAFFIC"] = map[string]any{"BOOT": boot, "SEQ": seq}
		m[keys.Box(b.id).TrafficFlow(fmt.Sprintf("%s%08x%08x", boot, seq, 0))] = map[string]any{
			"url": "/" + publisherID + "/live/show/720p/0123456789ab/a.ts", "status": "200", "size": fmt.Sprint(bytes), "count": 2,
			"datetime": time.Now().UTC().Format(wire.DeliveryTime), "network": "192.0.2.0/24",
		}
	}
}

const bootID = "0123456789abcdef"

// until returns the next message of a command.
func (p *peer) until(command string) map[string]any {
	p.t.Helper()
	for {
		if m := p.receive(); m["COMMAND"] == command {
			return m
		}
	}
}

// row returns a row of /api/v1/traffic as text.
func (r *running) traffic(query string) string {
	r.t.Helper()
	answer := r.api("/api/v1/traffic?" + query)
	rows, _ := answer["rows"].([]any)
	text := ""
	for _, row := range rows {
		row := row.(map[string]any)
		text += fmt.Sprintf("%v %v %v: %v in %v, %v in %v; ", row["box"], row["publisher"], row["stream"], row["bytes"], row["deliveries"], row["redirected_bytes"], row["redirects"])
	}
	return text
}

func TestDeliveriesAreCountedAndAcknowledged(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, redis state.Config) {
		e := start(t, redis, nil)
		b := newBox(t, 1)
		p := e.connect(b)
		p.send(b.report(batch(b, bootID, 1, 1000)))
		if reply := p.receive(); reply["MESSAGE"] != "ACCEPTED" {
			t.Fatalf("the answer to the report comes first: %v", reply)
		}
		counted := p.until("COUNTED")
		if counted["BOOT"] != bootID || counted["SEQ"] != 1.0 || counted["ID"] != string(e.ID()) || counted["TYPE"] != "ENTRANCE" {
			t.Errorf("%v", counted)
		}
		// The acknowledgement was lost, and so was the connection.
		p.ws.Close()
		p = e.connect(b)
		p.send(b.report(batch(b, bootID, 1, 1000)))
		p.until("COUNTED")
		p.send(b.report(batch(b, bootID, 2, 50)))
		p.until("COUNTED")

		// And a publisher sent viewers there.
		s := e.dial(wire.EntranceWSPath)
		s.ask(searchMessage(`, "FEATURES": ["ack", "traffic"]`))
		redirects := fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "REDIRECTS", "BOOT": %q, "SEQ": 1,
			"BOXES": [{"BOX": %q, "STREAM": "show", "COUNT": 3, "BYTES": 900}, {"BOX": %q, "COUNT": 3, "BYTES": 900}]}`, publisherID, bootID, b.id, newBoxID(99))
		for range 3 {
			s.send(redirects)
			if counted := s.until("COUNTED"); counted["BOOT"] != bootID || counted["SEQ"] != 1.0 {
				t.Errorf("%v", counted)
			}
		}
		for by, expected := range map[string]string{
			"box":       string(b.id) + " <nil> <nil>: 1050 in 4, 900 in 3; ",
			"publisher": "<nil> " + publisherID + " <nil>: 1050 in 4, 900 in 3; ",
			"stream":    "<nil> " + publisherID + " show: 1050 in 4, 900 in 3; ",
		} {
			if why := want(e.traffic("by="+by+"&from=-2h"), expected); why != "" {
				t.Errorf("%s: %s", by, why)
			}
		}
		if why := want(e.traffic("from=-5h&to=-3h"), ""); why != "" {
			t.Error(why)
		}
	})
}

// TestOldBoxesDeliveriesCountOnce: the old entrance counted the same log at two pings.
func TestOldBoxesDeliveriesCountOnce(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, redis state.Config) {
		e := start(t, redis, nil)
		b := newBox(t, 1)
		for ping := range 4 {
			reply := e.dialOld(upgrade10).ask(b.oldReport(func(m map[string]any) {
				for i := ping; i < ping+2; i++ {
					m[keys.Box(b.id).TrafficFlow(fmt.Sprintf("%032x", i))] = map[string]any{
						"url": "/" + publisherID + "/tmp/hls/seg-0.ts", "status": "200", "size": "100", "datetime": "27/Sep/2017:03:20:10",
					}
				}
			}))
			if reply["MESSAGE"] != "ACCEPTED" {
				t.Fatal(reply)
			}
		}
		eventually(t, func() string {
			return want(e.traffic("by=stream"), "<nil> "+publisherID+" <nil>: 500 in 5, 0 in 0; ")
		})
	})
}

// TestTwoProcessesCountOnce: the box moves to another process of the entrance with a batch that was counted.
func TestTwoProcessesCountOnce(t *testing.T) {
	t.Parallel()
	redisConfig := state.Config{URL: redistest.Start(t)}
	one := start(t, redisConfig, nil)
	two := start(t, redisConfig, one.sibling())
	b := newBox(t, 1)
	for seq := 1; seq <= 3; seq++ {
		for _, e := range []*running{one, two} {
			p := e.connect(b)
			p.send(b.report(batch(b, bootID, seq, 100)))
			p.until("COUNTED")
			p.ws.Close()
		}
	}
	for _, e := range []*running{one, two} {
		if why := want(e.traffic("by=box"), string(b.id)+" <nil> <nil>: 300 in 6, 0 in 0; "); why != "" {
			t.Error(why)
		}
	}
}

// TestWhatIsRefusedIsNotCounted: a report that is not accepted, and messages that are not as they must be.
func TestWhatIsRefusedIsNotCounted(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	reply := e.dial(wire.EntranceWSPath).ask(b.report(func(m map[string]any) {
		batch(b, bootID, 1, 1000)(m)
		m["EDGE_URL"] = "http://169.254.169.254"
	}))
	if reply["ERROR"] == nil {
		t.Fatal(reply)
	}
	for _, extra := range []string{`"BOOT": "x", "SEQ": 1`, `"BOOT": "0123456789abcdef", "SEQ": 0`, `"BOOT": "0123456789abcdef", "SEQ": 1, "BOXES": [{"BOX": 7}]`} {
		s := e.dial(wire.EntranceWSPath)
		s.ask(searchMessage(`, "FEATURES": ["ack", "traffic"]`))
		reply := s.ask(fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "REDIRECTS", %s}`, publisherID, extra))
		if reply["ERROR"] == nil || s.closed() != 1000 {
			t.Errorf("%s: %v", extra, reply)
		}
	}
	s := e.dial(wire.EntranceWSPath)
	reply = s.ask(fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "REDIRECTS", "BOOT": %q, "SEQ": 1}`, publisherID, bootID))
	if reply["ERROR"] != "REDIRECTS is for sessions whose SEARCH named the feature traffic" {
		t.Error(reply)
	}
	if why := want(e.traffic("by=box"), ""); why != "" {
		t.Error(why)
	}
	for query, expected := range map[string]string{
		"by=x":        "by must be box, publisher or stream",
		"from=x":      "from must be a time such as 2026-01-31T00:00:00Z, unix seconds, or how long ago, such as -24h or -7d",
		"to=24h":      "to must be a time such as 2026-01-31T00:00:00Z, unix seconds, or how long ago, such as -24h or -7d",
		"to=-25h":     "the range cannot be answered: from must be before to",
		"box=x":       `box: "x" is not an ID: want "box-" and 32 hex digits`,
		"stream=..":   `stream: ".." is not a stream name: want 1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit`,
		"publisher=x": `publisher: "x" is not an ID: want "publisher-" and 32 hex digits`,
	} {
		if why := want(e.api("/api/v1/traffic?" + query)["error"], expected); why != "" {
			t.Errorf("%s: %s", query, why)
		}
	}
	if got := e.api("/api/v1/traffic?from=-7d&to=-0s"); got["granularity"] != "1h" || got["rows"] == nil {
		t.Errorf("%v", got)
	}
}

// TestRedisGoesWhileDeliveriesCome: reports are answered, and batches count once, when it is back.
func TestRedisGoesWhileDeliveriesCome(t *testing.T) {
	t.Parallel()
	server := newRedisServer(t)
	e := start(t, server.config(), nil)
	b := newBox(t, 1)
	p := e.connect(b)
	server.stop()
	for range 5 {
		if reply := p.ask(b.report(batch(b, bootID, 1, 1000))); reply["MESSAGE"] != "ACCEPTED" {
			t.Fatal(reply)
		}
	}
	server.start()
	p.until("COUNTED")
	if why := want(e.traffic("by=box"), string(b.id)+" <nil> <nil>: 1000 in 2, 0 in 0; "); why != "" {
		t.Error(why)
	}
}

// TestKilledEntranceCountsOnce: kill -9 at any moment, with the state in the process; the box sends what was not
// acknowledged again, and in the end the accounts have each batch once.
func TestKilledEntranceCountsOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBox(t, 1)
	seq, sent, unheard := 1, 0, 0
	for life := range 6 {
		server := startBenchServer(t, "entrance", "", dirVariable+"="+dir)
		e := &running{t: t, base: "http://" + server.addr}
		p := e.connect(b)
		killed := time.AfterFunc(time.Duration(40+37*life)*time.Millisecond, server.kill)
		for ; ; seq++ {
			if p.ws.WriteMessage(websocket.TextMessage, b.report(batch(b, bootID, seq, seq))) != nil || !p.counts(seq) {
				unheard++
				break
			}
			sent += seq
		}
		killed.Stop()
		server.kill()
	}
	server := startBenchServer(t, "entrance", "", dirVariable+"="+dir)
	e := &running{t: t, base: "http://" + server.addr}
	p := e.connect(b)
	p.send(b.report(batch(b, bootID, seq, seq)))
	p.until("COUNTED")
	sent += seq
	t.Logf("%d batches, %d without an answer", seq, unheard)
	if why := want(e.traffic("by=box"), fmt.Sprintf("%s <nil> <nil>: %d in %d, 0 in 0; ", b.id, sent, 2*seq)); why != "" {
		t.Error(why)
	}
}

// counts waits for the acknowledgement of a batch; false: the connection ended.
func (p *peer) counts(seq int) bool {
	for {
		_, message, err := p.ws.ReadMessage()
		if err != nil {
			return false
		}
		if m := decode(p.t, message); m["COMMAND"] == "COUNTED" && m["SEQ"] == float64(seq) {
			return true
		}
	}
}
