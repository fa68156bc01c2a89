package watch

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"time"

	"dandelion/pkg/playlist"
)

// How far a playlist may fall behind what was seen, in segments, and still be an answer that
// was overtaken; and how far it may jump ahead. Beyond that the publisher lost its state and
// counts anew.
const (
	reordered = 2
	farAhead  = 10_000
)

// loaded is a playlist as it came.
type loaded struct {
	base  *url.URL // after redirects: what its URIs are relative to
	media *playlist.Media
	multi *playlist.Multivariant
	began time.Time
}

// playlist loads one.
func (p *Player) playlist(ctx context.Context, u *url.URL, how Loading) (loaded, *failure) {
	var body bytes.Buffer
	l := &load{url: u.String(), most: playlist.MaxBytes, to: &body}
	l.firstByte, l.whole, l.silence = how.limits(patience{}, 0)
	f := l.do(ctx, p.client, p.cfg.UserAgent)
	got := loaded{base: l.from, began: l.began}
	if f == nil {
		var err error
		if got.media, got.multi, err = playlist.Parse(body.Bytes()); err != nil {
			f = &failure{cause: causeFormat, since: l.began, host: hostPort(l.from), err: err}
		}
	}
	if ctx.Err() != nil {
		return got, f
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.ControlBytes += l.n
	if f != nil {
		p.report.PlaylistFailures++
		p.trouble = f
	}
	return got, f
}

// reload keeps the tracks' playlists up to date until all have ended or ctx ends. One goroutine
// loads them in turn: they come from the same front.
func (p *Player) reload(ctx context.Context, tracks []*track) {
	defer func() {
		for _, t := range tracks {
			t.playlistBack(time.Now())
		}
	}()
	for {
		var next *track
		for _, t := range tracks {
			if !t.ended && (next == nil || t.due.Before(next.due)) {
				next = t
			}
		}
		if next == nil || sleep(ctx, time.Until(next.due)) != nil {
			return
		}
		next.reload(ctx)
		if ctx.Err() != nil {
			return
		}
	}
}

// reload loads the playlist once and says when to load it again.
func (t *track) reload(ctx context.Context) {
	policy := t.player.cfg.Policy
	got, f := t.player.playlist(ctx, t.url, policy.Playlist)
	if ctx.Err() != nil {
		return
	}
	if f == nil && got.media == nil {
		f = &failure{cause: causeFormat, since: got.began, host: hostPort(got.base), err: fmt.Errorf("%s is not a media playlist", t.url.Redacted())}
		t.player.count(func(r *Report) { r.PlaylistFailures++ })
	}
	if f == nil {
		t.playlistBack(time.Now())
		t.take(got)
		return
	}
	t.player.cfg.Log.Debug("a playlist could not be loaded", "url", t.url.Redacted(), "reason", f)
	if t.lost == nil {
		t.lost = f
	}
	wait, fatal := policy.Playlist.next(f, t.failures, policy.Restart)
	if t.failures++; fatal {
		t.failures = 0
	}
	t.due = time.Now().Add(wait)
}

// playlistBack tells of a playlist that was lost.
func (t *track) playlistBack(now time.Time) {
	if t.lost != nil {
		t.player.tell(Event{
			Time: t.lost.since, Event: EventLostPlaylist, Seconds: seconds(now.Sub(t.lost.since)),
			Cause: t.lost.cause, From: t.lost.host, URL: t.url.String(),
		})
	}
	t.lost, t.failures = nil, 0
}

// take makes a playlist the one that is played from.
func (t *track) take(got loaded) {
	m, last := got.media, t.end
	end := m.Sequence + uint64(len(m.Entries))
	// RFC 8216 section 6.3.4: the target duration since the load began, half of it when nothing was new.
	wait := time.Duration(max(m.TargetDuration, 1)) * time.Second
	if t.known && end == last && !m.Ended {
		wait /= 2
	}
	t.due = got.began.Add(wait)
	if t.known && end < last && end+reordered >= last && !m.Ended {
		return
	}
	anew := t.known && (end < last && end+reordered < last || m.Sequence > last+farAhead)
	t.known, t.end, t.ended = true, end, m.Ended

	p := t.player
	p.mu.Lock()
	t.media, t.base = m, got.base
	if anew {
		t.generation++
		p.report.PlaylistFailures++
	}
	p.mu.Unlock()
	if anew {
		p.tell(Event{Time: got.began, Event: EventLostPlaylist, Cause: causeSequence, From: hostPort(got.base), URL: t.url.String()})
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}
