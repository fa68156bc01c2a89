package testfleet

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"sync"
	"testing"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/pkg/saving"
	"dandelion/pkg/watch"
	"dandelion/publisher"
)

// figures are what GET /api/v1/streams says of each stream.
func (f *Fleet) figures() map[string]saving.Windows {
	f.tb.Helper()
	var s publisher.Streams
	status, body := f.Get(f.Publisher.URL() + "/api/v1/streams")
	if status != http.StatusOK {
		f.tb.Fatalf("status %d: %s", status, body)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		f.tb.Fatalf("%v: %s", err, body)
	}
	all := map[string]saving.Windows{}
	for _, one := range s.Streams {
		all[string(one.Name)] = one.Saving
	}
	return all
}

// TestSavingIsWhatViewersReceived: two streams with viewers of their own, and what the publisher says of each
// is to the byte what its viewers received of boxes and of the origin, and what boxes say that they sent to each
// other; the streams together are the totals.
func TestSavingIsWhatViewersReceived(t *testing.T) {
	t.Parallel()
	const segments, boxes = 6, 4
	f := Start(t, Options{
		Boxes: boxes, Replicas: boxes, Streams: 2,
		Box: func(_ int, c *box.Config) {
			c.UploadCapacity, c.UploadLimit = config.Fixed(100*config.Mbit), config.Fixed(100*config.Mbit)
		},
	})
	for name, w := range f.figures() {
		if w.Start.Offload != nil || w.Minute.CasterOffload != nil || w.Hour.PlacingOverhead != nil {
			t.Errorf("%s without viewers: %+v", name, w)
		}
	}
	viewers := map[string]int{"demo": 3, "demo-2": 1}
	var asked Segment
	for i := range 2 {
		e := f.EncoderOf(i + 1)
		e.Seconds, e.Size = 1, 50_000
		e.Write(segments)
		e.End()
		if i == 0 {
			asked = e.Segments[0]
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	type received struct{ boxes, origin int64 }
	var mu sync.Mutex
	got := map[string]received{}
	var group sync.WaitGroup
	for name, n := range viewers {
		for i := range n {
			group.Go(func() {
				p := watch.New(watch.Config{URL: f.Publisher.URL() + "/live/" + name + "/index.m3u8", UserAgent: fmt.Sprint(name, i), Log: f.Log})
				if err := p.Run(ctx); err != nil || ctx.Err() != nil {
					t.Error(err, ctx.Err())
				}
				mu.Lock()
				defer mu.Unlock()
				r := got[name]
				for host, bytes := range p.Report().Bytes {
					if host == f.Publisher.Addr().String() {
						r.origin += bytes
					} else {
						r.boxes += bytes
					}
				}
				got[name] = r
			})
		}
	}
	group.Wait()
	status, body := f.Get(f.Publisher.URL() + "/origin" + string(asked.Path()))
	if status != http.StatusOK {
		t.Fatalf("the origin answers %d", status)
	}
	r := got["demo"]
	r.origin += int64(len(body))
	got["demo"] = r
	relayed := func() (n int64) {
		for _, b := range f.Boxes {
			n += b.Totals().RelayedBytes
		}
		return n
	}
	f.Await("all copies", func() bool {
		w := f.figures()
		return w["demo"].Start.RelayedBytes+w["demo-2"].Start.RelayedBytes == relayed()
	})
	var sum saving.Bytes
	for name, w := range f.figures() {
		s := w.Start
		if s.BoxBytes != got[name].boxes || s.OriginBytes != got[name].origin || s.BoxBytes == 0 {
			t.Errorf("%s: the publisher says %d bytes from boxes and %d from the origin, viewers %+v", name, s.BoxBytes, s.OriginBytes, got[name])
		}
		all := float64(s.BoxBytes + s.OriginBytes)
		for what, two := range map[string][2]float64{
			"offload":          {*s.Offload, 1 - float64(s.OriginBytes)/all},
			"caster_offload":   {*s.CasterOffload, 1 - float64(s.OriginBytes+s.PlacingBytes)/all},
			"placing_overhead": {*s.PlacingOverhead, float64(s.PlacingBytes+s.RelayedBytes) / all},
		} {
			if math.Abs(two[0]-two[1]) > 1e-9 {
				t.Errorf("%s: %s is %v, want %v", name, what, two[0], two[1])
			}
		}
		if w.Minute.BoxBytes != s.BoxBytes || w.Hour.BoxBytes != s.BoxBytes {
			t.Errorf("%s: another figure in the first minute than since the start: %+v", name, w)
		}
		sum.Redirected += s.BoxBytes
		sum.Origin += s.OriginBytes
		sum.Placing += s.PlacingBytes
	}
	totals := f.Publisher.Totals()
	if sum.Redirected != totals.Viewers.RedirectBytes-totals.Viewers.ReturnedBytes || sum.Origin != totals.Viewers.OriginBytes || sum.Placing != totals.Placing.Sent {
		t.Errorf("the streams' sums are %+v, the totals %+v and %+v", sum, totals.Viewers, totals.Placing)
	}
}
