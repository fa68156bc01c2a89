package testfleet

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/publisher"
)

// relaying starts a fleet in which all boxes are to hold all segments.
func relaying(t *testing.T, boxes int) (*Fleet, *Encoder) {
	t.Helper()
	f := Start(t, Options{
		Boxes: boxes, Replicas: boxes,
		Box: func(_ int, c *box.Config) {
			c.UploadCapacity, c.UploadLimit = config.Fixed(8*config.Mbit), config.Fixed(8*config.Mbit)
		},
		Publisher: func(c *publisher.Config) { c.FirstCopies = 1 },
	})
	e := f.Encoder()
	e.Size = 250_000
	// Until the bitrate is known the publisher sends all copies itself.
	e.Write(1)
	f.holders(e.Segments[0], boxes)
	f.Await("a plan", func() bool {
		s := f.Publisher.Plans()
		return len(s) == 1 && len(s[0].Holders) == boxes
	})
	return f, e
}

// same compares a segment, through each holder's own URL, with what the encoder wrote.
func (f *Fleet) same(s Segment, holders int) {
	f.tb.Helper()
	for _, u := range f.holders(s, holders) {
		if status, body := f.Get(u); status != http.StatusOK || !bytes.Equal(body, s.Content) {
			f.tb.Errorf("%s: status %d, %d bytes", u, status, len(body))
		}
	}
}

// TestBoxesPassSegmentsOn: the publisher sends each segment once, boxes pass it on, and each has the
// bytes.
func TestBoxesPassSegmentsOn(t *testing.T) {
	t.Parallel()
	const boxes, segments = 8, 10
	f, e := relaying(t, boxes)
	before := f.Publisher.Totals().Placing.Sent
	sum := 0
	for range segments {
		e.Write(1)
		s := e.Segments[len(e.Segments)-1]
		f.same(s, boxes)
		sum += len(s.Content)
	}
	sent, passed := f.Publisher.Totals().Placing.Sent-before, int64(0)
	for _, b := range f.Boxes {
		passed += b.Totals().RelayedBytes
	}
	if float64(sent) > 1.15*float64(sum) {
		t.Errorf("the publisher sent %d bytes for segments of %d", sent, sum)
	}
	if want := int64(sum) * (boxes - 1); passed < want || float64(passed) > 1.15*float64(want) {
		t.Errorf("boxes passed on %d bytes, want %d", passed, want)
	}
}

// TestParentsGo: boxes that pass segments on disappear, and their segments reach the others all the
// same.
func TestParentsGo(t *testing.T) {
	t.Parallel()
	const boxes = 7
	f, e := relaying(t, boxes)
	left := boxes
	for range 3 {
		f.Await("a plan without those that went", func() bool { return len(f.Publisher.Plans()[0].Holders) == left })
		root := f.boxOf(f.Publisher.Plans()[0].Holders[0])
		e.Write(1)
		root.Link.Cut() // as if it had crashed, in the middle of what it passes on
		left--
		f.AwaitBoxes(left)
		e.Write(1)
		for _, s := range e.Segments[len(e.Segments)-2:] {
			f.same(s, left)
		}
	}
}

// TestSilentParent: a box that falls silent holds up the others for as long as its silence is not
// noticed, and no longer.
func TestSilentParent(t *testing.T) {
	t.Parallel()
	const boxes = 5
	f, e := relaying(t, boxes)
	root := f.boxOf(f.Publisher.Plans()[0].Holders[0])
	root.Link.Unplug()
	e.Write(1)
	f.same(e.Segments[1], boxes-1)
}

func (f *Fleet) boxOf(id any) *Box {
	for _, b := range f.Boxes {
		if b.ID() == id {
			return b
		}
	}
	f.tb.Fatalf("no box is %v", id)
	return nil
}

// TestOldBoxIsALeaf: a box of the old protocol gets segments from another box, in the publisher's name, and the
// publisher sends nothing more for it.
func TestOldBoxIsALeaf(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{
		Boxes: 2, Replicas: 3,
		Box: func(_ int, c *box.Config) {
			c.UploadCapacity, c.UploadLimit = config.Fixed(8*config.Mbit), config.Fixed(8*config.Mbit)
		},
	})
	old := StartOldBox(t.Context(), t, f.entranceWS(), 500*time.Millisecond)
	f.AwaitBoxes(3)
	e := f.Encoder()
	e.Write(1)
	f.holders(e.Segments[0], 3)
	f.Await("a plan", func() bool {
		s := f.Publisher.Plans()
		return len(s) == 1 && len(s[0].Holders) == 3
	})
	before, sum := f.Publisher.Totals().Placing.Sent, 0
	for range 5 {
		e.Write(1)
		s := e.Segments[len(e.Segments)-1]
		f.same(s, 3)
		if got, ok := old.File("/" + string(f.Publisher.ID()) + string(s.Path())); !ok || !bytes.Equal(got, s.Content) {
			t.Errorf("the old box has %d bytes of %s", len(got), s.Name)
		}
		sum += len(s.Content)
	}
	if sent := f.Publisher.Totals().Placing.Sent - before; float64(sent) > 1.15*float64(sum) {
		t.Errorf("the publisher sent %d bytes for segments of %d", sent, sum)
	}
	for _, err := range old.Errors() {
		t.Error(err)
	}
}
