package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/testnginx"
	"dandelion/pkg/wire"
)

// ledger is what a small entrance counted.
type ledger struct {
	mu     sync.Mutex
	last   map[string]int64 // SEQ by BOOT
	list   []wire.Delivery
	twice  int // batches that were counted already
	refuse int // so many batches first
	seen   []wire.Mark
}

// keep makes the entrance count as a real one does.
func (l *ledger) keep(e *entrance) {
	e.counts = func(x wire.Exchange) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.seen = append(l.seen, x.Traffic.Mark)
		if l.refuse > 0 {
			l.refuse--
			return false
		}
		if l.last == nil {
			l.last = make(map[string]int64)
		}
		if l.last[x.Traffic.Boot] >= x.Traffic.Seq {
			l.twice++
			return true
		}
		l.last[x.Traffic.Boot] = x.Traffic.Seq
		for _, d := range x.Deliveries {
			l.list = append(l.list, d)
		}
		return true
	}
}

// sum is how many deliveries were counted of a path and a status, and their bytes.
func (l *ledger) sum(path, status string) (count, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.list {
		if d.URL == "/"+string(pub)+path && string(d.Status) == status {
			size, _ := strconv.ParseInt(string(d.Size), 10, 64)
			count, bytes = count+max(1, d.Count), bytes+size
		}
	}
	return count, bytes
}

func (l *ledger) all() (count int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.list {
		count += max(1, d.Count)
	}
	return count
}

func drainReports(e *entrance, done <-chan struct{}) {
	for {
		select {
		case <-e.reports:
		case <-done:
			return
		}
	}
}

// counting is an entrance with its ledger.
func counting(t *testing.T) (*entrance, *ledger) {
	e, l := newEntrance(t), &ledger{}
	l.keep(e)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go drainReports(e, done)
	return e, l
}

// TestDeliveriesAreCounted: every GET of a publisher's path with what was sent of the body, and nothing else;
// what is acknowledged leaves the disk.
func TestDeliveriesAreCounted(t *testing.T) {
	t.Parallel()
	e, l := counting(t)
	cfg := testConfig(t)
	cfg.Entrances, cfg.ReportInterval = []string{e.url}, config.Second
	cfg.TrustedProxies = config.Networks{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}
	b := start(t, cfg, state.Config{})
	push(t, b.publisher(wire.BoxWSPath(b.ID())), "/film", time.Hour, make([]byte, 1000))
	film := "/" + string(pub) + "/film"
	for range 3 {
		b.get(film)
	}
	b.get(film, "X-Forwarded-For: 203.0.113.9")
	b.get(film, "Range: bytes=10-19")
	_, body := b.get("/" + string(pub) + "/gone")
	_, etag := b.get(film, `If-None-Match: "`+id.DigestOf(make([]byte, 1000)).String()+`"`)
	if etag != "" {
		t.Fatal("no 304")
	}
	for _, path := range []string{"/", "/favicon.ico", "/api/v1/box", "/metrics", "/debug/health", wire.BoxIndexPath(b.ID())} {
		b.get(path)
	}
	for _, method := range []string{http.MethodHead, http.MethodOptions, http.MethodPost} {
		req, _ := http.NewRequestWithContext(t.Context(), method, b.base+film, nil)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	eventually(t, func() error {
		for _, want := range []struct {
			path, status string
			count, bytes int64
		}{{"/film", "200", 4, 4000}, {"/film", "206", 1, 10}, {"/film", "304", 1, 0}, {"/gone", "404", 1, int64(len(body))}} {
			if count, bytes := l.sum(want.path, want.status); count != want.count || bytes != want.bytes {
				return fmt.Errorf("%s %s: %d, %d bytes", want.path, want.status, count, bytes)
			}
		}
		left, err := os.ReadDir(filepath.Join(cfg.LiveDir, journalName))
		if err != nil || len(left) != 0 {
			return fmt.Errorf("%d files are left, %v", len(left), err)
		}
		return nil
	})
	if n := l.all(); n != 7 {
		t.Errorf("%d deliveries", n)
	}
	networks := make(map[string]int)
	for _, d := range l.list {
		networks[d.Network]++
	}
	if networks["127.0.0.0/24"] != 6 || networks["203.0.113.0/24"] != 1 {
		t.Errorf("%v", networks)
	}
	_, api := b.get("/api/v1/box")
	var answer apiBox
	if err := json.Unmarshal([]byte(api), &answer); err != nil || answer.Traffic.Deliveries != 7 || answer.Traffic.Bytes != int64(4010+len(body)) ||
		answer.Traffic.WaitingBatches != 0 || answer.Entrances[0].Waiting != 0 {
		t.Errorf("%v: %+v", err, answer.Traffic)
	}
	_, metrics := b.get("/metrics")
	for _, name := range []string{
		"dandelion_box_traffic_deliveries_total 7\n", "dandelion_box_traffic_waiting_batches 0\n", `dandelion_box_traffic_dropped_bytes_total{reason="full"} 0`,
	} {
		if !strings.Contains(metrics, name) {
			t.Errorf("%s is not in the metrics", name)
		}
	}
}

// TestAbortedDelivery: of an answer that the viewer broke off, what it was really sent.
func TestAbortedDelivery(t *testing.T) {
	t.Parallel()
	e, l := counting(t)
	cfg := testConfig(t)
	cfg.Entrances, cfg.ReportInterval = []string{e.url}, config.Second
	b := start(t, cfg, state.Config{})
	const size = 20_000_000
	push(t, b.publisher(wire.BoxWSPath(b.ID())), "/film", time.Hour, make([]byte, size))
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(must(http.NewRequest(http.MethodGet, b.base+"/"+string(pub)+"/film", nil)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, 100_000); err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	eventually(t, func() error {
		if count, bytes := l.sum("/film", "200"); count != 1 || bytes < 100_000 || bytes >= size {
			return fmt.Errorf("%d, %d bytes", count, bytes)
		}
		return nil
	})
}

// TestCutBeforeCounted: the connection breaks between report and acknowledgement, twice; then the box
// starts anew. The same batch comes again, and everything counts once. The store leaves the journal alone.
func TestCutBeforeCounted(t *testing.T) {
	t.Parallel()
	e, l := counting(t)
	l.refuse = 2
	cfg := testConfig(t)
	cfg.Entrances, cfg.ReportInterval = []string{e.url}, config.Second
	b := start(t, cfg, state.Config{})
	push(t, b.publisher(wire.BoxWSPath(b.ID())), "/film", time.Minute, make([]byte, 1000))
	film := "/" + string(pub) + "/film"
	b.get(film)
	seen := func(n int) func() error {
		return func() error {
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.seen) < n {
				return fmt.Errorf("seen %v", l.seen)
			}
			return nil
		}
	}
	eventually(t, seen(2))
	b.stop() // with the last batch in the journal, or just acknowledged
	again := start(t, cfg, state.Config{})
	if status, _ := again.get(film); status != 200 {
		t.Errorf("the file: %d", status)
	}
	eventually(t, func() error {
		if count, bytes := l.sum("/film", "200"); count != 2 || bytes != 2000 {
			return fmt.Errorf("%d, %d bytes", count, bytes)
		}
		return nil
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[0] != l.seen[1] || l.seen[1] != l.seen[2] {
		t.Errorf("marks %v", l.seen)
	}
}

// TestKilledBeforeReport: what is in the journal when the box is killed arrives after its restart, once. Only what
// was delivered since the last line of the journal may be lost: a second's deliveries.
func TestKilledBeforeReport(t *testing.T) {
	t.Parallel()
	const rounds, each = 3, 40
	e, l := counting(t)
	p := newProcess(t)
	closed := "http://" + testnginx.FreeAddr(t)
	film := random(3, 10_000)
	written, unwritten := 0, 0
	for round := range rounds {
		p.args = []string{"--entrances", closed} // nobody is there
		p.start()
		if round == 0 {
			push(t, p.mustPublisher(), "/film", time.Hour, film)
		}
		get := func() {
			if resp, body, err := p.fetch(t.Context(), "/film"); err != nil || resp.StatusCode != 200 || len(body) != len(film) {
				t.Fatalf("%v, %v", resp, err)
			}
		}
		for range each {
			get()
		}
		eventually(t, func() error { // the line is written
			st, err := p.api()
			if err != nil || st.Traffic.Deliveries != each || st.Traffic.Unwritten != 0 {
				return fmt.Errorf("%+v, %v", st.Traffic, err)
			}
			return nil
		})
		written += each
		for range round { // and these may not be
			get()
			unwritten++
		}
		p.kill()
	}
	p.args = []string{"--entrances", e.url, "--report-interval", "1s"}
	p.start()
	eventually(t, func() error {
		st, err := p.api()
		if err != nil || st.Traffic.WaitingBatches != 0 || len(st.Entrances) != 1 || !st.Entrances[0].Connected {
			return fmt.Errorf("%+v, %v", st, err)
		}
		return nil
	})
	p.kill() // and all of it once more, as far as it is still there
	p.start()
	count, bytes := l.sum("/film", "200")
	t.Logf("%d of %d that were written arrived, and of %d that were not %d", min(int(count), written), written, unwritten, max(0, int(count)-written))
	if int(count) < written || int(count) > written+unwritten || bytes != count*int64(len(film)) {
		t.Errorf("%d deliveries, %d bytes; %d were written", count, bytes, written)
	}
}

func (p *process) api() (answer apiBox, err error) {
	resp, err := http.Get(p.base + "/api/v1/box")
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	return answer, json.NewDecoder(resp.Body).Decode(&answer)
}

// TestTerminateKeepsAccounts: a box that is asked to stop has told everything before its goodbye.
func TestTerminateKeepsAccounts(t *testing.T) {
	t.Parallel()
	e, l := counting(t)
	cfg := testConfig(t)
	cfg.Entrances, cfg.ReportInterval = []string{e.url}, config.Minute
	b := start(t, cfg, state.Config{})
	push(t, b.publisher(wire.BoxWSPath(b.ID())), "/film", time.Hour, make([]byte, 1000))
	eventually(t, func() error {
		if _, api := b.get("/api/v1/box"); !strings.Contains(api, `"connected": true`) {
			return errors.New(api)
		}
		return nil
	})
	b.get("/" + string(pub) + "/film")
	eventually(t, func() error { // the viewer has it a moment before the box knows
		if st := b.traffic.State(); st.Deliveries != 1 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	stopped := make(chan struct{})
	go func() { b.stop(); close(stopped) }()
	<-e.goodbyes
	if count, _ := l.sum("/film", "200"); count != 1 {
		t.Errorf("%d deliveries at the goodbye", count)
	}
	<-stopped
}

// TestTrafficFlow: other programs see in Redis what waits for an entrance, until it has it.
func TestTrafficFlow(t *testing.T) {
	t.Parallel()
	server := redistest.StartServer(t)
	client := server.Client(t)
	e, l := counting(t)
	cfg := testConfig(t)
	release := make(chan struct{})
	count := e.counts
	e.counts = func(x wire.Exchange) bool { <-release; return count(x) }
	cfg.Entrances, cfg.ReportInterval = []string{e.url}, config.Second
	b := start(t, cfg, state.Config{URL: server.URL()})
	push(t, b.publisher(wire.BoxWSPath(b.ID())), "/film", time.Hour, make([]byte, 1000))
	b.get("/" + string(pub) + "/film")
	b.get("/"+string(pub)+"/film", "Range: bytes=0-9")
	pattern := keys.Box(b.ID()).TrafficFlow("*")
	found := func(n int) ([]string, error) {
		names, err := client.Keys(t.Context(), pattern).Result()
		if err == nil && len(names) != n {
			err = fmt.Errorf("%v, want %d", names, n)
		}
		return names, err
	}
	eventually(t, func() error { _, err := found(2); return err })
	names, _ := found(2)
	sizes := make(map[string]bool)
	for _, name := range names {
		d, err := client.HGetAll(t.Context(), name).Result()
		at, timeErr := time.Parse(wire.DeliveryTime, d["datetime"])
		if err != nil || len(d) != 4 || d["url"] != "/"+string(pub)+"/film" || timeErr != nil || time.Since(at) > time.Hour {
			t.Errorf("%v, %v, %v", d, err, timeErr)
		}
		sizes[d["status"]+" "+d["size"]] = true
		if ttl, err := client.TTL(t.Context(), name).Result(); err != nil || ttl <= 0 || ttl > flowTTL {
			t.Errorf("TTL %v, %v", ttl, err)
		}
	}
	if !sizes["200 1000"] || !sizes["206 10"] {
		t.Errorf("%v", sizes)
	}
	close(release)
	eventually(t, func() error { _, err := found(0); return err })
	if n := l.all(); n != 2 {
		t.Errorf("%d deliveries", n)
	}
}

// TestFlowsAreBounded: neither a Redis that is away nor an entrance that is costs more than so much.
func TestFlowsAreBounded(t *testing.T) {
	t.Parallel()
	b := start(t, testConfig(t), state.Config{})
	r := newRecords(b.ID(), nil, b.metrics, b.log)
	list := make([]wire.Delivery, 100)
	for i := range int64(500) {
		r.Waiting(wire.Mark{Boot: "0123456789abcdef", Seq: i}, 0, list)
	}
	if r.queued > flowQueue || r.hashes > maxFlows || len(r.flows) > flowQueue {
		t.Errorf("%d, %d, %d", r.queued, r.hashes, len(r.flows))
	}
	for i := range int64(5000) {
		r.Acknowledged(wire.Mark{Boot: "0123456789abcdef", Seq: i}, 100)
	}
	if r.hashes != 0 || len(r.flowing) != 0 || len(r.flows) > flowQueue {
		t.Errorf("%d, %d, %d", r.hashes, len(r.flowing), len(r.flows))
	}
}
