//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// meter looks once a second at what everybody has counted. It loads no playlist: that would be one more viewer.
type meter struct {
	casters []*caster
	addrs   []string // of the boxes
	client  *http.Client
	digests map[string]string // of segments, by file
	sockets socketCount       // of the look before

	readings []reading // complete when keep is over
}

// reading is one look.
type reading struct {
	at      time.Time
	casters []casterCount
	boxes   []boxCount
	kernel  sentCount
	load    float64
}

// casterCount is of a publisher and its encoder.
type casterCount struct {
	ok              bool
	encoded         int64 // bytes of segments that the encoder has finished
	placing, origin int64 // bytes that the publisher sent
	up              int   // boxes with a session
	holders         int   // boxes that hold the newest segment but one; -1: not known
	undelivered     map[string]int64
}

// boxCount is what a box tells, at some time between from and until.
type boxCount struct {
	ok              bool
	from, until     time.Time
	served, relayed int64
	peak            int64 // bytes that it sent in its own worst second; 0: it does not tell
}

// sentCount is what the kernel sent from each address since the look before; nil: it could not be asked.
type sentCount struct {
	from, until time.Time
	sent        map[string]int64
}

// socketCount is what the kernel counts of the boxes' connections, by local and remote address.
type socketCount struct {
	from, until time.Time
	sent        map[[2]string]int64
}

const meterWorkers = 8

func newMeter(f *crowdFleet) *meter {
	return &meter{
		casters: f.casters, addrs: f.addrs, digests: map[string]string{},
		client: &http.Client{
			Timeout:   2 * time.Second,
			Transport: &http.Transport{MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute},
		},
	}
}

// keep looks until ctx ends.
func (m *meter) keep(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	defer m.client.CloseIdleConnections()
	for {
		r := m.look(ctx)
		if ctx.Err() != nil {
			return // it broke off
		}
		m.readings = append(m.readings, r)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (m *meter) look(ctx context.Context) reading {
	r := reading{at: time.Now(), casters: make([]casterCount, len(m.casters)), boxes: make([]boxCount, len(m.addrs))}
	_, _ = fmt.Sscan(load(), &r.load)
	for i, c := range m.casters {
		r.casters[i] = m.countCaster(ctx, c)
	}
	sockets := countSockets(ctx)
	r.kernel = sockets.since(m.sockets)
	m.sockets = sockets
	next := make(chan int)
	var group sync.WaitGroup
	for range meterWorkers {
		group.Go(func() {
			for i := range next {
				r.boxes[i] = m.countBox(ctx, m.addrs[i])
			}
		})
	}
	for i := range m.addrs {
		next <- i
	}
	close(next)
	group.Wait()
	return r
}

func (m *meter) countCaster(ctx context.Context, c *caster) casterCount {
	n := casterCount{holders: -1}
	_, n.encoded = encoded(c.source)
	told, err := fetchJSON[struct {
		Streams []struct {
			Renditions []struct {
				Name string `json:"name"`
			} `json:"renditions"`
		} `json:"streams"`
		Boxes struct {
			Up int `json:"up"`
		} `json:"boxes"`
		Totals struct {
			Placing struct {
				Bytes       int64            `json:"placing_bytes"`
				Undelivered map[string]int64 `json:"undelivered"`
			} `json:"placing"`
			Viewers struct {
				OriginBytes int64 `json:"origin_bytes"`
			} `json:"viewers"`
		} `json:"totals"`
	}](ctx, m.client, c.publisher.url()+"/api/v1/streams")
	if err != nil {
		return n
	}
	n.undelivered = told.Totals.Placing.Undelivered
	n.ok, n.placing, n.origin, n.up = true, told.Totals.Placing.Bytes, told.Totals.Viewers.OriginBytes, told.Boxes.Up
	if len(told.Streams) == 0 || len(told.Streams[0].Renditions) == 0 {
		return n
	}
	if path := m.path(c.source, told.Streams[0].Renditions[0].Name); path != "" {
		if l, err := fetchJSON[located](ctx, m.client, c.publisher.url()+"/api/v1/locate?path="+url.QueryEscape(path)); err == nil {
			n.holders = 0
			for _, text := range l.URLs {
				if u, err := url.Parse(text); err == nil && u.Host != c.publisher.addr {
					n.holders++
				}
			}
		}
	}
	return n
}

// path is that of the newest segment but one, reckoned from the encoder's file: two seconds after it was
// finished all copies of it should be there. "" before there is one.
func (m *meter) path(source, rendition string) string {
	list, _ := filepath.Glob(filepath.Join(source, "seg-*.ts"))
	if len(list) < 2 {
		return ""
	}
	number := func(file string) int {
		n, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "seg-"), ".ts"))
		return n
	}
	slices.SortFunc(list, func(a, b string) int { return number(a) - number(b) })
	file := list[len(list)-2]
	if m.digests[file] == "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return ""
		}
		sum := sha256.Sum256(b)
		m.digests[file] = hex.EncodeToString(sum[:])[:12]
	}
	return strings.Join([]string{"/live", stream, rendition, m.digests[file], filepath.Base(file)}, "/")
}

func (m *meter) countBox(ctx context.Context, addr string) boxCount {
	n := boxCount{from: time.Now()}
	told, err := fetchJSON[struct {
		Totals struct {
			Served  int64 `json:"served_bytes"`
			Relayed int64 `json:"relayed_bytes"`
		} `json:"totals"`
		Upload struct {
			Peak float64 `json:"peak"`
		} `json:"upload"`
	}](ctx, m.client, "http://"+addr+"/api/v1/box")
	n.until = time.Now()
	if err == nil {
		n.ok, n.served, n.relayed, n.peak = true, told.Totals.Served, told.Totals.Relayed, int64(told.Upload.Peak)
	}
	return n
}

// countSockets asks the kernel how much was sent on each connection to a box.
func countSockets(ctx context.Context) socketCount {
	n := socketCount{from: time.Now()}
	out, err := exec.CommandContext(ctx, "ss", "-tinHO", "state", "established", "src", "127.77.0.0/16").Output()
	n.until = time.Now()
	if err == nil {
		n.sent = sentBySocket(out)
	}
	return n
}

// sentBySocket reads lines of ss: queues, local and remote address, and what is known.
func sentBySocket(out []byte) map[[2]string]int64 {
	sent := map[[2]string]int64{}
	for line := range bytes.Lines(out) {
		fields := strings.Fields(string(line))
		if len(fields) < 4 {
			continue
		}
		for _, field := range fields[4:] {
			if text, ok := strings.CutPrefix(field, "bytes_sent:"); ok {
				sent[[2]string{fields[2], fields[3]}], _ = strconv.ParseInt(text, 10, 64)
			}
		}
	}
	return sent
}

// since is what was sent since an earlier count. What connections sent between that and their end is not seen.
func (n socketCount) since(before socketCount) sentCount {
	c := sentCount{from: before.from, until: n.until}
	if n.sent == nil || before.sent == nil {
		return c
	}
	c.sent = map[string]int64{}
	for socket, sent := range n.sent {
		if earlier := before.sent[socket]; earlier <= sent {
			sent -= earlier
		}
		c.sent[socket[0]] += sent
	}
	return c
}

// perSecond is the rate of bytes that were sent between two looks, as far as it is certain: the looks took
// a moment each, and what fits into less than a second may stand in a whole one.
func perSecond(bytes int64, from, until time.Time) float64 {
	return float64(bytes) / max(until.Sub(from).Seconds(), 1)
}
