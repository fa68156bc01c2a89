//go:build e2e

package e2e

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/playlist"
)

// What a publisher may hold in memory however slow boxes are: a base, and for each box the buffers
// of its sessions and sockets (docs/reliability.md).
const (
	publisherBase   = 40e6
	publisherPerBox = 1e6
)

// TestBoxesThatTakeNothing: boxes that read one byte per second cost the publisher no memory and the
// other boxes nothing; each segment still gets its copies at once.
func TestBoxesThatTakeNothing(t *testing.T) {
	t.Parallel()
	const stuck, segments, size = 6, 20, 4_000_000
	fleet := newFleet(t, plan{boxes: -1})
	var rates []*atomic.Int64
	for range stuck {
		p := newFunnel(t)
		b := fleet.addBoxAt(p.addr)
		p.lead(b.addr)
		rates = append(rates, &p.rate)
	}
	healthy := []*daemon{fleet.addBox(), fleet.addBox()}
	fleet.awaitBoxes(stuck + len(healthy))
	before := resident(t, fleet.publisher)
	for _, r := range rates {
		r.Store(1)
	}

	content, peak := make([]byte, size), before
	list := playlist.Media{Version: 3, TargetDuration: 2}
	for n := range segments {
		if _, err := rand.Read(content); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%d.ts", n)
		write(t, filepath.Join(fleet.source, name), string(content))
		list.Entries = append(list.Entries, playlist.Entry{URI: name, Duration: playlist.NewDuration(2 * time.Second)})
		if len(list.Entries) > 6 {
			list.Entries, list.Sequence = list.Entries[1:], list.Sequence+1
		}
		replace(t, filepath.Join(fleet.source, "index.m3u8"), list.AppendTo(nil))
		awaitEnd(t, fleet, uint64(n+1))
		peak = max(peak, resident(t, fleet.publisher))
		if n >= 12 {
			_ = os.Remove(filepath.Join(fleet.source, fmt.Sprintf("%d.ts", n-12)))
		}
	}
	path := func() string {
		media, err := mediaURLs(t, fleet.index())
		if err != nil {
			t.Fatal(err)
		}
		body, _, err := get(t, media[0])
		if err != nil {
			t.Fatal(err)
		}
		m, err := playlist.ParseMedia(body)
		if err != nil {
			t.Fatal(err)
		}
		return pathOf(t, media[0], m.Entries[len(m.Entries)-1].URI)
	}()
	eventually(t, patience, func() error {
		urls, _, err := fleet.holders(path)
		if err == nil && (len(urls) != 2 || !names(t, urls, healthy[0]) || !names(t, urls, healthy[1])) {
			err = fmt.Errorf("held by %s, want the two boxes that are well", urls)
		}
		peak = max(peak, resident(t, fleet.publisher))
		return err
	})
	// The pushes that hang are given up, and counted. In one run of 28 no slow box is chosen for the first
	// segment, and then none is ever asked.
	slow := func() (n int64, err error) {
		s, err := getJSON[struct {
			Totals struct {
				Placing struct {
					Undelivered map[string]int64 `json:"undelivered"`
				} `json:"placing"`
			} `json:"totals"`
		}](t, fleet.publisher.url()+"/api/v1/streams")
		u := s.Totals.Placing.Undelivered
		return u["too_slow"] + u["lagging"] + u["relay"], err
	}
	if err := awaiting(t, patience, func() error {
		peak = max(peak, resident(t, fleet.publisher))
		n, err := slow()
		if err == nil && n == 0 {
			err = errors.New("no file was given up because its box was slow")
		}
		return err
	}); err != nil {
		t.Logf("NOT RUN: what hangs (%v)", err)
	}
	t.Logf("the publisher has %.1f MB resident at most, %.1f before", peak/1e6, before/1e6)
	if limit := publisherBase + publisherPerBox*(stuck+2); peak > limit {
		t.Errorf("%.1f MB resident, want at most %.1f", peak/1e6, limit/1e6)
	}
}

// funnel is a wire to a box that takes rate bytes/s towards the box, 0 for no limit.
type funnel struct {
	addr string
	rate atomic.Int64
	to   atomic.Pointer[string]
}

func newFunnel(t *testing.T) *funnel {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	f := &funnel{addr: ln.Addr().String()}
	go func() {
		for {
			outer, err := ln.Accept()
			if err != nil {
				return
			}
			to := f.to.Load()
			if to == nil {
				outer.Close()
				continue
			}
			inner, err := net.Dial("tcp", *to)
			if err != nil {
				outer.Close()
				continue
			}
			go f.copy(inner, outer, &f.rate)
			go f.copy(outer, inner, &atomic.Int64{})
		}
	}()
	return f
}

func (f *funnel) lead(to string) { f.to.Store(&to) }

func (f *funnel) copy(to, from net.Conn, rate *atomic.Int64) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 64<<10)
	for {
		part := b
		if r := rate.Load(); r > 0 {
			part = b[:min(r, int64(len(b)))]
			<-time.After(time.Second)
		}
		n, err := from.Read(part)
		if n > 0 {
			if _, err := to.Write(part[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
