package watch

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"net/url"
	"slices"
	"time"

	"dandelion/pkg/playlist"
)

// giveUp is when a segment of a playlist that never lets one go is missed.
const giveUp = 30 * time.Second

// need is what a segment cannot be played without: an init segment or a key.
type need struct{ uri, span string }

func needs(e *playlist.Entry) (all []need) {
	if e.Map != nil {
		all = append(all, need{e.Map.URI, span(e.Map.Range)})
	}
	for _, k := range e.Keys {
		if uri, _ := k.Get("URI"); uri != "" {
			all = append(all, need{uri, ""})
		}
	}
	return all
}

func span(r *playlist.Range) string {
	if r == nil {
		return ""
	}
	return fmt.Sprintf("%d-%d", r.Offset, r.Offset+r.Length-1)
}

// play fetches a segment and what it needs, and puts it into the buffer. What cannot be had is
// missed.
func (t *track) play(ctx context.Context, it item) {
	if it.Gap {
		t.missed(it.Duration.Value, causeGap, time.Now(), "", it.URI)
		return
	}
	u, err := resolve(it.base, it.URI)
	if err != nil {
		t.missed(it.Duration.Value, causeFormat, time.Now(), "", it.URI)
		return
	}
	l, sum, f := t.fetchAll(ctx, it, u)
	switch {
	case ctx.Err() != nil:
		return
	case f != nil:
		t.missed(it.Duration.Value, f.cause, f.since, f.host, u.String())
		return
	}
	now := time.Now()
	t.player.count(func(r *Report) { r.Segments++ })
	t.player.change(func(c *clock) turn { return c.receive(t.index, it.Duration.Value, now) })
	t.verify(ctx, it, u, l, sum)
}

// fetchAll fetches a segment, and before it what it needs and what was not fetched for the segment
// before.
func (t *track) fetchAll(ctx context.Context, it item, u *url.URL) (*load, [sha256.Size]byte, *failure) {
	var sum [sha256.Size]byte
	h := sha256.New()
	if all := needs(&it.Entry); !slices.Equal(all, t.has) {
		for _, n := range all {
			from, err := resolve(it.base, n.uri)
			if err != nil || slices.Contains(t.has, n) {
				continue // skd: and data: are the decoder's
			}
			if _, f := t.fetch(ctx, it, from, n.span, 0, h); f != nil {
				return nil, sum, f
			}
			if short := addressed(from); short != "" && n.span == "" && !matches(short, [sha256.Size]byte(h.Sum(nil))) {
				t.corrupt(it, from, from)
			}
		}
		t.has = all
	}
	l, f := t.fetch(ctx, it, u, span(it.Range), it.Duration.Value, h)
	return l, [sha256.Size]byte(h.Sum(nil)), f
}

// fetch gets one file into h, asking again as the policy says while the playlist has the segment.
// plays is its length; 0: none, its pace does not matter.
func (t *track) fetch(ctx context.Context, it item, u *url.URL, span string, plays time.Duration, h hash.Hash) (*load, *failure) {
	p := t.player
	policy := p.cfg.Policy
	rule := policy.Segment.Pace
	var first *failure
	slow := false // it was given up for its pace once
	for failures := 0; ; {
		h.Reset()
		l := &load{url: u.String(), span: span, most: maxSegment, to: h}
		if plays > 0 && !slow && !time.Now().Before(t.pace.rests) {
			l.judged, l.plays = rule.After, max(plays, rule.Shortest)
		}
		f := p.attempt(ctx, l, it.target)
		if ctx.Err() != nil {
			return l, f
		}
		if f == nil {
			if plays > 0 {
				t.pace.loaded(time.Since(l.first), max(plays, rule.Shortest))
			}
			if first != nil {
				p.failedOver(first, l, u)
			}
			return l, nil
		}
		if first == nil {
			first = f
		}
		if f.cause == CauseSlow {
			slow = true
			t.pace.gaveUp(rule, time.Now())
		}
		p.cfg.Log.Debug("a segment was not received", "url", u.Redacted(), "reason", f)
		wait, fatal := policy.Segment.next(f, failures, policy.Restart)
		_, newest, unending := t.listed(it)
		skip := policy.SkipsRefused && !newest && !unending && (fatal || f.refused)
		if f.hopeless || skip || unending && time.Since(first.since)+wait > giveUp {
			return l, first
		}
		if failures++; fatal {
			failures = 0
		}
		if sleep(ctx, wait) != nil {
			return l, f
		}
		if still, _, _ := t.listed(it); !still {
			return l, first
		}
		p.count(func(r *Report) { r.Retries++ })
	}
}

// attempt asks once for a segment.
func (p *Player) attempt(ctx context.Context, l *load, target int) *failure {
	p.mu.Lock()
	l.firstByte, l.whole, l.silence = p.cfg.Policy.Segment.limits(p.patience, target)
	p.mu.Unlock()
	f := l.do(ctx, p.client, p.cfg.UserAgent)
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.n > 0 {
		addBytes(p.report.Bytes, hostPort(l.from), l.n)
	}
	p.report.Redirects += l.hops
	switch {
	case f == nil:
		p.patience = patience{took: l.first.Sub(l.began)}
	case f.timeout:
		p.patience.timeouts++
	}
	if f != nil && ctx.Err() == nil {
		p.trouble = f
	}
	return f
}

// failedOver counts that another attempt succeeded after first.
func (p *Player) failedOver(first *failure, l *load, u *url.URL) {
	took := max(l.first.Sub(first.since), 0)
	p.count(func(r *Report) { r.Failovers.add(first.cause, took) })
	p.tell(Event{
		Time: first.since, Event: EventFailover, Seconds: seconds(took), Cause: first.cause,
		From: first.host, To: hostPort(l.from), URL: u.String(),
	})
}

func (t *track) missed(d time.Duration, cause Cause, since time.Time, from, u string) {
	now := time.Now()
	t.player.count(func(r *Report) { r.Missed++ })
	t.player.tell(Event{Time: since, Event: EventMissed, Seconds: seconds(d), Cause: cause, From: from, URL: u})
	t.player.change(func(c *clock) turn { return c.miss(t.index, d, now) })
}

// waitForRoom waits while the track has enough ahead.
func (t *track) waitForRoom(ctx context.Context) error {
	p := t.player
	p.mu.Lock()
	p.clock.advance(time.Now())
	excess := p.clock.buffered(t.index) - p.cfg.Policy.BufferAhead
	p.mu.Unlock()
	return sleep(ctx, excess)
}
