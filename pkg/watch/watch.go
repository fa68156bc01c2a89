// Package watch plays an HLS stream as a viewer's player does, without decoding it: it follows
// playlists and redirects, keeps a buffer model, and counts what a viewer would notice and
// where the bytes came from. It knows HLS and HTTP, nothing of boxes or publishers.
package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"sync"
	"time"

	"dandelion/pkg/playlist"
)

// How a player behaves (RFC 8216 section 6.3, and the project's own page).
const (
	startTargets   = 3           // begin so many target durations before the end
	firstByte      = time.Second // or the front is asked again
	attempts       = 4           // for a segment, then it is missed
	retryPlaylist  = 500 * time.Millisecond
	bufferAhead    = 30 * time.Second // no more is fetched ahead
	maxSegment     = 256 << 20
	playlistWithin = 5 * time.Second
)

// Config of a viewer.
type Config struct {
	URL       string // of the multivariant or media playlist
	UserAgent string // tells viewers of one address apart
	Log       *slog.Logger
}

// Report is what the viewer saw so far.
type Report struct {
	Startup      time.Duration    // from the start to the first segment of each track
	Played       time.Duration    // of media
	Stalls       int              // times that the buffer ran empty
	Stalled      time.Duration    // for how long altogether
	Segments     int              // received whole
	Missed       int              // gaps, and segments that no host delivered
	Corrupt      int              // whose bytes are not those that their path names
	Redirects    int              // followed for segments
	Retries      int              // attempts that failed
	Bytes        map[string]int64 // of segments, by the host (with port) that sent them
	ControlBytes int64            // of playlists
}

// Player is one viewer.
type Player struct {
	cfg    Config
	client *http.Client

	mu     sync.Mutex
	report Report
	clock  clock
}

// New returns a player that does nothing before Run.
func New(cfg Config) *Player {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = firstByte
	transport.Proxy = nil
	return &Player{cfg: cfg, client: &http.Client{Transport: transport}, report: Report{Bytes: map[string]int64{}}}
}

// Report returns what was seen so far; any goroutine.
func (p *Player) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock.advance(time.Now())
	r := p.report
	r.Bytes = maps.Clone(r.Bytes)
	r.Startup, r.Played, r.Stalls, r.Stalled = p.clock.startup, p.clock.played, p.clock.stalls, p.clock.stalled
	return r
}

// Run watches until ctx ends or the stream is over; then it returns nil. A stream that is not
// there yet is waited for.
func (p *Player) Run(ctx context.Context) error {
	defer p.client.CloseIdleConnections()
	p.mu.Lock()
	p.clock.begin(time.Now())
	p.mu.Unlock()
	urls, err := p.tracks(ctx)
	if err != nil {
		return ignoreEnd(ctx, err)
	}
	p.mu.Lock()
	p.clock.buffered = make([]time.Duration, len(urls))
	p.clock.finished = make([]bool, len(urls))
	p.mu.Unlock()
	var group sync.WaitGroup
	failures := make([]error, len(urls))
	for i, u := range urls {
		group.Go(func() {
			t := &track{player: p, index: i, url: u}
			failures[i] = t.run(ctx)
		})
	}
	group.Wait()
	return ignoreEnd(ctx, errors.Join(failures...))
}

func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// tracks returns the media playlists that are played: the first variant and the default
// rendition of its audio group.
func (p *Player) tracks(ctx context.Context) ([]string, error) {
	for {
		_, multi, err := p.playlist(ctx, p.cfg.URL)
		switch {
		case err == nil && multi == nil:
			return []string{p.cfg.URL}, nil
		case err == nil:
			return chosenTracks(p.cfg.URL, multi)
		}
		p.cfg.Log.Debug("no playlist yet", "url", p.cfg.URL, "reason", err)
		if err := sleep(ctx, retryPlaylist); err != nil {
			return nil, err
		}
	}
}

func chosenTracks(base string, multi *playlist.Multivariant) ([]string, error) {
	var urls []string
	group := ""
	add := func(uri string) error {
		u, err := resolve(base, uri)
		urls = append(urls, u)
		return err
	}
	for _, t := range multi.Tags {
		if t.Name == "EXT-X-STREAM-INF" && len(urls) == 0 {
			group, _ = t.Attrs.Get("AUDIO")
			if err := add(t.URI); err != nil {
				return nil, err
			}
		}
	}
	for _, t := range multi.Tags {
		id, _ := t.Attrs.Get("GROUP-ID")
		kind, _ := t.Attrs.Get("TYPE")
		if t.Name == "EXT-X-MEDIA" && kind == "AUDIO" && id == group && group != "" && t.URI != "" {
			return urls, add(t.URI)
		}
	}
	if len(urls) == 0 {
		return nil, fmt.Errorf("%s names no variant", base)
	}
	return urls, nil
}

func resolve(base, ref string) (string, error) {
	b, err := url.Parse(base)
	if err != nil {
		return "", err
	}
	u, err := b.Parse(ref)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}

func (p *Player) playlist(ctx context.Context, u string) (*playlist.Media, *playlist.Multivariant, error) {
	ctx, cancel := context.WithTimeout(ctx, playlistWithin)
	defer cancel()
	resp, err := p.get(ctx, u, "")
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, playlist.MaxBytes+1))
	if err != nil {
		return nil, nil, err
	}
	p.mu.Lock()
	p.report.ControlBytes += int64(len(b))
	p.mu.Unlock()
	return playlist.Parse(b)
}

func (p *Player) get(ctx context.Context, u, span string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	if p.cfg.UserAgent != "" {
		req.Header.Set("User-Agent", p.cfg.UserAgent)
	}
	if span != "" {
		req.Header.Set("Range", "bytes="+span)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		resp.Body.Close()
		return nil, fmt.Errorf("%s answered %s", resp.Request.URL, resp.Status)
	}
	return resp, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
