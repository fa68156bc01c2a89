package lifecycle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// events records what happened, in order.
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, fmt.Sprintf(format, args...))
}

func untilDone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestRunStopsInReverseOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var ev events
		var g Group
		for _, name := range []string{"a", "b", "c"} {
			g.Add(name, func(ctx context.Context) error {
				<-ctx.Done()
				ev.add("%s ran until its turn", name)
				return ctx.Err()
			}, func(context.Context) error {
				time.Sleep(time.Second) // the clock is the bubble's
				ev.add("%s drained", name)
				return nil
			})
		}
		g.Add("d", nil, func(context.Context) error { ev.add("d closed"); return nil })
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Minute, cancel)
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		want := []string{
			"d closed",
			"c drained", "c ran until its turn",
			"b drained", "b ran until its turn",
			"a drained", "a ran until its turn",
		}
		if !slices.Equal(ev.list, want) {
			t.Errorf("order:\n got %q\nwant %q", ev.list, want)
		}
	})
}

func TestRunOutcome(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	fail := func(after time.Duration, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			time.Sleep(after)
			return err
		}
	}
	type part struct{ run, close func(context.Context) error }
	tests := map[string]struct {
		parts  []part
		cancel time.Duration // 0: never
		took   time.Duration
		want   string
	}{
		"the first failure ends the group": {
			parts: []part{{run: untilDone}, {run: fail(time.Second, broken)}, {run: untilDone}},
			took:  time.Second, want: "p1: broken",
		},
		"every part is done": {
			parts: []part{{run: fail(time.Second, nil)}, {run: fail(2*time.Second, nil)}},
			took:  2 * time.Second,
		},
		"a part that is done does not end the others": {
			parts: []part{{run: fail(time.Second, nil)}, {run: untilDone}}, cancel: time.Minute,
			took: time.Minute,
		},
		"canceled is not a failure": {
			parts: []part{{run: fail(time.Second, fmt.Errorf("x: %w", context.Canceled))}, {run: untilDone}}, cancel: time.Minute,
			took: time.Minute,
		},
		"nothing to run waits for the context": {
			parts: []part{{close: fail(0, nil)}}, cancel: time.Minute,
			took: time.Minute,
		},
		"failures of stopping are told": {
			parts: []part{
				{run: untilDone, close: fail(time.Second, broken)},
				{run: func(ctx context.Context) error { <-ctx.Done(); return errors.New("late") }},
			},
			cancel: time.Minute, took: time.Minute + time.Second, want: "p1: late\np0: broken",
		},
		"two failures at once are both told": {
			parts: []part{{run: fail(0, broken)}, {run: fail(0, broken)}},
			want:  "broken\n",
		},
		"a part that failed is closed all the same": {
			parts: []part{{run: fail(0, broken), close: fail(3*time.Second, errors.New("also this"))}},
			took:  3 * time.Second, want: "p0: broken\np0: also this",
		},
		"past the drain limit contexts end": {
			parts: []part{{run: untilDone}, {run: untilDone, close: untilDoneWithoutError}}, cancel: time.Second,
			took: time.Second + DefaultDrainLimit,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var g Group
				for i, p := range tt.parts {
					g.Add(fmt.Sprintf("p%d", i), p.run, p.close)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel != 0 {
					time.AfterFunc(tt.cancel, cancel)
				}
				begin := time.Now()
				err := g.Run(ctx)
				if took := time.Since(begin); took != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("Run: %v; want %q", err, tt.want)
				}
			})
		})
	}
}

func untilDoneWithoutError(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func TestStragglerIsNamedAndOthersStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var stacks bytes.Buffer
		g := Group{DrainLimit: 3 * time.Second, Stacks: &stacks}
		release := make(chan struct{})
		earlierStopped, lastStopped := false, false
		g.Add("earlier", untilDone, func(context.Context) error { earlierStopped = true; return nil })
		g.Add("stuck", func(context.Context) error { stuckHere(release); return nil }, nil)
		g.Add("last", untilDone, func(context.Context) error { lastStopped = true; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		begin := time.Now()
		err := g.Run(ctx)
		if err == nil || !strings.HasPrefix(err.Error(), "stuck: did not stop") {
			t.Errorf("Run: %v; want the straggler's name", err)
		}
		if took, want := time.Since(begin), 3*time.Second+stragglerGrace; took != want {
			t.Errorf("took %s, want %s", took, want)
		}
		if !earlierStopped || !lastStopped {
			t.Errorf("stopped: earlier %v, last %v; want both", earlierStopped, lastStopped)
		}
		if !strings.Contains(stacks.String(), "stuckHere") {
			t.Errorf("the stacks do not show the straggler:\n%s", stacks.String())
		}
		close(release)
	})
}

func stuckHere(release chan struct{}) { <-release }

func TestPartContextKeepsValuesAndOutlivesTheGroups(t *testing.T) {
	t.Parallel()
	type key struct{}
	synctest.Test(t, func(t *testing.T) {
		var g Group
		g.Add("p", func(ctx context.Context) error {
			if ctx.Value(key{}) != "v" {
				t.Error("the context lost its value")
			}
			return untilDone(ctx)
		}, func(ctx context.Context) error {
			if ctx.Value(key{}) != "v" || ctx.Err() != nil {
				t.Errorf("draining with value %v, %v", ctx.Value(key{}), ctx.Err())
			}
			return nil
		})
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "v"))
		time.AfterFunc(time.Second, cancel)
		if err := g.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}

func TestAddHTTP(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var g Group
	g.AddHTTP("http", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel() // the group stops while this request is under way
		io.WriteString(w, "whole")
	})}, ln)
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "whole" {
		t.Errorf("body %q, %v", body, err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for { // a process that another test is forking has the listener until it becomes its program
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			break
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal("the listener still takes connections")
		}
	}
}

func TestAddHTTPCutsOff(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := Group{DrainLimit: time.Millisecond}
	g.AddHTTP("http", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})}, ln)
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	if resp, err := http.Get("http://" + ln.Addr().String()); err == nil {
		resp.Body.Close()
		t.Errorf("the request was answered with %s, not cut off", resp.Status)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "http: requests under way") {
		t.Errorf("Run: %v", err)
	}
}
