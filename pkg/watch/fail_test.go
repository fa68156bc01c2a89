package watch

import (
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

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
		"silent after the headers": {
			box: func(r *http.Request) (*http.Response, error) {
				time.Sleep(300 * ms)
				resp := answer(r, 200, "")
				resp.Body = &broken{ctx: r.Context(), part: strings.NewReader("")}
				return resp, nil
			},
			cause: CauseSilent, since: 300 * ms, lasts: 1030 * ms,
		},
		"silent in the body": { // which came a byte each 600 ms
			box: func(r *http.Request) (*http.Response, error) {
				resp := answer(r, 200, "")
				resp.Body = &drip{r.Context(), strings.NewReader("part"), 4, 600 * ms, true}
				return resp, nil
			},
			cause: CauseSilent, since: 2400 * ms, lasts: 1030 * ms, partly: 4,
		},
		"never whole": {
			box: func(r *http.Request) (*http.Response, error) {
				resp := answer(r, 200, "")
				resp.Body = &drip{r.Context(), strings.NewReader(strings.Repeat("x", 100)), 100, 300 * ms, true}
				return resp, nil
			},
			cause: CauseSilent, lasts: 4030 * ms, partly: 13,
		},
		"too slow": {
			box: func(r *http.Request) (*http.Response, error) {
				return dripping(r, 73, 7300*ms), nil // seven bytes each 100 ms
			},
			cause: CauseSlow, lasts: 1030 * ms, partly: 70,
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
				if len(lost) != 1 || r.PlaylistFailures != tt.loads || r.Missed != 0 || len(r.Failovers) != 0 {
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

// TestOvertaken: an answer that another overtook takes nothing away from a segment that is asked for.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 10}
	g.front = func(r *http.Request) (*http.Response, error) {
		if since := time.Since(g.begin); strings.HasSuffix(r.URL.Path, ".m3u8") && since > time.Second && since < 3*time.Second {
			return answer(r, 200, (&rig{begin: time.Now(), first: 19, window: 10}).playlist()), nil
		}
		return nil, nil
	}
	g.box = func(r *http.Request, n int) (*http.Response, error) {
		if number(r) == 19 && time.Since(g.begin) < 2500*ms {
			return nil, errReset
		}
		return nil, nil
	}
	g.play(t, Dandelion, 8*time.Second, func(t *testing.T, r Report) {
		if r.Missed != 0 || r.Stalls != 0 || r.PlaylistFailures != 0 || r.Segments < 6 {
			t.Errorf("%+v", r)
		}
	})
}

// TestRecovers: what was learned of a bad time is forgotten with the first success.
func TestRecovers(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 30}
	away := func(from, to time.Duration) bool { since := time.Since(g.begin); return since >= from && since < to }
	g.front = func(r *http.Request) (*http.Response, error) {
		if strings.HasSuffix(r.URL.Path, ".m3u8") && (away(2*time.Second, 5*time.Second) || away(11*time.Second, 13*time.Second)) {
			return nil, errReset
		}
		return nil, nil
	}
	g.box = func(r *http.Request, n int) (*http.Response, error) {
		if number(r) == 17 && n <= 4 || number(r) == 18 && n == 1 {
			return silence(r)
		}
		return nil, nil
	}
	g.play(t, Dandelion, 16*time.Second, func(t *testing.T, r Report) {
		var late []time.Duration
		for _, at := range g.times(".m3u8") {
			if at >= 11*time.Second && at < 13*time.Second {
				late = append(late, at)
			}
		}
		if len(late) < 3 || late[1]-late[0] != 250*ms {
			t.Errorf("playlists were loaded at %v", g.times(".m3u8"))
		}
		all := g.told(EventFailover)
		if len(all) != 2 || all[0].Seconds != 5 || all[1].Seconds != 1 {
			t.Errorf("%+v", all)
		}
	})
}

// TestSlowLine: who waited 700 ms for the last first byte waits twice as long for the next.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 10, box: func(r *http.Request, n int) (*http.Response, error) {
		if number(r) == 18 && n == 1 {
			return silence(r)
		}
		time.Sleep(700 * ms)
		return nil, nil
	}}
	g.play(t, Dandelion, 5*time.Second, func(t *testing.T, r Report) {
		if all := g.told(EventFailover); len(all) != 1 || all[0].Seconds != 2.1 {
			t.Errorf("%+v", all)
		}
	})
}
