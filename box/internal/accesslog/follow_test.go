package accesslog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// rig follows a log in a bubble: sleep lets the follower do all that it has to do.
type rig struct {
	t       *testing.T
	path    string
	log     bytes.Buffer
	metrics *prometheus.Registry
	mu      sync.Mutex
	got     []string // URLs
	at      Position // as a caller keeps it
	fail    error    // what Take returns
	stop    func()
	written int
}

func newRig(t *testing.T) *rig {
	return &rig{t: t, path: filepath.Join(t.TempDir(), "access.log"), stop: func() {}}
}

func (r *rig) start() {
	t := r.t
	r.metrics = prometheus.NewRegistry()
	f := New(Config{Path: r.path, From: r.at, Registerer: r.metrics, Log: slog.New(slog.NewTextHandler(&r.log, nil)), Take: func(list []Delivery, behind Position) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.fail != nil {
			return r.fail
		}
		for _, d := range list {
			r.got = append(r.got, d.URL)
		}
		r.at = ParsePosition(behind.String())
		if r.at != behind {
			t.Errorf("%+v is %+v after it was written", behind, r.at)
		}
		return nil
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	}
}

func (r *rig) restart() {
	r.stop()
	r.start()
}

func (r *rig) sleep() {
	time.Sleep(10 * time.Second) // of the bubble
	synctest.Wait()
}

func line(url string) string {
	return fmt.Sprintf(`{"time":1512345678.123,"viewer":"192.0.2.7","method":"GET","uri":"%s","status":"200","bytes":5,"completion":"OK"}`+"\n", url)
}

// next returns n lines that nobody wrote yet.
func (r *rig) next(n int) string {
	var b strings.Builder
	for range n {
		b.WriteString(line(fmt.Sprintf("/%d", r.written)))
		r.written++
	}
	return b.String()
}

func (r *rig) append(text string) { r.appendTo(r.path, text) }

func (r *rig) appendTo(name, text string) {
	r.t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) do(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) failing(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// copy copies the log as copytruncate does.
func (r *rig) copy(to string) {
	r.t.Helper()
	text, err := os.ReadFile(r.path)
	r.do(err)
	r.do(os.WriteFile(to, text, 0o600))
}

// all fails the test unless each line that was written was taken once, in order.
func (r *rig) all() {
	r.t.Helper()
	var want []string
	for i := range r.written {
		want = append(want, fmt.Sprintf("/%d", i))
	}
	if !slices.Equal(r.got, want) {
		r.t.Errorf("%d lines taken, %d written: %.300q", len(r.got), len(want), r.got)
	}
}

// count returns a metric's value, of lines with a result.
func (r *rig) count(name, result string) float64 {
	r.t.Helper()
	families, err := r.metrics.Gather()
	r.do(err)
	for _, family := range families {
		for _, m := range family.Metric {
			if family.GetName() == name && (result == "" || m.Label[0].GetValue() == result) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	r.t.Fatalf("no metric %s %s", name, result)
	return 0
}

func (r *rig) counts(garbage, tooLong, gaps float64) {
	r.t.Helper()
	g, l, p := r.count("dandelion_box_log_lines_total", resultGarbage), r.count("dandelion_box_log_lines_total", resultTooLong), r.count("dandelion_box_log_gaps_total", "")
	if g != garbage || l != tooLong || p != gaps {
		r.t.Errorf("%v lines of garbage, %v too long, %v gaps; want %v, %v, %v", g, l, p, garbage, tooLong, gaps)
	}
}

// TestFollow: whatever is done to the log, each line that was written is taken once, in order.
func TestFollow(t *testing.T) {
	t.Parallel()
	for name, scene := range map[string]func(r *rig){
		"grows": func(r *rig) {
			r.sleep()
			r.append(r.next(3))
			r.sleep()
			r.append(r.next(1))
			r.sleep()
		},
		"is there before": func(r *rig) {
			r.stop()
			r.got, r.at = nil, Position{}
			r.append(r.next(7))
			r.start()
			r.sleep()
		},
		"a line in pieces": func(r *rig) {
			text := r.next(1)
			for i := range len(text) {
				r.append(text[i : i+1])
				r.sleep()
			}
		},
		"restart in the middle of a line": func(r *rig) {
			text := r.next(3)
			r.append(text[:len(text)-20])
			r.sleep()
			r.restart()
			r.append(text[len(text)-20:])
			r.sleep()
		},
		"restart without news": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.restart()
			r.sleep()
			r.restart()
			r.append(r.next(3))
			r.sleep()
		},
		"renamed, new one made, old one written on for a moment": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.do(os.Rename(r.path, r.path+".1"))
			r.append("")
			for range 4 {
				r.appendTo(r.path+".1", r.next(2))
				time.Sleep(700 * time.Millisecond)
			}
			r.append(r.next(2))
			r.sleep()
		},
		"renamed, old one written on for long": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.do(os.Rename(r.path, r.path+".1"))
			for range 5 {
				r.appendTo(r.path+".1", r.next(2))
				r.sleep()
			}
			r.append(r.next(2))
			r.sleep()
		},
		"renamed unread": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.append(r.next(3000))
			r.do(os.Rename(r.path, r.path+".1"))
			r.append(r.next(2))
			r.sleep()
		},
		"renamed while down": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.stop()
			r.append(r.next(3))
			r.do(os.Rename(r.path, r.path+".1"))
			r.append(r.next(2))
			r.start()
			r.sleep()
		},
		"renamed three times while down": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.stop()
			r.append(r.next(3))
			began := time.Now().Add(-time.Hour)
			for i := range 3 {
				r.do(os.Chtimes(r.path, time.Time{}, began.Add(time.Duration(i)*time.Minute)))
				r.do(os.Rename(r.path, fmt.Sprintf("%s-2026112%d", r.path, i)))
				r.append(r.next(2))
			}
			r.appendTo(r.path+"-20261119.gz", "compressed")
			r.start()
			r.sleep()
		},
		"copied and truncated": func(r *rig) {
			r.append(r.next(30))
			r.sleep()
			r.copy(r.path + ".1")
			r.do(os.Truncate(r.path, 0))
			r.sleep()
			r.append(r.next(2))
			r.sleep()
		},
		"copied and truncated unread, grown beyond": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.append(r.next(2))
			r.copy(r.path + ".1")
			r.do(os.Truncate(r.path, 0))
			r.append(r.next(90))
			r.sleep()
		},
		"copied and truncated while down": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.stop()
			r.append(r.next(2))
			r.copy(r.path + ".1")
			r.do(os.Truncate(r.path, 0))
			r.append(r.next(2))
			r.start()
			r.sleep()
		},
		"copied and truncated in the middle of a line": func(r *rig) {
			text := r.next(3)
			r.append(text[:len(text)-9])
			r.sleep()
			r.append(text[len(text)-9:])
			r.copy(r.path + ".1")
			r.do(os.Truncate(r.path, 0))
			r.append(r.next(1))
			r.sleep()
		},
		"truncated": func(r *rig) {
			r.append(r.next(30))
			r.sleep()
			r.do(os.Truncate(r.path, 0))
			r.append(r.next(2))
			r.sleep()
		},
		"removed, and made again": func(r *rig) {
			r.append(r.next(3))
			r.sleep()
			r.do(os.Remove(r.path))
			r.sleep()
			r.append(r.next(9))
			r.sleep()
		},
		"somebody keeps a copy": func(r *rig) {
			r.append(r.next(30))
			r.sleep()
			r.copy(r.path + ".saved")
			r.do(os.Rename(r.path, r.path+".1"))
			r.append(r.next(2))
			r.sleep()
			r.restart()
			r.append(r.next(2))
			r.sleep()
		},
		"the taker fails for a while": func(r *rig) {
			r.failing(errors.New("disk full"))
			r.append(r.next(3))
			r.sleep()
			r.failing(nil)
			r.sleep()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer func() { r.stop() }()
				r.start()
				scene(r)
				r.all()
				r.counts(0, 0, 0)
			})
		})
	}
}

// TestLost: what cannot be accounted is counted.
func TestLost(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		scene                  func(r *rig)
		garbage, tooLong, gaps float64
	}{
		"garbage": {func(r *rig) {
			r.append(r.next(1) + "nonsense\n\n{\"time\":1}\n" + r.next(1) + "\x00\xff\n")
			r.sleep()
		}, 4, 0, 0},
		"garbage alone is not read again": {func(r *rig) {
			r.append("nonsense\n")
			r.sleep()
			r.restart()
			r.append(r.next(1))
			r.sleep()
		}, 0, 0, 0},
		"a line cut by a kill": {func(r *rig) {
			r.append(r.next(1) + `{"time":1512345678.123,"viewer":"192.0.2` + r.next(2))
			r.sleep()
		}, 0, 0, 0},
		"a cut line at the end of a rotated log": {func(r *rig) {
			r.append(r.next(1) + `{"time":1512345678.123,"viewer":"192.0.2`)
			r.sleep()
			r.do(os.Rename(r.path, r.path+".1"))
			r.append(r.next(1))
			r.sleep()
		}, 1, 0, 0},
		"too long": {func(r *rig) {
			r.append(r.next(1) + line(strings.Repeat("a", maxLine)) + r.next(1) + line(strings.Repeat("b", 3*bufferSize)))
			r.sleep()
			r.append(r.next(2) + strings.Repeat("c", 2*bufferSize))
			r.sleep()
			r.append("\n" + r.next(1))
			r.sleep()
		}, 0, 3, 0},
		"restart in a line that is too long": {func(r *rig) {
			r.append(r.next(1) + strings.Repeat("c", 2*bufferSize))
			r.sleep()
			r.restart()
			r.append("\n" + r.next(1))
			r.sleep()
		}, 0, 1, 0},
		"a power failure took its end": {func(r *rig) {
			r.append(r.next(20))
			info, err := os.Stat(r.path)
			r.do(err)
			r.append(r.next(10))
			r.sleep()
			r.stop()
			r.do(os.Truncate(r.path, info.Size()-7))
			r.start()
			r.sleep()
			r.append(r.next(3))
			r.sleep()
		}, 0, 0, 1},
		"removed while down": {func(r *rig) {
			r.append(r.next(30))
			r.sleep()
			r.stop()
			r.do(os.Remove(r.path))
			r.append(r.next(40))
			r.start()
			r.sleep()
		}, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				defer func() { r.stop() }()
				r.start()
				tt.scene(r)
				r.all()
				r.counts(tt.garbage, tt.tooLong, tt.gaps)
			})
		})
	}
}

// TestSaysWhatIsWrong: once, and with the cure.
func TestSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.start()
		r.sleep()
		if n := strings.Count(r.log.String(), "waiting for nginx's access log"); n != 1 {
			t.Errorf("said %d times: %s", n, r.log.String())
		}
	})
}

// TestLatency: a line is taken within a second.
func TestLatency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		defer func() { r.stop() }()
		r.append("")
		r.start()
		for range 10 {
			time.Sleep(330 * time.Millisecond)
			r.append(r.next(1))
			time.Sleep(time.Second)
			synctest.Wait()
			r.all()
		}
	})
}

func TestParsePosition(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "x", "1 2", "1 -2 ab", "-1 2 ab", "1 2 ab c"} {
		if p := ParsePosition(bad); p != (Position{}) {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}
