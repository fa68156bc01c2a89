package saving

import (
	"strings"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// Book has a meter for each of a publisher's streams, and one for all other files. It is for any
// goroutine.
type Book struct {
	streams map[id.StreamName]*Meter // never changed
	files   *Meter
}

// NewBook returns a book that counts from start on.
func NewBook(start time.Time, streams ...id.StreamName) *Book {
	b := &Book{streams: map[id.StreamName]*Meter{}, files: newMeter(start)}
	for _, name := range streams {
		b.streams[name] = newMeter(start)
	}
	return b
}

// Of returns the meter of a file: its stream's where it belongs to a live one.
func (b *Book) Of(path id.Path) *Meter {
	seg, _ := id.ParseSegmentPath(path)
	return b.Stream(seg.Stream)
}

// OfRendition returns the meter of "<stream>/<rendition>", or of files that are not live for "".
func (b *Book) OfRendition(rendition string) *Meter {
	stream, _, _ := strings.Cut(rendition, "/")
	return b.Stream(id.StreamName(stream))
}

// Stream returns the meter of a stream; of another name that of files that are not live.
func (b *Book) Stream(name id.StreamName) *Meter {
	if m := b.streams[name]; m != nil {
		return m
	}
	return b.files
}

// Total returns what all meters counted since the start.
func (b *Book) Total() Bytes {
	total := b.files.Total()
	for _, m := range b.streams {
		total = total.plus(m.Total())
	}
	return total
}

// TakeRedirects returns what viewers were sent to boxes for since the call before, each box and stream
// once, in no order. What was sent back meanwhile is not in it.
func (b *Book) TakeRedirects(now time.Time) []wire.Redirected {
	list := b.files.take(nil, "", now)
	for name, m := range b.streams {
		list = m.take(list, name, now)
	}
	return list
}

// Lost returns how many redirects are missing from TakeRedirects because they led to more boxes than a
// meter remembers.
func (b *Book) Lost() int64 {
	lost := func(m *Meter) int64 {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.lost
	}
	n := lost(b.files)
	for _, m := range b.streams {
		n += lost(m)
	}
	return n
}
