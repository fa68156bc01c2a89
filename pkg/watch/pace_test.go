package watch

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// drip is a body that comes in so many parts, each after a wait; one that halts never ends.
type drip struct {
	ctx   context.Context
	of    *strings.Reader
	parts int
	wait  time.Duration
	halts bool
}

func (d *drip) Read(p []byte) (int, error) {
	switch {
	case d.of.Len() == 0 && d.halts:
		<-d.ctx.Done()
		return 0, d.ctx.Err()
	case d.of.Len() == 0:
		return 0, io.EOF
	case sleep(d.ctx, d.wait) != nil:
		return 0, d.ctx.Err()
	}
	part := (d.of.Len() + d.parts - 1) / d.parts
	d.parts--
	return d.of.Read(p[:min(len(p), part)])
}

func (d *drip) Close() error { return nil }

// dripping is a segment that takes so long in so many parts.
func dripping(r *http.Request, parts int, takes time.Duration) *http.Response {
	body := content(number(r))
	resp := answer(r, 200, body)
	resp.Body = &drip{r.Context(), strings.NewReader(body), parts, takes / time.Duration(parts), false}
	return resp
}

func TestSlow(t *testing.T) {
	t.Parallel()
	const s = time.Second
	for name, tt := range map[string]struct {
		n, total int64
		took     time.Duration
		plays    time.Duration
		want     bool
	}{
		"half in half the time":      {500, 1000, s, 2 * s, false},
		"a little less":              {499, 1000, s, 2 * s, true},
		"too soon to say":            {1, 1000, 999 * ms, 2 * s, false},
		"length unknown":             {1, -1, 5 * s, 2 * s, false},
		"no length":                  {1, 0, 5 * s, 2 * s, false},
		"late, but nearly there":     {900, 1000, 5 * s, 2 * s, false},
		"fell behind after its half": {600, 1000, 3 * s, 2 * s, true},
		"a long one":                 {200, 1000, s, 6 * s, false},
		"a short one, nearly there":  {700, 1000, s, s, false},
		"a short one":                {600, 1000, s, s, true},
		"large":                      {1 << 20, maxSegment, s, 6 * s, true},
		"whole":                      {1000, 1000, 5 * s, 2 * s, false},
	} {
		l := load{judged: Dandelion.Segment.Pace.After, plays: tt.plays}
		if got := l.slow(tt.n, tt.total, tt.took); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
		if l.judged = HLSJS.Segment.Pace.After; l.slow(tt.n, tt.total, tt.took) {
			t.Errorf("%s: hls.js does not judge", name)
		}
	}
}

// TestSlowBox: a slow host costs each segment a second, not two target durations, for as long as the
// others are quick; hls.js waits for it.
func TestSlowBox(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		policy Policy
		slow   bool
	}{{Dandelion, true}, {HLSJS, false}} {
		t.Run(tt.policy.Name, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 20, window: 30, box: func(r *http.Request, n int) (*http.Response, error) {
				if n == 1 {
					return dripping(r, 40, 6*time.Second), nil
				}
				return nil, nil
			}}
			g.play(t, tt.policy, 21500*ms, func(t *testing.T, r Report) {
				all := g.told(EventFailover)
				if !tt.slow {
					if len(all) != 0 || r.Segments != 3 || r.Stalls == 0 {
						t.Errorf("%+v", r)
					}
					return
				}
				if len(all) != r.Segments || r.Segments != 13 || r.Stalls != 0 || r.Missed != 0 {
					t.Errorf("%d failovers, %+v", len(all), r)
				}
				for _, e := range all {
					if e.Cause != CauseSlow || e.Seconds < 1 || e.Seconds > 1.15 || e.From != "box1:80" || e.To != "box2:80" {
						t.Errorf("%+v", e)
					}
				}
			})
		})
	}
}

// TestOwnSlowLine: who finds all hosts slow throws away no more than two parts in half a minute, and
// no two of one segment.
func TestOwnSlowLine(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 60, box: func(r *http.Request, n int) (*http.Response, error) {
		return dripping(r, 30, 3*time.Second), nil
	}}
	g.play(t, Dandelion, 50*time.Second, func(t *testing.T, r Report) {
		// A segment takes 3 s, the first and the second a second more. From 35 s on it is tried again, with the
		// segments that are begun at 35 and 39 s.
		const s = time.Second
		var at []time.Duration
		for _, e := range g.told(EventFailover) {
			if e.Cause != CauseSlow || e.Seconds != 1 {
				t.Errorf("%+v", e)
			}
			at = append(at, e.Time.Sub(g.begin))
		}
		if want := []time.Duration{0, 4 * s, 35 * s, 39 * s}; !slices.Equal(at, want) {
			t.Errorf("given up at %v, want %v", at, want)
		}
		if r.Retries != 4 || r.Missed != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// TestRestEnds: a segment that comes quickly says that it was not the line.
func TestRestEnds(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 30, box: func(r *http.Request, n int) (*http.Response, error) {
		if number(r) != 19 && n <= 2 {
			return dripping(r, 30, 3*time.Second), nil
		}
		return nil, nil
	}}
	g.play(t, Dandelion, 13500*ms, func(t *testing.T, r Report) {
		// 17 and 18 are given up, 19 comes at once, 20 is given up.
		var got []string
		for _, e := range g.told(EventFailover) {
			got = append(got, e.URL[strings.LastIndexByte(e.URL, '/')+1:])
		}
		if want := []string{"17.ts", "18.ts", "20.ts"}; !slices.Equal(got, want) {
			t.Errorf("given up: %v, want %v", got, want)
		}
	})
}

// TestHaltingLine: a line that halts for longer than a second is given the time after three timeouts.
func TestHaltingLine(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 30, box: func(r *http.Request, n int) (*http.Response, error) {
		if number(r) == 17 {
			resp := dripping(r, 2, 3*time.Second)
			resp.ContentLength = -1 // else it is too slow
			return resp, nil
		}
		return nil, nil
	}}
	g.play(t, Dandelion, 8500*ms, func(t *testing.T, r Report) {
		if got, want := g.times(name(17)), []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}; !slices.Equal(got, want) {
			t.Errorf("asked at %v, want %v", got, want)
		}
		if all := g.told(EventFailover); len(all) != 1 || all[0].Cause != CauseSilent || all[0].Seconds != 3 {
			t.Errorf("%+v", all)
		}
	})
}

// TestPaceOf: a short segment may take a second, and what a segment needs as long as it likes.
func TestPaceOf(t *testing.T) {
	t.Parallel()
	for title, tt := range map[string]struct {
		extinf string
		slow   int // the segment that is slow; the init segment is a copy of 1
		takes  time.Duration
		gaveUp int
	}{
		"a short segment":       {"0.5", 17, 1300 * ms, 0},
		"slower than it may be": {"0.5", 17, 2 * time.Second, 1},
		"an init segment":       {"2", 1, 3500 * ms, 0},
		"a segment":             {"2", 17, 3500 * ms, 1},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 20, window: 30, header: "#EXT-X-MAP:URI=\"" + name(1) + "\"\n"}
			g.front = func(r *http.Request) (*http.Response, error) {
				if strings.HasSuffix(r.URL.Path, ".m3u8") {
					return answer(r, 200, strings.ReplaceAll(g.playlist(), "#EXTINF:2,", "#EXTINF:"+tt.extinf+",")), nil
				}
				return nil, nil
			}
			g.box = func(r *http.Request, n int) (*http.Response, error) {
				if number(r) == tt.slow && n == 1 {
					return dripping(r, 20, tt.takes), nil
				}
				return nil, nil
			}
			g.play(t, Dandelion, 5*time.Second, func(t *testing.T, r Report) {
				if len(g.times(name(1))) != 1 || r.Segments < 3 {
					t.Errorf("%+v", r)
				}
				if all := g.told(EventFailover); len(all) != tt.gaveUp || r.Retries != tt.gaveUp {
					t.Errorf("given up %+v, want %d", all, tt.gaveUp)
				}
			})
		})
	}
}
