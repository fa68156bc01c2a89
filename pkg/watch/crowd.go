package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"sync"
	"time"
)

const (
	// MaxViewers of one crowd: each takes a few sockets.
	MaxViewers = 10_000
	// startWithin is how long a crowd waits for a playlist.
	startWithin = 30 * time.Second
)

// CrowdConfig says who watches what.
type CrowdConfig struct {
	URL     string
	Viewers int
	For     time.Duration // 0: until ctx ends or the stream is over
	Ramp    time.Duration // over which the viewers start; 0: all at once
	Policy  Policy
	Agent   string    // viewer i is "<Agent> viewer/<i>", from 1 on
	Events  io.Writer // gets the events as JSON lines; nil: not told
	Log     *slog.Logger
}

// Crowd is many viewers of one URL.
type Crowd struct {
	cfg     CrowdConfig
	url     *url.URL
	players []*Player
	events  *eventLog

	mu    sync.Mutex
	began int // viewers
	since time.Time
	until time.Time
}

// NewCrowd returns a crowd that does nothing before Run. Errors name what is wrong with cfg.
func NewCrowd(cfg CrowdConfig) (*Crowd, error) {
	u, err := url.Parse(cfg.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is no URL: %w", cfg.URL, errors.Unwrap(err))
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("%q is no URL of a stream: want http://… or https://…, ending in .m3u8", cfg.URL)
	case cfg.Viewers < 1 || cfg.Viewers > MaxViewers:
		return nil, fmt.Errorf("%d viewers: want 1 to %d", cfg.Viewers, MaxViewers)
	case cfg.For < 0 || cfg.Ramp < 0:
		return nil, errors.New("a time below 0")
	}
	c := &Crowd{cfg: cfg, url: u}
	var tell func(Event)
	if cfg.Events != nil {
		c.events = &eventLog{out: cfg.Events}
		tell = c.events.write
	}
	shared := &digests{}
	for i := range cfg.Viewers {
		p := New(Config{
			URL: cfg.URL, UserAgent: fmt.Sprintf("%s viewer/%d", cfg.Agent, i+1), Policy: cfg.Policy,
			Viewer: i + 1, Events: tell, Log: cfg.Log.With("viewer", i+1),
		})
		p.digests = shared
		c.players = append(c.players, p)
	}
	return c, nil
}

// Run watches until ctx ends, the time is over or the stream is. The error is for people: nobody
// could play, and why, or the events could not be written. Once.
func (c *Crowd) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if c.cfg.For > 0 {
		stop := time.AfterFunc(c.cfg.For, func() { cancel(nil) })
		defer stop.Stop()
	}
	c.mu.Lock()
	c.since = time.Now()
	c.mu.Unlock()
	giveUp := time.AfterFunc(startWithin, func() {
		if !c.any(func(p *Player) bool { return p.found }) {
			cancel(nil)
		}
	})
	defer giveUp.Stop()

	var watching sync.WaitGroup
	failures := make([]error, len(c.players))
	for i, p := range c.players {
		watching.Go(func() {
			if sleep(ctx, time.Duration(i)*c.cfg.Ramp/time.Duration(len(c.players))) != nil {
				return
			}
			c.mu.Lock()
			c.began++
			c.mu.Unlock()
			failures[i] = p.Run(ctx)
		})
	}
	watching.Wait()
	c.mu.Lock()
	c.until = time.Now()
	c.mu.Unlock()
	return errors.Join(c.verdict(failures), c.eventsFailure())
}

// verdict says why nobody played; nil when somebody did.
func (c *Crowd) verdict(failures []error) error {
	if c.any(func(p *Player) bool { return p.clock.started }) {
		return nil
	}
	where, took := c.url.Redacted(), c.elapsed().Round(time.Second/10)
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	reason := "no answer came in that time"
	for _, p := range c.players {
		if err := p.why(); err != nil {
			reason = err.Error()
			break
		}
	}
	if !c.any(func(p *Player) bool { return p.found }) {
		return fmt.Errorf("%s gave no playlist within %v: %s", where, took, reason)
	}
	return fmt.Errorf("%s has a playlist, but within %v no segment of it could be received: %s", where, took, reason)
}

func (c *Crowd) eventsFailure() error {
	if c.events == nil {
		return nil
	}
	return c.events.failure()
}

// any asks the players, each under its lock.
func (c *Crowd) any(is func(*Player) bool) bool {
	for _, p := range c.players {
		p.mu.Lock()
		found := is(p)
		p.mu.Unlock()
		if found {
			return true
		}
	}
	return false
}

func (c *Crowd) elapsed() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.since.IsZero():
		return 0
	case c.until.IsZero():
		return time.Since(c.since)
	}
	return c.until.Sub(c.since)
}

// Origin is the host:port of the URL: bytes from there did not come from a box.
func (c *Crowd) Origin() string { return hostPort(c.url) }

// Summary returns what was seen so far; any goroutine.
func (c *Crowd) Summary() Summary {
	c.mu.Lock()
	began := c.began
	c.mu.Unlock()
	reports := make([]Report, 0, len(c.players))
	for _, p := range c.players {
		reports = append(reports, p.Report())
	}
	s := summarize(reports, began)
	s.URL, s.Policy, s.Viewers, s.Seconds = c.url.Redacted(), c.cfg.Policy.Name, c.cfg.Viewers, seconds(c.elapsed())
	for _, p := range c.players {
		if err := p.why(); err != nil {
			s.Trouble = err.Error()
			break
		}
	}
	return s
}
