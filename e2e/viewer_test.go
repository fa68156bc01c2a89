//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/playlist"
	"dandelion/pkg/watch"
)

func lines(text string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" && !yield(line) {
				return
			}
		}
	}
}

// agents counts viewers, so that each has a name of its own.
var agents atomic.Int32

// watching starts n viewers that leave with the test. Their failures fail the test.
func watching(t *testing.T, url string, n int) []*watch.Player {
	t.Helper()
	return watchingAs(t, url, n, func() string { return fmt.Sprintf("e2e-viewer/%d", agents.Add(1)) })
}

func watchingAs(t *testing.T, url string, n int, agent func() string) []*watch.Player {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	var players []*watch.Player
	for i := range n {
		p := watch.New(watch.Config{URL: url, UserAgent: agent(), Log: slog.New(slog.DiscardHandler)})
		players = append(players, p)
		group.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Errorf("viewer %d: %v", i, err)
			}
		})
	}
	return players
}

// awaitPlayed waits until each viewer has played so much more than now.
func awaitPlayed(t *testing.T, players []*watch.Player, length time.Duration) {
	t.Helper()
	begin := make([]time.Duration, len(players))
	for i, p := range players {
		begin[i] = p.Report().Played
	}
	for i, p := range players {
		eventually(t, patience+2*length, func() error {
			if played := p.Report().Played - begin[i]; played < length {
				return fmt.Errorf("viewer %d played %v of %v: %+v", i, played, length, p.Report())
			}
			return nil
		})
	}
}

// smooth fails the test for viewers who noticed anything.
func smooth(t *testing.T, players []*watch.Player) {
	t.Helper()
	for i, p := range players {
		r := p.Report()
		if r.Corrupt > 0 || r.Missed > 0 {
			t.Errorf("viewer %d: %d corrupt and %d missed segments", i, r.Corrupt, r.Missed)
		}
		judgeStalls(t, fmt.Sprintf("viewer %d", i), r.Stalls, r.Stalled)
		t.Logf("viewer %d: %+v", i, r)
	}
}

// overload is the load for each processor from which on stalls are the machine's: they are then
// told and not judged.
const overload = 3

// judgeStalls fails the test for stalls, unless the machine is overloaded. length is 0 where it
// is not known.
func judgeStalls(t *testing.T, who string, n int, length time.Duration) {
	t.Helper()
	if n == 0 {
		return
	}
	told := fmt.Sprintf("%s: %d stalls (together %v), and the load of the machine is %s on %d processors", who, n, length, load(), runtime.NumCPU())
	if overloaded() {
		t.Log(told + ": not judged")
		return
	}
	fails(t, "%s", told)
}

// overloaded reports whether stalls would be the machine's.
func overloaded() bool {
	var recent float64
	_, _ = fmt.Sscan(load(), &recent)
	return recent > float64(overload*runtime.NumCPU())
}

// load is how busy the machine was in the last minute, and in the last five.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:2], " ")
}

// share sums the segment bytes of the viewers by who sent them.
func share(players []*watch.Player, origin string) (boxes, own int64) {
	for _, p := range players {
		for from, n := range p.Report().Bytes {
			if from == origin {
				own += n
			} else {
				boxes += n
			}
		}
	}
	return boxes, own
}

func offload(boxes, own int64) float64 {
	if boxes+own == 0 {
		return 0
	}
	return 1 - float64(own)/float64(boxes+own)
}

// mediaURLs returns the URLs of the media playlists that a playlist leads to: itself, or those
// that it names.
func mediaURLs(t *testing.T, index string) ([]string, error) {
	body, _, err := get(t, index)
	if err != nil {
		return nil, err
	}
	_, multi, err := playlist.Parse(body)
	if err != nil {
		return nil, err
	}
	if multi == nil {
		return []string{index}, nil
	}
	base, err := url.Parse(index)
	if err != nil {
		return nil, err
	}
	var urls []string
	for _, ref := range multi.Playlists() {
		u, err := base.Parse(ref)
		if err != nil {
			return nil, err
		}
		urls = append(urls, u.String())
	}
	return urls, nil
}

// reloads polls the media playlists of a stream as many players do, and holds each against what
// was seen before (playlist.CheckReload).
type reloads struct {
	mu              sync.Mutex
	last            map[string]*playlist.Media
	loads           int
	discontinuities int // newest DISCONTINUITY-SEQUENCE and tags of any rendition
	broken          []error
	refused         []string // answers other than 200 after the first playlist
}

// follow waits for n media playlists and polls them until the test ends.
func follow(t *testing.T, index string, n int) *reloads {
	t.Helper()
	var urls []string
	eventually(t, patience, func() (err error) {
		if urls, err = mediaURLs(t, index); err == nil && len(urls) != n {
			err = fmt.Errorf("%s names %d media playlists, want %d", index, len(urls), n)
		}
		return err
	})
	r := &reloads{last: map[string]*playlist.Media{}}
	var group sync.WaitGroup
	stop := make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		group.Wait()
		for _, err := range r.broken {
			t.Error(err)
		}
	})
	for _, u := range urls {
		group.Go(func() {
			ticker := time.NewTicker(2 * look)
			defer ticker.Stop()
			for {
				r.load(t, u)
				select {
				case <-stop:
					return
				case <-ticker.C:
				}
			}
		})
	}
	return r
}

func (r *reloads) load(t *testing.T, u string) {
	body, _, err := get(t, u)
	r.mu.Lock()
	defer r.mu.Unlock()
	if status := (*statusError)(nil); errors.As(err, &status) && r.last[u] != nil {
		r.refused = append(r.refused, err.Error())
	}
	if err != nil {
		return // the publisher is away; players ask again
	}
	next, err := playlist.ParseMedia(body)
	if err == nil && r.last[u] != nil {
		err = playlist.CheckReload(r.last[u], next)
	}
	if err != nil && len(r.broken) < 10 {
		r.broken = append(r.broken, fmt.Errorf("%s: %w\n%s", u, err, body))
	}
	if next == nil {
		return
	}
	r.last[u] = next
	r.loads++
	count := int(next.DiscontinuitySequence)
	for _, e := range next.Entries {
		if e.Discontinuity {
			count++
		}
	}
	r.discontinuities = max(r.discontinuities, count)
}

// seen returns the newest playlist of each URL.
func (r *reloads) seen() map[string]*playlist.Media {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]*playlist.Media{}
	for u, m := range r.last {
		all[u] = m
	}
	return all
}

// awaitDiscontinuity waits until a playlist has shown more discontinuities than before.
func (r *reloads) awaitDiscontinuity(t *testing.T, before int) {
	t.Helper()
	eventually(t, patience, func() error {
		if n := r.breaks(); n <= before {
			return fmt.Errorf("no playlist has a discontinuity more than the %d before", before)
		}
		return nil
	})
}

func (r *reloads) breaks() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.discontinuities
}
