package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
)

// Bounds of one question.
const (
	readers     = 2 // at a time
	maxReads    = 2_000_000
	readChunk   = 64 // hashes in one pipeline
	maxRows     = 100_000
	readTimeout = 30 * time.Second
)

// By is what Traffic has a row for each of.
type By string

// What there are rows for. A stream is one of a publisher: ByStream has both.
const (
	ByBox       By = "box"
	ByPublisher By = "publisher"
	ByStream    By = "stream"
)

// Query says which traffic is asked for.
type Query struct {
	By By
	// From and To are the first hour and the one behind the last: both are rounded to whole hours, outwards.
	From, To time.Time
	// These, where not empty, leave out all else. Publisher may be Other.
	Box       id.BoxID
	Publisher string
	Stream    string
}

// Row is the traffic of one box, publisher or stream. Without a publisher: paths that are no publisher's, and what
// boxes dropped; without a stream: files that are not live.
type Row struct {
	Box       string `json:"box,omitempty"`
	Publisher string `json:"publisher,omitempty"`
	Stream    string `json:"stream,omitempty"`
	Sums
}

// Traffic is the answer to a Query.
type Traffic struct {
	By     By        `json:"by"`
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	Rows   []Row     `json:"rows"` // most bytes first; at most 100,000
	Totals Sums      `json:"totals"`
	// LeftOut is how many rows are not in Rows; Totals have them.
	LeftOut int `json:"rows_left_out,omitempty"`
}

// Errors of Traffic, which name what to do. Others are Redis' own.
var (
	ErrRange = errors.New("the range cannot be answered")
	ErrBusy  = errors.New("others are reading the accounts: try again in a moment")
)

// Traffic reads the accounts. It takes at most 30 s.
func (l *Ledger) Traffic(ctx context.Context, q Query) (*Traffic, error) {
	from, to := hourOf(q.From), hourOf(q.To.Add(time.Hour-time.Nanosecond))
	now := l.now()
	switch earliest := hourOf(now.Add(-l.cfg.Keep)); {
	case from >= to:
		return nil, fmt.Errorf("%w: from must be before to", ErrRange)
	case from < earliest:
		return nil, fmt.Errorf("%w: accounts are kept for %s (entrance.accounts_keep), so from must not be before %s", ErrRange, days(l.cfg.Keep), hourTime(earliest).Format(time.RFC3339))
	}
	to = max(from+1, min(to, hourOf(now.Add(maxAhead))+1)) // nothing is later
	select {
	case l.reading <- struct{}{}:
		defer func() { <-l.reading }()
	default:
		return nil, ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	boxes := []id.BoxID{q.Box}
	if q.Box == "" {
		var err error
		if boxes, err = l.boxes(ctx, dayOf(from)); err != nil {
			return nil, err
		}
	}
	if reads := int64(len(boxes)) * (dayOf(to-1) - dayOf(from) + 1); reads > maxReads {
		return nil, fmt.Errorf("%w: %d boxes and so many days are too much for one answer: ask for fewer days, or for one box", ErrRange, len(boxes))
	}
	rows := make(map[Row]*Sums)
	t := &Traffic{By: q.By, From: hourTime(from), To: hourTime(to), Rows: []Row{}}
	err := l.read(ctx, boxes, from, to, func(box id.BoxID, c cell, kind string, n int64) {
		if q.Publisher != "" && c.publisher != q.Publisher || q.Stream != "" && c.stream != q.Stream {
			return
		}
		var key Row
		switch q.By {
		case ByBox:
			key.Box = string(box)
		case ByPublisher:
			key.Publisher = c.publisher
		case ByStream:
			key.Publisher, key.Stream = c.publisher, c.stream
		}
		sums := rows[key]
		if sums == nil {
			sums = new(Sums)
			rows[key] = sums
		}
		for _, s := range []*Sums{sums, &t.Totals} {
			sum := s.of(kind)
			*sum = plus(*sum, n)
		}
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: reading took longer than %v: ask for fewer days, or for one box", ErrRange, readTimeout)
		}
		return nil, err
	}
	for key, sums := range rows {
		key.Sums = *sums
		t.Rows = append(t.Rows, key)
	}
	slices.SortFunc(t.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(b.RedirectedBytes, a.RedirectedBytes),
			cmp.Compare(a.Box, b.Box), cmp.Compare(a.Publisher, b.Publisher), cmp.Compare(a.Stream, b.Stream))
	})
	t.LeftOut = max(0, len(t.Rows)-maxRows)
	t.Rows = t.Rows[:len(t.Rows)-t.LeftOut]
	return t, nil
}

func hourTime(hour int64) time.Time { return time.Unix(hour*3600, 0).UTC() }

// days prints a span for people.
func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 && d >= 48*time.Hour {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return fmt.Sprintf("%.0f hours", math.Floor(d.Hours()))
}

// boxes returns those that have accounts of that day or a later one.
func (l *Ledger) boxes(ctx context.Context, day int64) ([]id.BoxID, error) {
	names, err := l.state.ZRangeByScore(ctx, l.keys.Accounts(), &redis.ZRangeBy{Min: strconv.FormatInt(day, 10), Max: "+inf"}).Result()
	if err != nil {
		return nil, err
	}
	boxes := make([]id.BoxID, 0, len(names))
	for _, name := range names {
		if box, err := id.ParseBoxID(name); err == nil {
			boxes = append(boxes, box)
		}
	}
	return boxes, nil
}

// read calls each with every number that the accounts of these boxes have of the hours from ≤ hour < to.
func (l *Ledger) read(ctx context.Context, boxes []id.BoxID, from, to int64, each func(box id.BoxID, c cell, kind string, n int64)) error {
	type hash struct {
		box id.BoxID
		day int64
		cmd *redis.MapStringStringCmd
	}
	var hashes []hash
	pipe := l.state.Pipeline()
	flush := func() error {
		if len(hashes) == 0 {
			return nil
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		for _, h := range hashes {
			for field, text := range h.cmd.Val() {
				c, kind, ok := parseField(h.day, field)
				n, err := strconv.ParseInt(text, 10, 64)
				if ok && err == nil && n >= 0 && from <= c.hour && c.hour < to && new(Sums).of(kind) != nil {
					each(h.box, c, kind, n)
				}
			}
		}
		hashes = hashes[:0]
		return ctx.Err()
	}
	for _, box := range boxes {
		for day := dayOf(from); day <= dayOf(to-1); day++ {
			hashes = append(hashes, hash{box, day, pipe.HGetAll(ctx, l.keys.AccountDay(box, dayName(day)))})
			if len(hashes) == readChunk {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}
