package watch

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// crowd returns a crowd that watches the rig.
func (g *rig) crowd(t *testing.T, cfg CrowdConfig) *Crowd {
	t.Helper()
	cfg.URL, cfg.Agent, cfg.Log = "http://front/live/demo/v/index.m3u8", "test/1", slog.New(slog.DiscardHandler)
	if cfg.Policy.Name == "" {
		cfg.Policy = Dandelion
	}
	c, err := NewCrowd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range c.players {
		p.client.Transport = g
	}
	g.begin, g.attempts = time.Now(), map[string]int{}
	return c
}

// TestCrowd: viewers begin over the ramp, each with its name, and stop when the time is over.
func TestCrowd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		agents := map[string]time.Duration{}
		var events strings.Builder
		g := &rig{first: 20, window: 10}
		g.front = func(r *http.Request) (*http.Response, error) {
			mu.Lock()
			defer mu.Unlock()
			if _, seen := agents[r.UserAgent()]; !seen {
				agents[r.UserAgent()] = time.Since(g.begin)
			}
			return nil, nil
		}
		c := g.crowd(t, CrowdConfig{Viewers: 4, For: 10 * time.Second, Ramp: 8 * time.Second, Events: &events})
		if err := c.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		s := c.Summary()
		if s.Seconds != 10 || s.Viewers != 4 || s.Playing != 4 || s.Stalls.ShareWithout != 1 || s.Policy != "dandelion" || s.Now[Over] != 4 || s.URL != "http://front/live/demo/v/index.m3u8" {
			t.Errorf("%+v", s)
		}
		for i := range 4 {
			if at, ok := agents[fmt.Sprintf("test/1 viewer/%d", i+1)]; !ok || at != time.Duration(2*i)*time.Second {
				t.Errorf("viewer %d began at %v, %v: %v", i+1, at, ok, agents)
			}
		}
		if n := strings.Count(events.String(), `"event":"start"`); n != 4 || strings.Count(events.String(), "\n") != 4 {
			t.Errorf("%s", &events)
		}
		if c.Origin() != "front:80" {
			t.Error(c.Origin())
		}
	})
}

// TestCrowdVerdict: who could not play at all is told why, in time.
func TestCrowdVerdict(t *testing.T) {
	t.Parallel()
	for title, tt := range map[string]struct {
		front func(r *http.Request) (*http.Response, error)
		box   func(r *http.Request, n int) (*http.Response, error)
		limit time.Duration
		took  time.Duration
		want  string
	}{
		"never there": {
			front: func(r *http.Request) (*http.Response, error) { return answer(r, 404, ""), nil },
			took:  startWithin, want: "http://front/live/demo/v/index.m3u8 gave no playlist within 30s: front:80 answered 404 Not Found",
		},
		"never there, less time": {
			front: func(r *http.Request) (*http.Response, error) { return answer(r, 404, ""), nil }, limit: 5 * time.Second,
			took: 5 * time.Second, want: "gave no playlist within 5s: front:80 answered 404",
		},
		"silent": {front: silence, took: startWithin, want: "gave no playlist within 30s: front:80 sent nothing within 3s"},
		"a web page": {
			front: func(r *http.Request) (*http.Response, error) { return answer(r, 200, "<!doctype html>"), nil },
			took:  750 * time.Millisecond, want: "is no HLS playlist: line 1: not a playlist",
		},
		"no variant": {
			front: func(r *http.Request) (*http.Response, error) {
				return answer(r, 200, "#EXTM3U\n#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"a\",NAME=\"a\"\n"), nil
			},
			want: "names no variant",
		},
		"no segment": {
			box: func(r *http.Request, n int) (*http.Response, error) { return nil, errReset }, limit: 8 * time.Second,
			took: 8 * time.Second, want: "http://front/live/demo/v/index.m3u8 has a playlist, but within 8s no segment of it could be received: Get \"http://box",
		},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := &rig{first: 20, window: 10, front: tt.front, box: tt.box}
				c := g.crowd(t, CrowdConfig{Viewers: 3, For: tt.limit})
				err := c.Run(t.Context())
				if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v, want %s", err, tt.want)
				}
				if took := time.Since(g.begin); took != tt.took {
					t.Errorf("told after %v, want %v", took, tt.took)
				}
			})
		})
	}
}

func TestCrowdRefuses(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]CrowdConfig{
		`"htp://h/x.m3u8" is no URL of a stream: want http://`: {URL: "htp://h/x.m3u8", Viewers: 1},
		`"http:///x" is no URL of a stream`:                    {URL: "http:///x", Viewers: 1},
		`"http://h:x/" is no URL: invalid port`:                {URL: "http://h:x/", Viewers: 1},
		"0 viewers: want 1 to 10000":                           {URL: "http://h/"},
		"10001 viewers":                                        {URL: "http://h/", Viewers: 10_001},
		"a time below 0":                                       {URL: "http://h/", Viewers: 1, For: -1},
	} {
		cfg.Log = slog.New(slog.DiscardHandler)
		if _, err := NewCrowd(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestCrowdEventsFail: the watching goes on, and it is told in the end.
func TestCrowdEventsFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := &rig{first: 20, window: 10}
		c := g.crowd(t, CrowdConfig{Viewers: 2, For: 5 * time.Second, Events: &full{}})
		if err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "the events could not be written") {
			t.Error(err)
		}
		if s := c.Summary(); s.Playing != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestConnections: each viewer keeps connections of its own.
func TestConnections(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	byAgent, owners := map[string]map[string]bool{}, map[string]string{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if byAgent[r.UserAgent()] == nil {
			byAgent[r.UserAgent()] = map[string]bool{}
		}
		byAgent[r.UserAgent()][r.RemoteAddr] = true
		if owner := owners[r.RemoteAddr]; owner != "" && owner != r.UserAgent() {
			t.Errorf("%s and %s share a connection", owner, r.UserAgent())
		}
		owners[r.RemoteAddr] = r.UserAgent()
		if r.Header.Get("Accept-Encoding") != "" { // else lengths and digests would be others
			t.Errorf("accepts %s", r.Header.Get("Accept-Encoding"))
		}
		if strings.HasSuffix(r.URL.Path, ".m3u8") {
			fmt.Fprint(w, "#EXTM3U\n#EXT-X-TARGETDURATION:1\n"+strings.Repeat("#EXTINF:0.01,\n1.ts\n", 20)+"#EXT-X-ENDLIST\n")
		}
	}))
	defer srv.Close()
	c, err := NewCrowd(CrowdConfig{URL: srv.URL + "/x.m3u8", Viewers: 3, Policy: Dandelion, Agent: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(byAgent) != 3 {
		t.Errorf("%d names", len(byAgent))
	}
	for agent, connections := range byAgent {
		if len(connections) > 2 {
			t.Errorf("%s has %d connections for one host", agent, len(connections))
		}
	}
}

// TestViewersAreCheap: three goroutines and some kilobytes each, without their connections.
func TestViewersAreCheap(t *testing.T) { // not parallel: it counts what the whole process has
	const viewers, most = 200, 100_000
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := &rig{first: 20, window: 10}
		goroutines, memory := runtime.NumGoroutine(), heap()
		c := g.crowd(t, CrowdConfig{Viewers: viewers})
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(time.Minute + time.Millisecond)
		synctest.Wait()
		g.mu.Lock()
		g.asked = nil
		g.mu.Unlock()
		if n := (runtime.NumGoroutine() - goroutines) / viewers; n > 3 {
			t.Errorf("%d goroutines for each viewer", n)
		}
		used := (heap() - memory) / viewers
		if used > most {
			t.Errorf("%d bytes for each viewer, want at most %d", used, most)
		}
		t.Logf("%d bytes for each viewer", used)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := c.Summary(); s.Playing != viewers || s.Segments.Received < 30*viewers || s.Stalls.Count > 0 {
			t.Errorf("%+v", s)
		}
	})
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}
