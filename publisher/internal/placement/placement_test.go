package placement

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/push"
	"dandelion/publisher/internal/stream"
)

const testPublisher = id.PublisherID("publisher-0123456789abcdef0123456789abcdef")

// rig is a placement with boxes that answer files as the test says. Real boxes are in package
// testfleet; here is how boxes go wrong.
type rig struct {
	t     *testing.T
	dir   string
	redis *miniredis.Miniredis

	edge  atomic.Int32 // status with which boxes answer viewers, 200 at first
	looks atomic.Int32 // requests of viewers, or of who does as they do

	copied chan wire.Copy // what boxes were asked to copy, as far as it has room

	mu      sync.Mutex
	boxes   []fleet.Box
	window  []Live
	changed chan struct{}

	*Placement
	stop func()
}

func (r *rig) Boxes() []fleet.Box {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]fleet.Box(nil), r.boxes...)
}
func (r *rig) Changed() <-chan struct{} { return r.changed }

func newRig(t *testing.T) *rig { return newRigWith(t, func(*Config) {}) }

func newRigWith(t *testing.T, change func(*Config)) *rig {
	r := &rig{t: t, dir: t.TempDir(), redis: miniredis.RunT(t), changed: make(chan struct{}, 1), copied: make(chan wire.Copy, 100)}
	client := redis.NewClient(&redis.Options{Addr: r.redis.Addr(), MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	r.edge.Store(http.StatusOK)
	cfg := Config{
		Own: push.Own{ID: testPublisher}, MinBoxes: 10, Fleet: r, Redis: client, Log: slog.New(slog.DiscardHandler),
		Window: func() []Live {
			r.mu.Lock()
			defer r.mu.Unlock()
			return append([]Live(nil), r.window...)
		},
	}
	change(&cfg)
	r.Placement = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.Run(ctx) }()
	r.stop = func() { cancel(); <-done }
	t.Cleanup(r.stop)
	return r
}

// box adds a box that answers each file with what answer returns: nil, nothing at all.
func (r *rig) box(n int, have []wire.HaveFile, answer func(h wire.FileHeader) any) id.BoxID {
	r.t.Helper()
	return r.boxAt(n, wire.GeoIP{}, nil, have, answer)
}

// boxAt adds one that says where it is, and grants. Viewers reach it by a name.
func (r *rig) boxAt(n int, place wire.GeoIP, grant *wire.Terms, have []wire.HaveFile, answer func(h wire.FileHeader) any) id.BoxID {
	r.t.Helper()
	box := id.BoxID(fmt.Sprintf("box-%032x", n))
	peer := wire.Peer{ID: string(box), IP: "127.0.0.1", Port: "1", Type: wire.TypeBox}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodHead {
			r.looks.Add(1)
			w.WriteHeader(int(r.edge.Load()))
			return
		}
		c, err := wsconn.Accept(w, req, netaddr.Addr(nil))
		if err != nil {
			return
		}
		go r.serve(c, peer, grant, have, answer)
	}))
	r.t.Cleanup(srv.Close)
	r.mu.Lock()
	b := fleet.Box{
		ID: box, Exchange: wire.Exchange{ConnectWS: srv.URL + wire.BoxWSPath(box), GeoIP: place}, EdgeBase: srv.URL, EdgeAddr: netip.MustParseAddr("127.0.0.1"),
	}
	if place != (wire.GeoIP{}) {
		b.EdgeAddr = netip.Addr{}
	}
	r.boxes = append(r.boxes, b)
	r.mu.Unlock()
	r.changed <- struct{}{}
	r.await("the box is up", func() bool { return r.up()[box] })
	return box
}

func (r *rig) serve(c *wsconn.Conn, peer wire.Peer, grant *wire.Terms, have []wire.HaveFile, answer func(h wire.FileHeader) any) {
	defer c.Abort()
	if _, err := c.ReadText(wire.MaxMessage); err != nil {
		return
	}
	_ = c.WriteText(wire.Encode(wire.PublishReply{Peer: peer, Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: wire.Ours(), Grant: grant}))
	for {
		binary, body, err := c.Next()
		if err != nil {
			return
		}
		if !binary {
			b, _ := io.ReadAll(body)
			if strings.Contains(string(b), wire.CommandHave) {
				_ = c.WriteText(wire.Encode(wire.HavePageReply{Peer: peer, Command: wire.CommandHave, Files: have}))
			}
			if m, err := wire.Decode[wire.Copy](b); err == nil && m.Command == wire.CommandCopy {
				select {
				case r.copied <- m:
				default:
				}
			}
			continue
		}
		br := bufio.NewReader(body)
		h, err := wire.ReadFileHeader(br)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, br); err != nil {
			return
		}
		switch reply := answer(h).(type) {
		case wire.Stored:
			reply.Command, reply.RequestID, reply.FilePath, reply.Size, reply.SHA256 = wire.CommandStored, h.RequestID, h.Path, h.Size, h.Digest
			_ = c.WriteText(wire.Encode(reply))
		case wire.Refused:
			reply.Command, reply.RequestID, reply.Error = wire.CommandRefused, h.RequestID, "no"
			_ = c.WriteText(wire.Encode(reply))
		}
	}
}

// stores answers as a box whose clock is off.
func stores(off time.Duration) func(wire.FileHeader) any {
	return func(h wire.FileHeader) any { return wire.Stored{Expires: time.Now().Add(h.TTL + off).Unix()} }
}

func counted(n *atomic.Int64, answer func(wire.FileHeader) any) func(wire.FileHeader) any {
	return func(h wire.FileHeader) any { n.Add(1); return answer(h) }
}

func refuses(k wire.Kind) func(wire.FileHeader) any {
	return func(wire.FileHeader) any { return wire.Refused{Kind: k} }
}

func (r *rig) await(what string, condition func() bool) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			r.t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// show makes the segment the window.
func (r *rig) show(s Live) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.window = []Live{s}
}

func (r *rig) idle() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	for _, m := range r.members {
		if len(m.queue) > 0 || m.waiting != 0 {
			return false
		}
	}
	return len(r.jobs) == 0
}

func (r *rig) segment(n, replicas int) Live {
	r.t.Helper()
	content := fmt.Appendf(nil, "segment %d", n)
	d := id.DigestOf(content)
	path, err := id.NewSegmentPath("demo", "v", d, fmt.Sprintf("%d.ts", n))
	if err != nil {
		r.t.Fatal(err)
	}
	file := filepath.Join(r.dir, fmt.Sprint(n))
	if err := os.WriteFile(file, content, 0o600); err != nil {
		r.t.Fatal(err)
	}
	now := time.Now()
	return Live{Replicas: replicas, Placed: func() {}, Segment: stream.Segment{
		Path: path.Path(), Digest: d, Size: int64(len(content)), File: file,
		Complete: now, Deadline: now.Add(time.Second), Expires: now.Add(time.Minute), Duration: time.Second,
	}}
}

// TestClocksOfBoxesDoNotCount: a box at 1970, or one that is an hour ahead, holds a file for as
// long as it was told to, and is not sent it again and again.
func TestClocksOfBoxesDoNotCount(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"1970": -56 * 365 * 24 * time.Hour, "right": 0, "ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			var pushes atomic.Int64
			box := r.box(1, nil, counted(&pushes, stores(off)))
			s := r.segment(1, 1)
			r.show(s)
			r.Place(s)
			r.await("a copy", func() bool { return r.copies1(s) == 1 && r.idle() })
			r.replace()
			if !r.idle() || pushes.Load() != 1 {
				t.Errorf("%d pushes of one segment", pushes.Load())
			}
			if got := r.Find(s.Path, s.Digest, front.Asker{Addr: netip.MustParseAddr("127.0.0.1")}).Holders; len(got) != 1 || got[0].Box != box {
				t.Errorf("holders: %v", got)
			}
			r.records.sweep(s.Expires.Add(10 * time.Second))
			if _, ok := r.records.Lookup(s.Path); ok && r.copies1(s) > 0 {
				t.Error("the copy outlives its TTL")
			}
		})
	}
}

func (r *rig) copies1(s Live) int {
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	return r.copies(s)
}

// TestBoxesThatRefuseAreNotFlooded: what waits for a box that refuses leaves it with the first
// refusal, another box gets all, and nothing is left over.
func TestBoxesThatRefuseAreNotFlooded(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var refused, stored atomic.Int64
	r.box(1, nil, counted(&refused, refuses(wire.KindFull)))
	r.box(2, nil, counted(&stored, stores(0)))
	const n = 50
	for i := range n {
		r.Place(r.segment(i, 2))
	}
	r.await("all settled", r.idle)
	if stored.Load() != n || refused.Load() > 2*pipelined || r.Totals().Placed != n {
		t.Errorf("%d stored, %d refused, %+v", stored.Load(), refused.Load(), r.Totals())
	}
}

// TestNoBoxLeavesNothing: with boxes that refuse, or none, all jobs end, and a job whose own file
// is gone is not tried again at once.
func TestNoBoxLeavesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.segment(1, 2)
	r.Place(s)
	if !r.idle() {
		t.Error("a job waits for boxes that do not exist")
	}
	var pushes atomic.Int64
	r.box(1, nil, counted(&pushes, refuses(wire.KindDraining)))
	for i := range 3 * maxWaiting {
		r.Place(r.segment(i, 1))
	}
	r.await("all settled", r.idle)
	if pushes.Load() > 2*pipelined {
		t.Errorf("%+v, %d pushes", r.Totals(), pushes.Load())
	}

	r = newRig(t)
	r.box(1, nil, stores(0))
	s = r.segment(1, 2)
	if err := os.Remove(s.File); err != nil {
		t.Fatal(err)
	}
	r.Place(s)
	r.await("given up", func() bool {
		r.Placement.mu.Lock()
		defer r.Placement.mu.Unlock()
		return len(r.resting) == 1 && len(r.jobs) == 0
	})
	r.show(s)
	r.replace()
	if !r.idle() {
		t.Error("tried again at once")
	}
}

// TestQueueOfASlowBoxOverflows: the oldest segment leaves a box that answers nothing.
func TestQueueOfASlowBoxOverflows(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var stored atomic.Int64
	r.box(1, nil, func(wire.FileHeader) any { return nil })
	for i := range maxWaiting + pipelined {
		r.Place(r.segment(i, 1))
	}
	r.box(2, nil, counted(&stored, stores(0)))
	for i := range 20 {
		r.Place(r.segment(1000+i, 2))
	}
	r.await("overflow", func() bool { return r.Totals().Undelivered[ReasonOverflow] > 0 && stored.Load() >= 20 })
	r.stop()
	r.await("all settled", r.idle)
}

// TestBulkRefusalsLeaveLiveAlone: that no box has room for a large upload keeps no segment away,
// and the upload is not sent at every look.
func TestBulkRefusalsLeaveLiveAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var live, bulk atomic.Int64
	r.box(1, nil, func(h wire.FileHeader) any {
		if h.Path == "/large" {
			bulk.Add(1)
			return wire.Refused{Kind: wire.KindTooLarge}
		}
		live.Add(1)
		return stores(0)(h)
	})
	large := push.File{Path: "/large", Size: 5, Digest: id.DigestOf([]byte("large")), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("large")), nil }}
	if err := r.placeOnce(t.Context(), large, 2, taskFacts{}); !isRefusal(err, wire.KindTooLarge) || bulk.Load() != 1 {
		t.Fatalf("%v, %d pushes", err, bulk.Load())
	}
	r.Place(r.segment(1, 1))
	r.await("placed", func() bool { return live.Load() == 1 && r.idle() })
}

func TestRest(t *testing.T) {
	t.Parallel()
	now := time.Now()
	up := map[id.BoxID]bool{"a": true}
	r := rest{}
	if !r.due(up, now) {
		t.Error("not due at first")
	}
	for _, want := range []time.Duration{firstRest, 2 * firstRest, 4 * firstRest} {
		r = r.after(up, now)
		if r.wait != want || r.due(up, now.Add(want-1)) || !r.due(up, now.Add(want)) {
			t.Errorf("%+v, want %v", r, want)
		}
	}
	if !r.due(map[id.BoxID]bool{"a": true, "b": true}, now) {
		t.Error("a new box is not asked")
	}
	for range 20 {
		r = r.after(up, now)
	}
	if r.wait != longestRest {
		t.Error(r.wait)
	}
}

// TestHaveThatLies: paths that carry a digest hold only those bytes.
func TestHaveThatLies(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	s := r.segment(1, 1)
	other := id.DigestOf([]byte("other"))
	r.box(1, []wire.HaveFile{{FilePath: s.Path, SHA256: other, Size: 5}, {FilePath: "/task", SHA256: other, Size: 5}}, stores(0))
	if _, ok := r.records.Lookup(s.Path); ok {
		t.Error("a segment with other bytes than its path says")
	}
	if p, ok := r.records.Lookup("/task"); !ok || p.Digest != other {
		t.Error("a file of a task is not taken up")
	}
}

// TestStop leaves no goroutine, whatever was under way. It is not parallel: goleak looks at all.
func TestStop(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	t.Run("run", func(t *testing.T) {
		r := newRig(t)
		r.box(1, nil, func(wire.FileHeader) any { return nil })
		for i := range 10 {
			r.Place(r.segment(i, 1))
		}
		ctx, cancel := context.WithCancel(t.Context())
		f := push.File{Path: "/file", Size: 1, Digest: id.DigestOf([]byte("x")), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }}
		done := make(chan error, 1)
		go func() { done <- r.placeOnce(ctx, f, 1, taskFacts{}) }()
		r.await("a push under way", func() bool { return r.Totals().Sent > 1 })
		r.stop()
		cancel()
		if err := <-done; err == nil || errors.Is(err, push.ErrSource) {
			t.Error(err)
		}
		if !r.idle() {
			t.Error("jobs are left")
		}
	})
	goleak.VerifyNone(t, ignore)
}

// TestUnreachableBoxesGiveWay: boxes that cannot be reached do not keep all places to themselves.
func TestUnreachableBoxesGiveWay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.mu.Lock()
	for n := range 10 { // as many as MaxBoxes
		box := id.BoxID(fmt.Sprintf("box-%032x", n))
		r.boxes = append(r.boxes, fleet.Box{ID: box, Exchange: wire.Exchange{ConnectWS: "http://127.0.0.1:1" + wire.BoxWSPath(box)}})
	}
	r.mu.Unlock()
	r.changed <- struct{}{}
	places := func() int {
		r.Placement.mu.Lock()
		defer r.Placement.mu.Unlock()
		return len(r.members)
	}
	r.await("ten places taken", func() bool { return places() == 10 })
	r.Placement.mu.Lock()
	for _, m := range r.members {
		m.down = m.down.Add(-giveUpAfter)
	}
	r.Placement.mu.Unlock()
	r.box(99, nil, stores(0)) // waits until it is up
	if n := places(); n != 10 {
		t.Errorf("%d places", n)
	}
}
