//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/playlist"
)

// ledger knows what boxes acknowledged. It is written from what the publisher tells viewers, and
// compared with what each box then serves itself.
type ledger struct {
	t      *testing.T
	fleet  *fleet
	client *http.Client // asks boxes

	mu    sync.Mutex
	files map[string]*ledgerFile
	loads int
}

type ledgerFile struct {
	path, digest string
	size         int64
	seen         time.Time
	until        time.Time         // a box may forget it then; zero: never
	copies       map[string]string // box by address to its own URL
	recheck      bool              // holders may still come
	stays        bool              // until a box needs the room
	gone         map[string]bool   // boxes that may have needed it, and have not shown since that they hold it
}

// Of a live segment: how long boxes keep it, and how much older than its first sight in a playlist
// it may be.
const (
	liveTTL   = time.Minute
	lateSight = 15 * time.Second
)

func newLedger(t *testing.T, fleet *fleet, client *http.Client) *ledger {
	return &ledger{t: t, fleet: fleet, client: client, files: map[string]*ledgerFile{}}
}

// add enters an uploaded file, which the publisher must know from now on.
// until is zero for one that stays until a box needs the room.
func (l *ledger) add(path, digest string, size int64, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files[path] = &ledgerFile{
		path: path, digest: digest, size: size, seen: time.Now(), until: until,
		copies: map[string]string{}, gone: map[string]bool{}, recheck: true, stays: until.IsZero(),
	}
}

// needsRoom forgives a box the files that stay until it needs the room: its disk was full.
func (l *ledger) needsRoom(box string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.files {
		if _, held := f.copies[box]; held && f.stays {
			f.gone[box] = true
			delete(f.copies, box)
		}
	}
}

// settle enters what a copy turned out to be, so that one that is not there counts once.
func (l *ledger) settle(c ledgerCopy, there bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.files[c.path]
	if f.gone[c.box] = !there; !there {
		delete(f.copies, c.box)
	}
}

// keep looks once a second until ctx ends.
func (l *ledger) keep(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		err := l.look(ctx)
		l.mu.Lock()
		if err == nil {
			l.loads++
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// look enters the segments of the playlist, and where all recent files are.
func (l *ledger) look(ctx context.Context) error {
	index := l.fleet.index()
	body, _, err := fetch(ctx, l.fleet.client, index)
	if err != nil {
		return err
	}
	media, _, err := playlist.Parse(body)
	if err != nil || media == nil {
		return fmt.Errorf("%s is no media playlist: %v", index, err)
	}
	base, err := url.Parse(index)
	if err != nil {
		return err
	}
	now := time.Now()
	l.mu.Lock()
	for _, e := range media.Entries {
		u, err := base.Parse(e.URI)
		if err == nil && !e.Gap && l.files[u.Path] == nil {
			l.files[u.Path] = &ledgerFile{
				path: u.Path, seen: now, until: now.Add(liveTTL - lateSight),
				copies: map[string]string{}, gone: map[string]bool{}, recheck: true,
			}
		}
	}
	var recent []string
	for path, f := range l.files {
		if f.recheck {
			recent = append(recent, path)
		}
	}
	l.mu.Unlock()
	for _, path := range recent {
		if err := l.locate(ctx, path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// locate enters where the publisher sends viewers of a file: to boxes that acknowledged it.
func (l *ledger) locate(ctx context.Context, path string) error {
	told, err := fetchJSON[located](ctx, l.fleet.client, l.fleet.publisher.url()+"/api/v1/locate?path="+url.QueryEscape(path))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.files[path]
	if f.digest == "" {
		f.digest, f.size = told.Digest, told.Size
	} else if told.Digest != "" && told.Digest != f.digest || told.Size != f.size { // without one: no box holds it
		fails(l.t, "%s has digest %s and %d bytes, and was acknowledged with %s and %d", path, told.Digest, told.Size, f.digest, f.size)
	}
	for _, text := range told.URLs {
		if u, err := url.Parse(text); err == nil && l.fleet.box(u.Host) != nil {
			f.copies[u.Host] = text
		}
	}
	if !f.until.IsZero() && time.Since(f.seen) > lateSight {
		f.recheck = false
	}
	return nil
}

// ledgerCopy is a file at a box.
type ledgerCopy struct {
	ledgerFile
	box, url  string
	mayBeGone bool
}

// copies returns what a box must still have at a time; "": of all boxes.
func (l *ledger) copies(box string, at time.Time) []ledgerCopy {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []ledgerCopy
	for _, f := range l.files {
		if !f.until.IsZero() && f.until.Before(at) {
			continue
		}
		for holder, u := range f.copies {
			if box == "" || box == holder {
				list = append(list, ledgerCopy{*f, holder, u, f.gone[holder]})
			}
		}
	}
	slices.SortFunc(list, func(a, b ledgerCopy) int { return a.until.Compare(b.until) })
	return list
}

// comparison is how many copies were compared, and what was wrong with how many.
type comparison struct {
	compared, lost, corrupt int
	listed                  int      // gone as it may be, and viewers are still sent there
	what                    []string // is wrong
}

func (c *comparison) add(other comparison) {
	c.compared += other.compared
	c.lost += other.lost
	c.corrupt += other.corrupt
	c.listed += other.listed
	c.what = append(c.what, other.what...)
}

// compareWithin is how long all copies of a box may take to be fetched: it is broken again no sooner.
const compareWithin = chaosSettle

// compare fetches from a box itself what it acknowledged and must still have. With again the box may be
// broken again after compareWithin, and what fails from then on says nothing.
func (l *ledger) compare(box string, again bool) comparison {
	var c comparison
	began, late := time.Now(), 0
	for _, f := range l.copies(box, began.Add(compareWithin)) {
		over := func() bool {
			now := time.Now()
			return again && now.Sub(began) > compareWithin || !f.until.IsZero() && now.After(f.until)
		}
		if over() {
			late++
			continue
		}
		wrong, corrupt := l.fetchCopy(f)
		if wrong != nil && !corrupt && over() {
			late++
			continue
		}
		c.compared++
		l.settle(f, wrong == nil)
		switch {
		case wrong == nil:
			continue
		case corrupt:
			c.corrupt++
		case f.mayBeGone:
			c.listed++
		default:
			c.lost++
		}
		c.what = append(c.what, fmt.Sprintf("at %s: %v", time.Now().Format(time.TimeOnly), wrong))
	}
	if late > 0 {
		l.t.Logf("not judged (the machine is slow): %d of %d copies at %s were not compared in time", late, late+c.compared, box)
	}
	return c
}

// fetchCopy returns what is wrong with a copy, and whether other bytes came. A line that loses
// packets gets three chances.
func (l *ledger) fetchCopy(f ledgerCopy) (wrong error, corrupt bool) {
	for range 3 {
		body, _, err := fetch(l.t.Context(), l.client, f.url)
		if status := (*statusError)(nil); errors.As(err, &status) && status.status != http.StatusServiceUnavailable {
			return err, false
		}
		if err == nil {
			if got := id.DigestOf(body).String(); got != f.digest || int64(len(body)) != f.size {
				return fmt.Errorf("digest %s and %d bytes, acknowledged were %s and %d", got, len(body), f.digest, f.size), true
			}
			return nil, false
		}
		wrong = err
	}
	return wrong, false
}
