package watch

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
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

// TestReportWhileStalled: a stall that runs counts.
func TestReportWhileStalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &rig{first: 4, window: 10, begin: time.Now(), attempts: map[string]int{}}
		g.box = func(r *http.Request, n int) (*http.Response, error) {
			if number(r) > 1 {
				return silence(r)
			}
			return nil, nil
		}
		p := g.player(Dandelion)
		if r := p.Report(); r.State != Starting {
			t.Errorf("%+v", r)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		time.Sleep(time.Second)
		if r := p.Report(); r.State != Playing || r.Played != time.Second || r.Stalls != 0 {
			t.Errorf("%+v", r)
		}
		time.Sleep(4500 * ms) // it has 1, which lasts until 2 s
		if r := p.Report(); r.State != Stalled || r.Stalls != 1 || r.Stalled != 3500*ms || r.Longest != 3500*ms || r.Played != 2*time.Second || len(g.told(EventStall)) != 0 {
			t.Errorf("%+v", r)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if r, told := p.Report(), g.told(EventStall); r.State != Over || r.Stalled != 3500*ms || len(told) != 1 || told[0].Seconds != 3.5 {
			t.Errorf("%+v %+v", told, r)
		}
	})
}

// TestKeysChange: only what changed is fetched.
func TestKeysChange(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 10, header: "#EXT-X-MAP:URI=\"init.mp4\"\n#EXT-X-KEY:METHOD=AES-128,URI=\"a.key\"\n"}
	var needed []string
	g.front = func(r *http.Request) (*http.Response, error) {
		switch {
		case strings.HasSuffix(r.URL.Path, ".m3u8"):
			return answer(r, 200, strings.ReplaceAll(g.playlist(), "#EXTINF:2,\n"+name(18), "#EXT-X-KEY:METHOD=AES-128,URI=\"b.key\"\n#EXTINF:2,\n"+name(18))), nil
		case number(r) < 0:
			needed = append(needed, r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
			return answer(r, 200, "0123456789"), nil
		}
		return nil, nil
	}
	g.play(t, Dandelion, 5*time.Second, func(t *testing.T, r Report) {
		if want := []string{"init.mp4", "a.key", "b.key"}; !slices.Equal(needed, want) || r.Segments < 4 {
			t.Errorf("fetched %v, want %v: %+v", needed, want, r)
		}
	})
}

// TestTracks: the first variant with the default audio of its group; init segments and keys once each,
// and played in step.
func TestTracks(t *testing.T) {
	t.Parallel()
	g := &rig{first: 20, window: 10, header: "#EXT-X-MAP:URI=\"init.mp4\",BYTERANGE=\"10@5\"\n#EXT-X-KEY:METHOD=AES-128,URI=\"k.key\"\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"skd://x\",KEYFORMAT=\"f\"\n"}
	needed := map[string]int{}
	g.front = func(r *http.Request) (*http.Response, error) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/v/index.m3u8"):
			return answer(r, 200, "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"x\",NAME=\"1\",DEFAULT=YES,URI=\"other.m3u8\"\n"+
				"#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"1\",URI=\"no.m3u8\"\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"2\",DEFAULT=YES,URI=\"../a/audio.m3u8\"\n"+
				"#EXT-X-STREAM-INF:BANDWIDTH=1,AUDIO=\"a\"\nvideo.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=2,AUDIO=\"a\"\nbig.m3u8\n"), nil
		case number(r) < 0 && !strings.HasSuffix(r.URL.Path, ".m3u8"):
			g.mu.Lock()
			defer g.mu.Unlock()
			needed[r.URL.Path+" "+r.Header.Get("Range")]++
			return answer(r, 200, "0123456789"), nil
		case strings.Contains(r.URL.Path, "/a/") && number(r) == 20:
			return silence(r) // audio stalls alone
		}
		return nil, nil
	}
	g.play(t, Dandelion, 10*time.Second, func(t *testing.T, r Report) {
		want := map[string]int{
			"/live/demo/v/init.mp4 bytes=5-14": 1, "/live/demo/v/k.key ": 1, "/live/demo/a/init.mp4 bytes=5-14": 1, "/live/demo/a/k.key ": 1,
		}
		if !maps.Equal(needed, want) {
			t.Errorf("fetched %v, want %v", needed, want)
		}
		for _, a := range g.asked {
			if name := a.url[strings.LastIndexByte(a.url, '/')+1:]; strings.HasSuffix(name, ".m3u8") && !slices.Contains([]string{"index.m3u8", "video.m3u8", "audio.m3u8"}, name) {
				t.Errorf("loaded %s", a.url)
			}
		}
		// Three audio segments, then none: it plays six seconds.
		if r.Played != 6*time.Second || r.Stalls != 1 || r.Stalled != 4*time.Second || r.Bytes["front:80"] != 40 || r.Corrupt+r.Unverified != 0 {
			t.Errorf("%+v", r)
		}
	})
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
	synctest.Test(t, func(t *testing.T) {
		g := &rig{attempts: map[string]int{}, front: func(r *http.Request) (*http.Response, error) { return answer(r, 200, "<!doctype html>"), nil }}
		if err := g.player(Dandelion).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "http://front/live/demo/v/index.m3u8 is no HLS playlist") {
			t.Error(err)
		}
	})
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
