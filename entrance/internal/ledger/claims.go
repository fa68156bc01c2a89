package ledger

import (
	"context"
	"fmt"
	"time"

	"dandelion/pkg/id"
)

const (
	claimHours  = 24
	claimsEvery = time.Minute
	claimsShare = 10 // reading for it takes at most a tenth of the time

	// A claim may exceed the redirects by a tenth, and by what the two may travel apart.
	claimSlack      = 64 << 20
	maxReporters    = 100_000
	hoursInClaims   = claimHours + 1 // the running one and 24 whole ones
	claimsTimeout   = time.Minute
	claimTolerance  = 10 // percent
	noReporterKnown = int64(1) << 62
)

// Claim is what a box says that it delivered in the last 24 whole hours and the running one, beside what
// publishers say that they sent viewers there for.
type Claim struct {
	Bytes      int64 `json:"bytes"`
	Deliveries int64 `json:"deliveries"`
	// Compared are the bytes of publishers that report redirects, without those of failed deliveries.
	Compared   int64 `json:"compared_bytes"`
	Redirected int64 `json:"redirected_bytes"`
	// Late are bytes that the box told of in that time and dates further back: nobody compares them.
	Late int64 `json:"late_bytes"`
}

// Exceeds reports whether the box claims more than 10 % and 64 MiB above what publishers say, or dates more than
// 64 MiB back.
func (c Claim) Exceeds() bool { return c.aboveRedirects() || c.Late > claimSlack }

func (c Claim) aboveRedirects() bool {
	over := c.Compared - c.Redirected
	return over > claimSlack && over > c.Redirected/100*claimTolerance
}

// Reason says in one sentence why the box is marked; "" where it is not.
func (c Claim) Reason() string {
	switch {
	case c.aboveRedirects():
		return fmt.Sprintf("in the last %d hours it claims %s that publishers should know of; they sent it viewers for %s", claimHours, mega(c.Compared), mega(c.Redirected))
	case c.Late > claimSlack:
		return fmt.Sprintf("in the last %d hours it told of %s that it dates further back, so that they cannot be compared; that is right only where it could not reach this entrance for so long", claimHours, mega(c.Late))
	}
	return ""
}

func mega(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }

// claims are those of all boxes, never changed.
type claims struct {
	at        time.Time
	boxes     map[id.BoxID]Claim
	reporters map[string]reporter
}

// reporter is what is known of a publisher by the accounts of the hours that are looked at.
type reporter struct {
	redirects  int64 // its first hour with redirects
	deliveries int64 // the first hour with deliveries of it
}

// since is the hour from which on the publisher's deliveries are compared. One that delivered before it
// reported began to report (a newer version), in the midst of an hour.
func (r reporter) since() int64 {
	if r.deliveries < r.redirects && r.redirects != noReporterKnown {
		return r.redirects + 1
	}
	return r.redirects
}

// Claim returns that of a box, at most a minute or so old; false: it has no accounts in that time.
func (l *Ledger) Claim(box id.BoxID) (Claim, bool) {
	c, ok := l.claims.Load().boxes[box]
	return c, ok
}

// runClaims refreshes the claims until ctx ends.
func (l *Ledger) runClaims(ctx context.Context) {
	for ctx.Err() == nil {
		begin := time.Now()
		switch err := l.refreshClaims(ctx); {
		case err == nil:
			l.redisAnswers()
		case ctx.Err() == nil:
			l.redisFailed("comparing claims", err)
		}
		wait(ctx, max(claimsEvery, claimsShare*time.Since(begin)))
	}
}

// refreshClaims reads the accounts of the last hours and compares. Who reports redirects is known when all was
// read: it reads again when that is others than before.
func (l *Ledger) refreshClaims(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimsTimeout)
	defer cancel()
	for range 2 {
		before := l.claims.Load()
		next, err := l.compare(ctx, before.reporters)
		if err != nil {
			return err
		}
		l.claims.Store(next)
		if sameReporters(before.reporters, next.reporters) {
			return nil
		}
	}
	return nil
}

// compare reads once, with reporters as they are known.
func (l *Ledger) compare(ctx context.Context, known map[string]reporter) (*claims, error) {
	now := l.now()
	from, to := hourOf(now)-claimHours, hourOf(now.Add(maxAhead))+1
	boxes, err := l.boxes(ctx, dayOf(from))
	if err != nil {
		return nil, err
	}
	next := &claims{at: now, boxes: make(map[id.BoxID]Claim, len(boxes)), reporters: make(map[string]reporter)}
	err = l.read(ctx, boxes, from, to, func(box id.BoxID, c cell, kind string, n int64) {
		next.learn(c, kind)
		r, reports := known[c.publisher]
		compared := reports && c.hour >= r.since()
		claim := next.boxes[box]
		switch kind {
		case kindDeliveries:
			claim.Deliveries = plus(claim.Deliveries, n)
		case kindBytes:
			claim.Bytes = plus(claim.Bytes, n)
			if compared {
				claim.Compared = plus(claim.Compared, n)
			}
		case kindLateBytes:
			claim.Late = plus(claim.Late, n)
		case kindFailedBytes:
			if compared {
				claim.Compared -= n
			}
		case kindRedirectedBytes:
			if compared {
				claim.Redirected = plus(claim.Redirected, n)
			}
		}
		next.boxes[box] = claim
	})
	return next, err
}

// learn notes what a number of the accounts says of its publisher.
func (c *claims) learn(at cell, kind string) {
	if at.publisher == "" || at.publisher == Other || kind != kindDeliveries && kind != kindRedirects {
		return
	}
	r, known := c.reporters[at.publisher]
	if !known {
		if len(c.reporters) >= maxReporters {
			return
		}
		r = reporter{noReporterKnown, noReporterKnown}
	}
	if kind == kindRedirects {
		r.redirects = min(r.redirects, at.hour)
	} else {
		r.deliveries = min(r.deliveries, at.hour)
	}
	c.reporters[at.publisher] = r
}

// sameReporters reports whether the same deliveries are compared with both.
func sameReporters(a, b map[string]reporter) bool {
	for _, pair := range [][2]map[string]reporter{{a, b}, {b, a}} {
		for publisher, r := range pair[0] {
			other, known := pair[1][publisher]
			if !known {
				other = reporter{noReporterKnown, noReporterKnown}
			}
			if r.since() != other.since() {
				return false
			}
		}
	}
	return true
}
