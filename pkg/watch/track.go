package watch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"path"
	"strings"
	"time"

	"dandelion/pkg/playlist"
)

// track follows one media playlist and fetches its segments in order.
type track struct {
	player *Player
	index  int
	url    string

	next    uint64 // MEDIA-SEQUENCE number
	started bool
	inits   map[string]bool // init segments that were fetched
}

func (t *track) run(ctx context.Context) error {
	t.inits = map[string]bool{}
	var previous *playlist.Media
	for {
		loaded := time.Now()
		media, _, err := t.player.playlist(ctx, t.url)
		switch {
		case err == nil && media == nil:
			return fmt.Errorf("%s is not a media playlist", t.url)
		case err != nil:
			t.player.cfg.Log.Debug("a playlist could not be loaded", "url", t.url, "reason", err)
			if err := sleep(ctx, retryPlaylist); err != nil {
				return err
			}
			continue
		}
		if err := t.follow(ctx, media); err != nil {
			return err
		}
		if media.Ended {
			t.player.finish(t.index)
			return nil
		}
		// RFC 8216 section 6.3.4: the target duration, or half of it when nothing was new.
		wait := time.Duration(media.TargetDuration) * time.Second
		if previous != nil && end(previous) == end(media) {
			wait /= 2
		}
		previous = media
		if err := sleep(ctx, time.Until(loaded.Add(wait))); err != nil {
			return err
		}
	}
}

func end(m *playlist.Media) uint64 { return m.Sequence + uint64(len(m.Entries)) }

// follow fetches what is new in a playlist.
func (t *track) follow(ctx context.Context, m *playlist.Media) error {
	if !t.started && len(m.Entries) > 0 {
		t.next = startAt(m)
		t.started = true
	}
	if t.next < m.Sequence {
		t.player.missed(int(m.Sequence - t.next))
		t.next = m.Sequence
	}
	for t.started && t.next < end(m) {
		e := m.Entries[t.next-m.Sequence]
		if err := t.play(ctx, e); err != nil {
			return err
		}
		t.next++
		if err := t.player.waitForRoom(ctx, t.index); err != nil {
			return err
		}
	}
	return nil
}

// startAt is three target durations before the end (RFC 8216 section 6.3.3), the beginning of
// an ended playlist.
func startAt(m *playlist.Media) uint64 {
	if m.Ended {
		return m.Sequence
	}
	i := len(m.Entries)
	for left := startTargets * time.Duration(m.TargetDuration) * time.Second; i > 0 && left > 0; {
		i--
		left -= m.Entries[i].Duration.Value
	}
	return m.Sequence + uint64(i)
}

func (t *track) play(ctx context.Context, e playlist.Entry) error {
	if e.Gap {
		t.player.missed(1)
		t.player.buffer(t.index, e.Duration.Value)
		return nil
	}
	if e.Map != nil && !t.inits[e.Map.URI] {
		if err := t.fetch(ctx, e.Map.URI, e.Map.Range); err != nil {
			return err
		}
		t.inits[e.Map.URI] = true
	}
	if err := t.fetch(ctx, e.URI, e.Range); err != nil {
		return err
	}
	t.player.buffer(t.index, e.Duration.Value)
	return nil
}

// fetch gets a segment; when no attempt succeeds it is missed. The error is ctx's.
func (t *track) fetch(ctx context.Context, uri string, span *playlist.Range) error {
	u, err := resolve(t.url, uri)
	if err != nil {
		t.player.missed(1)
		return nil
	}
	for range attempts {
		err := t.attempt(ctx, u, span)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		t.player.cfg.Log.Debug("a segment was not received; asking again", "url", u, "reason", err)
		t.player.retried()
	}
	t.player.missed(1)
	return nil
}

func (t *track) attempt(ctx context.Context, u string, span *playlist.Range) error {
	bytes := ""
	if span != nil {
		bytes = fmt.Sprintf("%d-%d", span.Offset, span.Offset+span.Length-1)
	}
	resp, err := t.player.get(ctx, u, bytes)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, io.LimitReader(resp.Body, maxSegment))
	t.player.received(u, resp.Request.URL, n, err == nil)
	if err == nil && span == nil && !matches(u, hash.Sum(nil)) {
		t.player.corrupt()
	}
	return err
}

// matches compares the digest with the one that a content-addressed path has before the name:
// 12 hex digits. Other paths promise nothing.
func matches(u string, sum []byte) bool {
	parsed, err := url.Parse(u)
	if err != nil {
		return true
	}
	short := path.Base(path.Dir(parsed.Path))
	if len(short) != 12 || strings.Trim(short, "0123456789abcdef") != "" {
		return true
	}
	return hex.EncodeToString(sum)[:12] == short
}
