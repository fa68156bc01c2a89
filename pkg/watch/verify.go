package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/maphash"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"dandelion/pkg/id"
)

const (
	shortDigest  = 12   // hex digits of a digest in a path
	maxPlayed    = 512  // segments of a track that are remembered as played
	maxDigests   = 1024 // answers of a front that are kept
	locateWithin = time.Second
	maxLocated   = 64 << 10
	// After so many answers that tell nothing in a row the front is left alone for a while.
	uselessAnswers = 3
	uselessFor     = time.Minute
)

// verify holds what was received against what the playlist promised. The host that served it has
// no say.
func (t *track) verify(ctx context.Context, it item, u *url.URL, l *load, sum [sha256.Size]byte) {
	again := t.played.add(u.String() + " " + l.span)
	same := sum == t.sum && l.n > 0
	t.sum = sum
	if again || same {
		cause := causeBytes
		if again {
			cause = causeURI
		}
		t.player.count(func(r *Report) { r.Duplicated++ })
		t.player.tell(Event{
			Time: l.began, Event: EventDuplicated, Seconds: seconds(it.Duration.Value), Cause: cause,
			From: hostPort(l.from), URL: u.String(),
		})
	}
	want := ""
	if l.span == "" {
		if want = addressed(u); want == "" {
			want = t.player.digests.of(u.Path, func() (string, error) { return t.player.locate(ctx, it.base, u) })
		}
	}
	switch {
	case want == "" && ctx.Err() != nil:
	case want == "":
		t.player.count(func(r *Report) { r.Unverified++ })
	case !matches(want, sum):
		t.corrupt(it, u, l.from)
	}
}

func (t *track) corrupt(it item, u, from *url.URL) {
	t.player.count(func(r *Report) { r.Corrupt++ })
	t.player.tell(Event{Time: time.Now(), Event: EventCorrupt, Seconds: seconds(it.Duration.Value), From: hostPort(from), URL: u.String()})
}

// matches compares a digest with the hex digits that are known of it.
func matches(want string, sum [sha256.Size]byte) bool {
	return strings.HasPrefix(hex.EncodeToString(sum[:]), want)
}

// addressed returns the beginning of the digest that a content-addressed path names before the
// name; "" where the path promises nothing.
func addressed(u *url.URL) string {
	short := path.Base(path.Dir(u.Path))
	if len(short) != shortDigest || strings.Trim(short, "0123456789abcdef") != "" {
		return ""
	}
	return short
}

// locate asks the front that the playlist came from for a digest.
func (p *Player) locate(ctx context.Context, base, u *url.URL) (string, error) {
	ask := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: "/api/v1/locate", RawQuery: url.Values{"path": {placed(u.Path)}}.Encode()}
	var body bytes.Buffer
	l := &load{url: ask.String(), firstByte: locateWithin, whole: locateWithin, most: maxLocated, to: &body}
	f := l.do(ctx, p.client, p.cfg.UserAgent)
	p.count(func(r *Report) { r.ControlBytes += l.n })
	if f != nil {
		return "", f
	}
	var answer struct {
		Digest string `json:"digest"`
	}
	if err := json.Unmarshal(body.Bytes(), &answer); err != nil {
		return "", err
	}
	digest, err := id.ParseDigest(answer.Digest)
	if err != nil || digest.IsZero() {
		return "", errors.New("no digest")
	}
	return digest.String(), nil
}

// placed is the path under which a front knows a file: without the publisher or /origin before it.
func placed(p string) string {
	first, rest, ok := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	if ok && (first == "origin" || strings.HasPrefix(first, "publisher-")) {
		return "/" + rest
	}
	return p
}

// digests remembers what a front told, so that a thousand viewers ask once. The zero value is
// ready; any goroutine.
type digests struct {
	mu      sync.Mutex
	known   map[string]*digest
	order   []string // oldest first
	useless int      // answers in a row
	until   time.Time
}

type digest struct {
	once sync.Once
	hex  string
}

// of returns the digest of the file at a path, "" when it cannot be known. ask is called at most
// once for a path.
func (d *digests) of(path string, ask func() (string, error)) string {
	d.mu.Lock()
	found := d.known[path]
	if found == nil {
		if time.Now().Before(d.until) {
			d.mu.Unlock()
			return ""
		}
		if d.known == nil {
			d.known = map[string]*digest{}
		}
		if len(d.order) == maxDigests {
			delete(d.known, d.order[0])
			d.order = d.order[1:]
		}
		found = &digest{}
		d.known[path] = found
		d.order = append(d.order, path)
	}
	d.mu.Unlock()
	found.once.Do(func() {
		hex, err := ask()
		d.mu.Lock()
		defer d.mu.Unlock()
		found.hex = hex
		if d.useless++; err == nil {
			d.useless = 0
		}
		if d.useless >= uselessAnswers {
			d.useless, d.until = 0, time.Now().Add(uselessFor)
		}
	})
	return found.hex
}

// history remembers the last maxPlayed names that were added. The zero value is ready.
type history struct {
	seen map[uint64]bool
	ring []uint64 // oldest at next, once it is full
	next int
}

var historySeed = maphash.MakeSeed()

// add adds a name and says whether it was there.
func (h *history) add(name string) bool {
	key := maphash.String(historySeed, name)
	if h.seen[key] {
		return true
	}
	if h.seen == nil {
		h.seen = map[uint64]bool{}
	}
	h.seen[key] = true
	if len(h.ring) < maxPlayed {
		h.ring = append(h.ring, key)
		return false
	}
	delete(h.seen, h.ring[h.next])
	h.ring[h.next] = key
	h.next = (h.next + 1) % maxPlayed
	return false
}
