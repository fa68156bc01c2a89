package watch

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

// TestReloads: RFC 8216 section 6.3.4: a target duration after the last load began, half of it when
// nothing was new.
func TestReloads(t *testing.T) {
	t.Parallel()
	g := &rig{first: 5, window: 5, front: func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			time.Sleep(100 * ms)
		}
		return nil, nil
	}}
	g.play(t, Dandelion, 7500*ms, func(t *testing.T, r Report) {
		// The load at 0 is answered at 100 ms, the one at 2 s at 2.1 s with a new segment. One at 1.9 s finds nothing new.
		want := []time.Duration{0, 2 * time.Second, 4 * time.Second, 6 * time.Second}
		if got := g.times(".m3u8"); !slices.Equal(got, want) {
			t.Errorf("loaded at %v, want %v", got, want)
		}
	})
	quiet := &rig{first: 5, window: 5, front: func(r *http.Request) (*http.Response, error) { return nil, nil }}
	quiet.front = func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			return answer(r, 200, (&rig{begin: time.Now(), first: 5, window: 5}).playlist()), nil
		}
		return nil, nil
	}
	quiet.play(t, Dandelion, 4500*ms, func(t *testing.T, r Report) {
		want := []time.Duration{0, 2 * time.Second, 3 * time.Second, 4 * time.Second}
		if got := quiet.times(".m3u8"); !slices.Equal(got, want) {
			t.Errorf("an unchanged playlist was loaded at %v, want %v", got, want)
		}
	})
}

// TestLiveEdge: three target durations before the end, each segment once, in order, and all of an
// ended stream.
func TestLiveEdge(t *testing.T) {
	t.Parallel()
	for title, tt := range map[string]struct {
		first, until int
		from, to     int
		played       time.Duration
		state        State
	}{
		"live":  {first: 20, from: 17, to: 21, played: 5 * time.Second, state: Over},
		"young": {first: 2, from: 0, to: 3, played: 4 * time.Second, state: Over}, // stalls at 4 s until the playlist of 4 s
		"ended": {first: 4, until: 4, from: 0, to: 3, played: 5 * time.Second, state: Over},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: tt.first, window: 10, until: tt.until}
			g.play(t, Dandelion, 5*time.Second, func(t *testing.T, r Report) {
				var got, want []string
				for _, a := range g.asked {
					if _, file, ok := strings.Cut(a.url, "http://front/live/demo/v/"); ok && strings.HasSuffix(file, ".ts") {
						got = append(got, file)
					}
				}
				for n := tt.from; n <= tt.to && n < tt.first+2; n++ {
					want = append(want, name(n))
				}
				if !slices.Equal(got, want) {
					t.Errorf("asked for %v, want %v", got, want)
				}
				if r.Played < tt.played || r.State != tt.state || r.Missed+r.Duplicated+r.Corrupt+r.Unverified != 0 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// TestEnd: what is buffered is played to the end, then it is over.
func TestEnd(t *testing.T) {
	t.Parallel()
	g := &rig{first: 4, window: 10, until: 6}
	g.play(t, Dandelion, time.Hour, func(t *testing.T, r Report) {
		if r.Segments != 5 || r.Played != 10*time.Second || r.Stalls != 0 || time.Since(g.begin) > 11*time.Second {
			t.Errorf("over after %v: %+v", time.Since(g.begin), r)
		}
	})
}

// TestFailovers: from when it began to hurt until the first byte of the attempt that succeeded.
func TestFailovers(t *testing.T) {
	t.Parallel()
	// The fault concerns segment 17, the first that is played, at box1.
	fault := func(do func(r *http.Request) (*http.Response, error)) func(*http.Request, int) (*http.Response, error) {
		return func(r *http.Request, n int) (*http.Response, error) {
			if number(r) == 17 && n == 1 {
				return do(r)
			}
			time.Sleep(30 * ms) // to the first byte
			return nil, nil
		}
	}
	for title, tt := range map[string]struct {
		box          func(r *http.Request) (*http.Response, error)
		policy       Policy
		cause        Cause
		since, lasts time.Duration
		partly       int64 // bytes of box1
	}{
		"refused": {
			box:   func(r *http.Request) (*http.Response, error) { return nil, errReset },
			cause: CauseReset, lasts: 40 * ms,
		},
		"reset before the first byte": {
			box: func(r *http.Request) (*http.Response, error) {
				time.Sleep(300 * ms)
				return nil, errReset
			},
			cause: CauseReset, lasts: 340 * ms,
		},
		"reset in the body": {
			box: func(r *http.Request) (*http.Response, error) {
				resp := answer(r, 200, "")
				resp.Body = &broken{r.Context(), strings.NewReader("part"), 700 * ms, errReset}
				return resp, nil
			},
			cause: CauseReset, since: 700 * ms, lasts: 40 * ms, partly: 4,
		},
		"truncated": {
			box: func(r *http.Request) (*http.Response, error) {
				resp := answer(r, 200, "")
				resp.Body = &broken{r.Context(), strings.NewReader("part"), 0, io.ErrUnexpectedEOF}
				return resp, nil
			},
			cause: CauseReset, lasts: 40 * ms, partly: 4,
		},
		"silent":         {box: silence, cause: CauseSilent, lasts: 1030 * ms},
		"silent, hls.js": {box: silence, policy: HLSJS, cause: CauseSilent, lasts: 10_030 * ms},
		"never whole": {
			box: func(r *http.Request) (*http.Response, error) {
				resp := answer(r, 200, "")
				resp.Body = &broken{ctx: r.Context(), part: strings.NewReader("part")}
				return resp, nil
			},
			cause: CauseSilent, lasts: 4030 * ms, partly: 4,
		},
		"status":         {box: func(r *http.Request) (*http.Response, error) { return answer(r, 503, "no"), nil }, cause: CauseStatus, lasts: 40 * ms},
		"gone":           {box: func(r *http.Request) (*http.Response, error) { return answer(r, 404, "no"), nil }, cause: CauseStatus, lasts: 40 * ms},
		"status, hls.js": {box: func(r *http.Request) (*http.Response, error) { return answer(r, 503, "no"), nil }, policy: HLSJS, cause: CauseStatus, lasts: 1030 * ms},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			policy := Dandelion
			if tt.policy.Name != "" {
				policy = tt.policy
			}
			g := &rig{first: 20, window: 10, box: fault(tt.box)}
			g.play(t, policy, 15*time.Second, func(t *testing.T, r Report) {
				all := g.told(EventFailover)
				if len(all) != 1 || r.Retries != 1 || r.Missed+r.Corrupt+r.Duplicated != 0 || r.Bytes["box1:80"] == 0 {
					t.Fatalf("%v, %+v", all, r)
				}
				g.expect(t, all[0], tt.since, Event{
					Event: EventFailover, Seconds: seconds(tt.lasts), Cause: tt.cause, From: "box1:80", To: "box2:80",
					URL: "http://front/live/demo/v/" + name(17),
				})
				if l := r.Failovers[tt.cause]; l == nil || l.Count != 1 || l.Sample[0] != tt.lasts || len(r.Failovers) != 1 {
					t.Errorf("counted %+v", r.Failovers)
				}
				if want := int64((r.Segments-1)*len(content(17))) + tt.partly; r.Bytes["box1:80"] != want {
					t.Errorf("%d bytes from box1, want %d", r.Bytes["box1:80"], want)
				}
				if start := g.told(EventStart); len(start) != 1 || start[0].Seconds != seconds(tt.since+tt.lasts) {
					t.Errorf("started %+v", start)
				}
			})
		})
	}
}

// TestRetries: when a segment that nobody has is asked for again.
func TestRetries(t *testing.T) {
	t.Parallel()
	at := func(seconds ...float64) (all []time.Duration) {
		for _, s := range seconds {
			all = append(all, time.Duration(math.Round(1000*s))*ms)
		}
		return all
	}
	refuse := func(r *http.Request) (*http.Response, error) { return nil, errReset }
	unavailable := func(r *http.Request) (*http.Response, error) { return answer(r, 503, ""), nil }
	for title, tt := range map[string]struct {
		policy  Policy
		segment int // that fails, of those from 17 to 19
		fails   func(r *http.Request) (*http.Response, error)
		want    []time.Duration
		missed  bool
	}{
		"refused": {Dandelion, 19, refuse, at(0, .01, .03, .07, .15, .31, .63, 1.27, 2.27, 3.27, 4.27), false},
		"silent":  {Dandelion, 19, silence, at(0, 1, 2, 3, 5, 9, 13), false}, // a slow line is given more time
		// 17 is not the newest: it becomes a gap.
		"hls.js, refused, old": {HLSJS, 17, refuse, at(0), true},
		// 19 is the newest until 2 s; then it is one of those that are skipped.
		"hls.js, refused, newest":      {HLSJS, 19, refuse, at(0, 1, 3), true},
		"hls.js, unavailable":          {HLSJS, 17, unavailable, at(0, 1, 3, 7, 15), true}, // at 23 s it has left the playlist
		"hls.js, silent, and skipped":  {HLSJS, 17, silence, at(0, 10), true},              // likewise
		"dandelion, until it is gone":  {Dandelion, 17, unavailable, nil, true},
		"dandelion, 404 until it goes": {Dandelion, 17, func(r *http.Request) (*http.Response, error) { return answer(r, 404, ""), nil }, nil, true},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 20, window: 10, box: func(r *http.Request, n int) (*http.Response, error) {
				if number(r) == tt.segment {
					return tt.fails(r)
				}
				return nil, nil
			}}
			g.play(t, tt.policy, 30*time.Second, func(t *testing.T, r Report) {
				got := g.times(name(tt.segment))
				if n := min(len(got), max(len(tt.want), 1)); tt.want != nil && !slices.Equal(got[:n], tt.want) || tt.want != nil && tt.missed && len(got) != len(tt.want) {
					t.Errorf("asked at %v, want %v", got, tt.want)
				}
				missed := slices.ContainsFunc(g.told(EventMissed), func(e Event) bool { return strings.HasSuffix(e.URL, name(tt.segment)) })
				if missed != tt.missed && tt.policy.Name == HLSJS.Name {
					t.Errorf("missed: %v, want %v", missed, tt.missed)
				}
				if tt.want == nil {
					// 17 leaves the playlist when the 28th segment comes, at 16 s.
					if last := got[len(got)-1]; last < 14*time.Second || last > 17*time.Second || !missed {
						t.Errorf("last asked at %v, missed %v", last, missed)
					}
				}
			})
		})
	}
}

// TestRetriesOfARecording: its playlist never lets a segment go; the viewer does.
func TestRetriesOfARecording(t *testing.T) {
	t.Parallel()
	g := &rig{first: 4, window: 10, until: 4, box: func(r *http.Request, n int) (*http.Response, error) {
		if number(r) == 1 {
			return nil, errReset
		}
		return nil, nil
	}}
	g.play(t, Dandelion, time.Hour, func(t *testing.T, r Report) {
		missed := g.told(EventMissed)
		if len(missed) != 1 || r.Segments != 3 || r.State != Over || time.Since(g.begin) > giveUp+10*time.Second {
			t.Fatalf("%+v %+v", missed, r)
		}
		g.expect(t, missed[0], 0, Event{Event: EventMissed, Seconds: 2, Cause: CauseReset, From: "box1:80", URL: "http://front/live/demo/v/" + name(1)})
		if stalls := g.told(EventStall); len(stalls) != 1 || r.Stalls != 1 || stalls[0].Seconds != seconds(r.Stalled) {
			t.Errorf("%+v", stalls)
		}
	})
}

// TestLostPlaylist: a viewer goes on with what it knows, asks again without a burst, and tells how
// long the playlist was away.
func TestLostPlaylist(t *testing.T) {
	t.Parallel()
	for title, tt := range map[string]struct {
		fails func(r *http.Request) (*http.Response, error)
		cause Cause
		loads int
	}{
		"refused": {func(*http.Request) (*http.Response, error) { return nil, errReset }, CauseReset, 10},
		"status":  {func(r *http.Request) (*http.Response, error) { return answer(r, 502, ""), nil }, CauseStatus, 10},
		"format":  {func(r *http.Request) (*http.Response, error) { return answer(r, 200, "<html>"), nil }, causeFormat, 10},
		"silent":  {silence, CauseSilent, 3},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 20, window: 30}
			g.front = func(r *http.Request) (*http.Response, error) {
				if since := time.Since(g.begin); strings.HasSuffix(r.URL.Path, ".m3u8") && since >= 4*time.Second && since < 12*time.Second {
					return tt.fails(r)
				}
				return nil, nil
			}
			g.play(t, Dandelion, 20*time.Second, func(t *testing.T, r Report) {
				lost := g.told(EventLostPlaylist)
				if len(lost) != 1 || r.PlaylistFailures != tt.loads || r.Missed != 0 || r.Failovers != nil && len(r.Failovers) != 0 {
					t.Fatalf("%+v %+v", lost, r)
				}
				took := lost[0].Seconds
				lost[0].Seconds = 0
				g.expect(t, lost[0], 4*time.Second, Event{Event: EventLostPlaylist, Cause: tt.cause, From: "front:80", URL: "http://front/live/demo/v/index.m3u8"})
				// 3 segments at 0, one more at 2 s: it plays until 8 s, while the playlist is away from 4 to 12.
				stalls := g.told(EventStall)
				if took < 8 || took > 9.1 || len(stalls) != 1 || r.Stalls != 1 {
					t.Fatalf("away for %v s; %+v", took, stalls)
				}
				stalled := stalls[0].Seconds
				stalls[0].Seconds = 0
				g.expect(t, stalls[0], 8*time.Second, Event{Event: EventStall})
				if stalled != took-4 || r.Longest != r.Stalled || r.Segments < 8 {
					t.Errorf("stalled for %v s, away for %v s: %+v", stalled, took, r)
				}
			})
		})
	}
}

// TestAnew: a publisher that lost its state counts from the beginning: to the live edge, and counted.
// An answer that was overtaken is none.
func TestAnew(t *testing.T) {
	t.Parallel()
	for title, tt := range map[string]struct {
		from, to     int // what is added to MEDIA-SEQUENCE, from 3 s on
		anew, missed int
	}{
		"lost":      {from: 100, to: 0, anew: 1},
		"overtaken": {from: 1, to: 0},
		"far ahead": {from: 0, to: 1_000_000, anew: 1},
		"a jump":    {from: 0, to: 50, missed: 40}, // the window begins at 61 instead of 21
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := &rig{first: 20, window: 10, offset: tt.from}
			g.front = func(r *http.Request) (*http.Response, error) {
				g.offset = tt.from
				if time.Since(g.begin) > 3*time.Second {
					g.offset = tt.to
				}
				return nil, nil
			}
			g.play(t, Dandelion, 9500*ms, func(t *testing.T, r Report) {
				lost := g.told(EventLostPlaylist)
				if len(lost) != tt.anew || r.PlaylistFailures != tt.anew {
					t.Fatalf("%+v %+v", lost, r)
				}
				if tt.anew > 0 {
					g.expect(t, lost[0], 4*time.Second, Event{Event: EventLostPlaylist, Cause: causeSequence, From: "front:80", URL: "http://front/live/demo/v/index.m3u8"})
				}
				if tt.missed == 0 && r.Missed != 0 || tt.missed > 0 && (r.Missed < tt.missed-2 || r.Missed > tt.missed+2) {
					t.Errorf("%d missed", r.Missed)
				}
				if newest := g.times(name(23)); len(newest) == 0 {
					t.Errorf("it does not go on: %+v", g.asked)
				}
			})
		})
	}
}

// TestGaps: EXT-X-GAP is missed, and played over without waiting.
func TestGaps(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 10}
	g.front = func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			return answer(r, 200, strings.ReplaceAll(g.playlist(), name(18), "#EXT-X-GAP\n"+name(18))), nil
		}
		return nil, nil
	}
	g.play(t, Dandelion, 3500*ms, func(t *testing.T, r Report) {
		missed := g.told(EventMissed)
		if len(missed) != 1 || r.Missed != 1 || r.Stalls != 0 || r.Played != 3500*ms || len(g.times(name(18))) != 0 {
			t.Fatalf("%+v %+v", missed, r)
		}
		g.expect(t, missed[0], 0, Event{Event: EventMissed, Seconds: 2, Cause: causeGap, URL: name(18)})
	})
}

// TestRedirects: ten are followed.
func TestRedirects(t *testing.T) {
	t.Parallel()
	for n, ok := range map[int]bool{9: true, 10: false} { // and one from the front
		g := &rig{first: 4, window: 10, until: 4}
		g.box = func(r *http.Request, _ int) (*http.Response, error) {
			var hop int
			_, _ = fmt.Sscan(r.URL.Query().Get("hop"), &hop)
			if hop == n {
				return nil, nil
			}
			resp := answer(r, 302, "")
			resp.Header.Set("Location", fmt.Sprintf("?hop=%d", hop+1))
			return resp, nil
		}
		g.play(t, Dandelion, 20*time.Second, func(t *testing.T, r Report) {
			if ok && (r.Segments != 4 || r.Redirects != 40 || r.Bytes["box1:80"] == 0) {
				t.Errorf("%d redirects: %+v", n+1, r)
			}
			if !ok && r.Segments != 0 {
				t.Errorf("%d redirects: %+v", n+1, r)
			}
		})
	}
}

// TestTooLarge: what is no segment is not read to its end, nor asked for again.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	g := &rig{first: 4, window: 10, until: 4}
	g.box = func(r *http.Request, _ int) (*http.Response, error) {
		if number(r) != 2 {
			return nil, nil
		}
		resp := answer(r, 200, "")
		resp.Body = io.NopCloser(io.LimitReader(zeros{}, maxSegment+100_000))
		return resp, nil
	}
	g.play(t, Dandelion, time.Minute, func(t *testing.T, r Report) {
		if r.Segments != 3 || r.Missed != 1 || r.Retries != 0 || r.Bytes["box1:80"] > maxSegment+10_000 {
			t.Errorf("%+v", r)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestNoPlaylist: what is no playlist is told soon; what is not there yet is waited for.
func TestNoPlaylist(t *testing.T) {
	t.Parallel()
	g := &rig{front: func(r *http.Request) (*http.Response, error) { return answer(r, 200, "<!doctype html>"), nil }}
	p := g.player(Dandelion)
	g.attempts = map[string]int{}
	if err := p.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "http://front/live/demo/v/index.m3u8 is no HLS playlist") {
		t.Error(err)
	}
	late := &rig{first: 20, window: 10}
	late.front = func(r *http.Request) (*http.Response, error) {
		if time.Since(late.begin) < 20*time.Second {
			return answer(r, 404, ""), nil
		}
		return nil, nil
	}
	late.play(t, Dandelion, 30*time.Second, func(t *testing.T, r Report) {
		if r.Startup < 20*time.Second || r.Startup > 21*time.Second || r.PlaylistFailures < 19 || r.Segments == 0 {
			t.Errorf("%+v", r)
		}
	})
}
