// Package watch plays an HLS stream as a viewer's player does, without decoding it: it follows
// playlists and redirects (RFC 8216 section 6.3), asks again as its policy says, keeps a buffer
// model, and counts what a viewer would notice and where the bytes came from; for one viewer
// (Player) or many (Crowd). It knows HLS and HTTP, and of a Dandelion front only that a path may
// name its digest and that /api/v1/locate tells digests; nothing of boxes or publishers.
package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// malformedPlaylists in a row end a player: the URL is something else.
const malformedPlaylists = 3

// Config of a viewer.
type Config struct {
	URL       string      // http or https, of the multivariant or media playlist
	UserAgent string      // tells viewers of one address apart
	Policy    Policy      // zero: Dandelion
	Viewer    int         // in events
	Events    func(Event) // nil: not told; called from the player's goroutines, perhaps at once
	Log       *slog.Logger
}

// Player is one viewer. It has at most three goroutines, and connections of its own.
type Player struct {
	cfg     Config
	client  *http.Client
	digests *digests

	mu       sync.Mutex // guards everything below, and the tracks' state
	report   Report
	clock    clock
	found    bool // a playlist that can be played
	stopped  bool // Run is over
	trouble  error
	patience patience
}

// New returns a player that does nothing before Run.
func New(cfg Config) *Player {
	if cfg.Policy.Name == "" {
		cfg.Policy = Dandelion
	}
	return &Player{
		cfg:     cfg,
		client:  &http.Client{Transport: newTransport(), CheckRedirect: follow},
		digests: &digests{},
		report:  Report{Bytes: map[string]int64{}},
	}
}

// Run watches until ctx ends, or until the stream is over and played; then it returns nil. A
// stream that is not there yet is waited for. The error says why the URL cannot be played. Once.
func (p *Player) Run(ctx context.Context) error {
	defer p.client.CloseIdleConnections()
	begin := time.Now()
	p.mu.Lock()
	p.clock = newClock(0, begin)
	p.mu.Unlock()
	defer p.stop()
	tracks, err := p.open(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	p.mu.Lock()
	p.clock = newClock(len(tracks), begin)
	p.found = true
	p.mu.Unlock()

	var fetching sync.WaitGroup
	for _, t := range tracks {
		fetching.Go(func() { t.run(ctx) })
	}
	p.reload(ctx, tracks)
	fetching.Wait()
	p.playOut(ctx)
	return nil
}

func (p *Player) stop() {
	now := time.Now()
	p.change(func(c *clock) turn {
		p.stopped = true
		return c.stop(now)
	})
}

// playOut plays what is buffered at the end of a stream.
func (p *Player) playOut(ctx context.Context) {
	p.mu.Lock()
	p.clock.advance(time.Now())
	left := p.clock.left()
	p.mu.Unlock()
	_ = sleep(ctx, left)
}

// open loads what the URL leads to, as often as it takes.
func (p *Player) open(ctx context.Context) ([]*track, error) {
	first, err := url.Parse(p.cfg.URL)
	if err != nil {
		return nil, err
	}
	failures, malformed := 0, 0
	for {
		got, f := p.playlist(ctx, first, p.cfg.Policy.Manifest)
		switch {
		case f == nil && got.media != nil:
			t := newTrack(p, 0, first)
			t.take(got)
			return []*track{t}, nil
		case f == nil:
			return p.chosen(got.base, got.multi)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		if malformed++; f.cause != causeFormat {
			malformed = 0
		}
		if malformed == malformedPlaylists {
			return nil, fmt.Errorf("%s is no HLS playlist: %w", first.Redacted(), f)
		}
		p.cfg.Log.Debug("no playlist yet", "url", first.Redacted(), "reason", f)
		wait, fatal := p.cfg.Policy.Manifest.next(f, failures, p.cfg.Policy.Restart)
		if failures++; fatal {
			failures = 0
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// change applies something to the clock and tells what became of it.
func (p *Player) change(do func(*clock) turn) {
	p.mu.Lock()
	turned := do(&p.clock)
	p.mu.Unlock()
	if turned.event != "" {
		p.tell(Event{Time: turned.since, Event: turned.event, Seconds: seconds(turned.length)})
	}
}

func (p *Player) tell(e Event) {
	if p.cfg.Events != nil {
		e.Viewer = p.cfg.Viewer
		p.cfg.Events(e)
	}
}

// count changes the report.
func (p *Player) count(do func(*Report)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do(&p.report)
}

// why is the last reason for which nothing could be played; nil when there was none.
func (p *Player) why() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trouble
}

var errNoVariant = errors.New("the playlist names no variant")
