package testfleet

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"dandelion/box"
	"dandelion/pkg/playlist"
	"dandelion/pkg/watch"
	"dandelion/pkg/wire"
	"dandelion/publisher"
)

// holders waits until so many boxes hold the segment and returns their URLs of it.
func (f *Fleet) holders(s Segment, n int) []string {
	f.tb.Helper()
	var urls []string
	f.Await(fmt.Sprintf("%d holders of %s", n, s.Name), func() bool {
		urls = f.Locate(s.Path()).Holders()
		return len(urls) == n
	})
	return urls
}

func (f *Fleet) media() *playlist.Media {
	status, body := f.Get(f.Publisher.URL() + "/live/demo/index.m3u8")
	if status != http.StatusOK {
		return nil
	}
	m, err := playlist.ParseMedia(body)
	if err != nil {
		f.tb.Fatalf("%v:\n%s", err, body)
	}
	return m
}

// shown waits until the segment is the last of the playlist, and returns the playlist.
func (f *Fleet) shown(s Segment) *playlist.Media {
	f.tb.Helper()
	var m *playlist.Media
	f.Await(s.Name+" at the end of the playlist", func() bool {
		m = f.media()
		return m != nil && strings.HasSuffix(m.Entries[len(m.Entries)-1].URI, s.Digest().Short()+"/"+s.Name)
	})
	return m
}

// TestEachHolderHasTheBytes compares every segment, through each holder's own URL, with what the
// encoder wrote; and the playlist names them all.
func TestEachHolderHasTheBytes(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 4, Replicas: 2})
	e := f.Encoder()
	e.Write(8)
	for _, s := range e.Segments {
		for _, u := range f.holders(s, 2) {
			if status, body := f.Get(u); status != http.StatusOK || !bytes.Equal(body, s.Content) {
				t.Errorf("%s: status %d, %d bytes", u, status, len(body))
			}
		}
	}
	if m := f.shown(e.Segments[7]); len(m.Entries) != 8 {
		t.Errorf("%d entries", len(m.Entries))
	}
}

func TestViewerGetsAllFromBoxes(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 3})
	e := f.Encoder()
	e.Seconds = 1 // it is played to the end
	e.Write(6)
	e.End()
	p := watch.New(watch.Config{URL: f.Publisher.URL() + "/live/demo/index.m3u8", Log: f.Log})
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := p.Run(ctx); err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	r := p.Report()
	if r.Segments != 6 || r.Missed+r.Corrupt+r.Retries != 0 || r.Bytes[f.Publisher.Addr().String()] != 0 {
		t.Errorf("%+v", r)
	}
	if origin := f.Publisher.Totals().Viewers.OriginBytes; origin != 0 {
		t.Errorf("the origin sent %d bytes", origin)
	}
}

// TestRedirectIsSentElsewhereOnRepeat: first one box, then the other, then the origin.
func TestRedirectIsSentElsewhereOnRepeat(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2})
	e := f.Encoder()
	e.Write(1)
	f.holders(e.Segments[0], 2)
	var seen []string
	for range 3 {
		location, err := f.Ask(e.Segments[0].Path(), "one viewer")
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, location)
	}
	if seen[0] == "" || seen[1] == "" || seen[0] == seen[1] || seen[2] != "" {
		t.Errorf("sent to %q", seen)
	}
	if location, err := f.Ask(e.Segments[0].Path(), "another viewer"); location != seen[0] {
		t.Errorf("another viewer of the same address was sent to %s, %v", location, err)
	}
}

func TestOriginServesWhileNoBoxHolds(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 0})
	e := f.Encoder()
	e.Write(3)
	f.shown(e.Segments[2])
	if status, body := f.Get(f.Publisher.URL() + string(e.Segments[2].Path())); status != http.StatusOK || !bytes.Equal(body, e.Segments[2].Content) {
		t.Errorf("status %d, %d bytes", status, len(body))
	}
	if l := f.Locate(e.Segments[2].Path()); len(l.URLs) != 1 || len(l.Holders()) != 0 || l.Size != int64(e.Size) || l.Digest != e.Segments[2].Digest().String() {
		t.Errorf("%+v", l)
	}
}

// TestEncoderRestart: the same names come again with other bytes; nothing mixes the two.
func TestEncoderRestart(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 3})
	e := f.Encoder()
	e.Write(4)
	before := f.shown(e.Segments[3])
	e.Restart()
	e.Write(3)
	for _, s := range e.Segments {
		for _, u := range f.holders(s, 2) {
			if _, body := f.Get(u); !bytes.Equal(body, s.Content) {
				t.Errorf("%s has the bytes of another run", u)
			}
		}
	}
	after := f.shown(e.Segments[6])
	if err := playlist.CheckReload(before, after); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(after.Entries, func(x playlist.Entry) bool { return x.Discontinuity }) {
		t.Error("no discontinuity between the runs")
	}
}

// TestStoppedBoxLeavesRedirectsAndReturns: what a box held is placed again elsewhere, and what
// it still holds counts again when it is back.
func TestStoppedBoxLeavesRedirectsAndReturns(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 3, Replicas: 2})
	e := f.Encoder()
	e.Seconds = 10 // a TTL that outlives the test
	e.Write(4)
	for _, s := range e.Segments {
		f.holders(s, 2)
	}
	stopped := f.Boxes[0]
	stopped.Stop()
	f.AwaitBoxes(2)
	for _, s := range e.Segments { // at once, and not when the box is forgotten
		for _, u := range f.Locate(s.Path()).Holders() {
			if strings.Contains(u, stopped.Link.Addr()) {
				t.Fatalf("%s is still sent to the stopped box", s.Name)
			}
		}
	}
	for _, s := range e.Segments {
		for _, u := range f.holders(s, 2) {
			if strings.Contains(u, stopped.Link.Addr()) {
				t.Errorf("%s is still sent to the stopped box", s.Name)
			}
		}
	}
	stopped.Start()
	f.AwaitBoxes(3)
	held := 0
	for _, s := range e.Segments {
		if l := f.Locate(s.Path()); slices.ContainsFunc(l.Holders(), func(u string) bool { return strings.Contains(u, stopped.Link.Addr()) }) {
			held++
		}
	}
	if held == 0 {
		t.Error("nothing that the box kept counts again")
	}
}

// TestSilentBox: a box whose plug was pulled leaves the redirects although nobody was told.
func TestSilentBox(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2})
	f.Boxes[0].Link.Unplug()
	begin := time.Now()
	f.AwaitBoxes(1)
	if took := time.Since(begin); took >= wire.SilenceLimit {
		t.Errorf("a silent box counted as up until its session ended, after %v", took)
	}
	f.Boxes[0].Link.Mend()
	f.AwaitBoxes(2)
}

// TestSlowBoxHarmsOnlyItself: a box that takes 1 kB/s does not keep segments from others.
func TestSlowBoxHarmsOnlyItself(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 3, Replicas: 2})
	f.Boxes[0].Link.Slow(1000)
	e := f.Encoder()
	e.Write(6)
	for _, s := range e.Segments {
		f.Await("two healthy holders", func() bool {
			healthy := 0
			for _, u := range f.Locate(s.Path()).Holders() {
				if !strings.Contains(u, f.Boxes[0].Link.Addr()) {
					healthy++
				}
			}
			return healthy == 2
		})
	}
}

func TestStreamsGoOnWithoutEntrances(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2, Entrances: 2})
	e := f.Encoder()
	e.Write(2)
	f.holders(e.Segments[1], 2)
	for _, entrance := range f.Entrances {
		entrance.Stop()
	}
	e.Write(2)
	f.holders(e.Segments[3], 2)
	f.Entrances[1].Start()
	// A box that was never known comes through the one entrance that is back.
	f.Boxes[0].Stop()
	f.AwaitBoxes(1)
	f.Boxes[0].Start()
	f.AwaitBoxes(2)
}

// TestPublisherRestart: the playlist keeps its promises and the boxes their segments.
func TestPublisherRestart(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2})
	e := f.Encoder()
	e.Write(8)
	before := f.shown(e.Segments[7])
	f.Publisher.Stop()
	f.Publisher.Start()
	f.AwaitBoxes(2)
	if err := playlist.CheckReload(before, f.shown(e.Segments[7])); err != nil {
		t.Error(err)
	}
	f.holders(e.Segments[7], 2)
	e.Write(1)
	if err := playlist.CheckReload(before, f.shown(e.Segments[8])); err != nil {
		t.Error(err)
	}
}

// TestReplicasAndFewBoxes: fewer boxes than replicas is no reason to wait.
// TestPublisherFinishesItsPushes: a segment that is on its way to a box when the publisher is asked
// to end arrives there, and the playlist is not ended.
func TestPublisherFinishesItsPushes(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 1, Replicas: 1})
	e := f.Encoder()
	e.Size = 400_000
	f.Boxes[0].Link.Slow(400_000)
	e.Write(1)
	f.Await("a segment is on its way", func() bool { return f.Publisher.Totals().Placing.Sent > 0 })
	f.Publisher.Stop()
	at := "http://" + f.Boxes[0].Addr().String() + "/" + string(f.Publisher.ID()) + string(e.Segments[0].Path())
	if status, body := f.Get(at); status != http.StatusOK || !bytes.Equal(body, e.Segments[0].Content) {
		t.Errorf("%s: %d, %d bytes", at, status, len(body))
	}
	f.Boxes[0].Link.Slow(0)
	f.Publisher.Start()
	f.AwaitBoxes(1)
	e.Write(1)
	if m := f.shown(e.Segments[1]); m.Ended {
		t.Error("the playlist has ended")
	}
}

func TestReplicasAndFewBoxes(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 1, Replicas: 3})
	e := f.Encoder()
	e.Write(2)
	f.holders(e.Segments[1], 1)
}

// TestFullBox: a box that refuses leaves the work to others.
func TestFullBox(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 2, Replicas: 1, Publisher: func(c *publisher.Config) { c.Replicas = 1 }, Box: func(i int, c *box.Config) {
		if i == 0 {
			if err := c.LiveLimit.UnmarshalText([]byte("16MB")); err != nil {
				t.Fatal(err)
			}
			if err := c.StorageLimit.UnmarshalText([]byte("16MB")); err != nil {
				t.Fatal(err)
			}
		}
	}})
	e := f.Encoder()
	e.Size = 17 << 20
	e.Write(3)
	for _, s := range e.Segments {
		if urls := f.holders(s, 1); !strings.Contains(urls[0], f.Boxes[1].Link.Addr()) {
			t.Errorf("%s is at %s", s.Name, urls[0])
		}
	}
}

func TestTwoEntrancesOneDown(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 1, Entrances: 2})
	f.Entrances[0].Stop()
	f.Boxes[0].Stop()
	f.AwaitBoxes(0)
	f.Boxes[0].Start()
	f.AwaitBoxes(1)
	start := time.Now()
	f.Entrances[0].Start()
	f.Await("the first entrance has the box again", func() bool {
		status, body := f.Get("http://" + f.Entrances[0].Addr().String() + "/api/v1/boxes/" + string(f.Boxes[0].ID()))
		return status == http.StatusOK && strings.Contains(string(body), `"searchable"`)
	})
	t.Logf("after %v", time.Since(start))
}
