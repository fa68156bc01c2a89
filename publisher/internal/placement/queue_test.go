package placement

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
)

// write makes a file and returns its path and digest.
func (s *shop) write(name, content string) (id.Path, id.Digest) {
	s.t.Helper()
	path := s.file(name)
	if err := os.WriteFile(string(path), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path, id.DigestOf([]byte(content))
}

func (s *shop) awaitRecord(path id.Path, message string) map[string]string {
	s.t.Helper()
	var record map[string]string
	s.await(fmt.Sprintf("%q on record for %s", message, path), func() bool {
		record = s.processed(path)
		return strings.HasPrefix(record["MSG"], message)
	})
	return record
}

func taskOf(path id.Path, ttl int) string {
	return fmt.Sprintf(`{"FILE_PATH": %q, "TTL": %d}`, path, ttl)
}

// TestUnplaceableTasksLetOthersPass: more tasks than there are workers, that no box takes for ever,
// hold up nobody, are not tried all the time, survive a crash, and are placed when a box comes.
func TestUnplaceableTasksLetOthersPass(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	var refused atomic.Int64
	s.box(1).unfit = func(h wire.FileHeader) bool {
		large := strings.Contains(string(h.Path), "large")
		if large {
			refused.Add(1)
		}
		return large
	}
	const n = 10
	for i := range n {
		path, _ := s.write(fmt.Sprintf("large-%d", i), fmt.Sprint(i))
		s.push(taskOf(path, 0))
	}
	small, _ := s.write("small", "small")
	s.push(taskOf(small, 0))
	begin := time.Now()
	s.start()
	s.awaitRecord(small, msgSuccess)
	s.await("all rest a second time", func() bool { return refused.Load() >= 2*n && s.queue.Totals().Resting == n })
	if got := s.left(); got != n {
		t.Errorf("%d tasks are left of %d", got, n)
	}
	// At rests of 1, 2, 4 s… each is tried three times within 3 s.
	if limit := n * (2 + int64(time.Since(begin)/time.Second)); refused.Load() > limit {
		t.Errorf("%d refusals within %v", refused.Load(), time.Since(begin))
	}
	s.kill()
	if got := s.left(); got != n {
		t.Errorf("%d tasks survived of %d", got, n)
	}
	s.start()
	s.box(2)
	s.changed <- struct{}{}
	s.await("all placed", func() bool { return s.left() == 0 })
	for i := range n {
		s.awaitRecord(s.file(fmt.Sprintf("large-%d", i)), msgSuccess)
	}
}

// TestTooManyRest: with no room to remember that they rest, tasks go to the tail and others still
// have their turn.
func TestTooManyRest(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.box(1).unfit = func(h wire.FileHeader) bool { return strings.Contains(string(h.Path), "large") }
	for i := range 5 {
		path, _ := s.write(fmt.Sprintf("large-%d", i), "x")
		s.push(taskOf(path, 0))
	}
	s.start()
	s.queue.mu.Lock()
	s.queue.weight = mostWeight
	s.queue.mu.Unlock()
	small, _ := s.write("small", "small")
	s.push(taskOf(small, 0))
	s.awaitRecord(small, msgSuccess)
	s.await("the others are left", func() bool { return s.left() == 5 })
	s.queue.mu.Lock()
	efforts := len(s.queue.efforts)
	s.queue.mu.Unlock()
	if efforts > 5 {
		t.Errorf("%d efforts are remembered", efforts)
	}
	s.box(2)
	s.changed <- struct{}{}
	s.await("all placed", func() bool { return s.left() == 0 })
}

// TestTwins: the same task many times, while no box takes its file, is one task.
func TestTwins(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.box(1).unfit = func(wire.FileHeader) bool { return true }
	path, d := s.write("file", "content")
	for range 50 {
		s.push(taskOf(path, 0))
	}
	s.start()
	s.await("one is left", func() bool { return s.left() == 1 && s.queue.Totals().Ended[TaskMerged] == 49 })
	s.box(2)
	s.changed <- struct{}{}
	s.awaitRecord(path, msgSuccess)
	s.await("none is left", func() bool { return s.left() == 0 })
	if n := s.holders(path, d); n != 1 {
		t.Errorf("%d copies", n)
	}
}

// TestTTLOver: a task with a TTL is given up when that is over, not later, and counted.
func TestTTLOver(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	path, _ := s.write("file", "content")
	s.push(taskOf(path, 2))
	begin := time.Now()
	s.start()
	s.awaitRecord(path, "Error: TTL over")
	if took := time.Since(begin); took < 2*time.Second {
		t.Errorf("given up after %v", took)
	}
	s.await("it is counted", func() bool { return s.queue.Totals().Ended[GivenUpTTL] == 1 })
}

// TestOneLiarDoesNotEndATask: a box that says of a file that nobody may take it is not believed
// alone.
func TestOneLiarDoesNotEndATask(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.box(1, nil, refuses(wire.KindPath))
	r.box(2, nil, stores(0))
	f := push.File{Path: "/f", Size: 1, Digest: id.DigestOf([]byte("x")), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }}
	for i := range 5 {
		f.Path = id.Path(fmt.Sprintf("/f%d", i))
		round := round{File: f, replicas: 1, since: time.Now()}
		r.askBoxes(t.Context(), &round)
		if round.copies != 1 || round.refused > 1 {
			t.Errorf("%+v", round)
		}
	}
	// With nobody who says otherwise it ends after three answers.
	s := newShop(t)
	s.box(1)
	s.start()
	q := s.queue
	e := &effort{since: time.Now(), refused: mostRefusals - 1}
	path, _ := s.write("file", "content")
	liar := newRig(t)
	liar.box(1, nil, refuses(wire.KindPath))
	lone := &Queue{Placement: liar.Placement, Redis: q.Redis, Sync: q.Sync, Replicas: 2, LocalFile: q.LocalFile, Log: q.Log}
	parsed, err := lone.parse(taskOf(path, 60))
	if err != nil {
		t.Fatal(err)
	}
	if err := lone.serve(t.Context(), &parsed, e); outcomeOf(err) != GivenUpRefused {
		t.Error(err)
	}
	e.refused = 0
	var later *postponed
	if err := lone.serve(t.Context(), &parsed, e); !errors.As(err, &later) {
		t.Error(err)
	}
}

// TestNoThirdCopyAfterARestart: the publisher was killed between the copies and the end of the
// task. Started again, it waits for the boxes that have the copies, also where Redis alone
// knows of them.
func TestNoThirdCopyAfterARestart(t *testing.T) {
	t.Parallel()
	for name, recorded := range map[string]bool{"recorded": true, "killed before that": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newShop(t)
			s.box(1)
			s.box(2)
			path, d := s.write("file", "content")
			raw := taskOf(path, 600)
			s.push(raw)
			s.start()
			s.await("placed", func() bool { return s.left() == 0 && s.holders(path, d) == 2 })
			s.kill()
			if !recorded {
				s.redis.Del(t.Context(), s.keys.ProcessedFile(path), s.keys.Holders(path, d))
			}
			s.redis.RPush(t.Context(), s.keys.Taken(), raw)
			s.boxes[0].set(absent)
			s.boxes[1].set(absent)
			s.box(3)
			s.start()
			s.await("a box that holds nothing is up", func() bool { return s.placement.Up() == 1 })
			s.await("the task waits", func() bool { return s.queue.Totals().Resting == 1 })
			s.boxes[0].set(willing)
			s.boxes[1].set(willing)
			s.await("finished", func() bool { return s.left() == 0 })
			if n := s.holders(path, d); n != 2 {
				t.Errorf("on %d boxes", n)
			}
			s.awaitRecord(path, msgSuccess)
		})
	}
}

// TestPlacedAndDeleted: a file that its owner deleted after it was on record as placed does not
// turn the record into a failure when the task is found again.
func TestPlacedAndDeleted(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.box(1)
	path, _ := s.write("file", "content")
	raw := taskOf(path, 0)
	s.push(raw)
	s.start()
	s.await("placed", func() bool { return s.left() == 0 })
	s.kill()
	if err := os.Remove(string(path)); err != nil {
		t.Fatal(err)
	}
	s.redis.RPush(t.Context(), s.keys.Taken(), raw)
	s.start()
	s.await("finished", func() bool { return s.left() == 0 })
	s.await("counted", func() bool { return s.queue.Totals().Ended[TaskPlaced] == 1 })
	if record := s.processed(path); record["MSG"] != msgSuccess {
		t.Error(record)
	}
}

// TestGone: what may pass is no reason to give a task up.
func TestGone(t *testing.T) {
	t.Parallel()
	var later *postponed
	for err, want := range map[error]Outcome{
		syscall.ENOENT: GivenUpGone, syscall.ENOTDIR: GivenUpGone, syscall.EACCES: GivenUpForbidden, syscall.EMFILE: "", syscall.EIO: "",
	} {
		got := gone(&os.PathError{Op: "open", Path: "/f", Err: err})
		if want == "" && !errors.As(got, &later) || want != "" && outcomeOf(got) != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// TestStrangersKeys: keys of another type, made by somebody else, are named in the log and hold
// up nothing but themselves.
func TestStrangersKeys(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	said := &warnings{}
	s.log = slog.New(said)
	s.box(1)
	ctx := t.Context()
	bad, d := s.write("bad", "bad")
	lost := s.file("lost")
	good, _ := s.write("good", "good")
	s.redis.Set(ctx, s.keys.ProcessedFile(bad), "mine", 0)
	s.redis.Set(ctx, s.keys.ProcessedFile(lost), "mine", 0)
	s.redis.Set(ctx, s.keys.Holders(bad, d), "mine", 0)
	s.redis.Set(ctx, s.keys.SelfInfo(), "mine", 0)
	for _, path := range []id.Path{bad, lost, good} {
		s.push(taskOf(path, 0))
	}
	s.start()
	s.awaitRecord(good, msgSuccess)
	s.await("both lists empty", func() bool { return s.left() == 0 })
	for _, key := range []string{s.keys.ProcessedFile(bad), s.keys.ProcessedFile(lost), s.keys.SelfInfo()} {
		if !said.name(key) {
			t.Errorf("the log does not name %s", key)
		}
	}
	if s.redis.Get(ctx, s.keys.ProcessedFile(bad)).Val() != "mine" {
		t.Error("somebody's value was overwritten")
	}
	s.redis.Set(ctx, s.keys.SendingQueue(), "mine", 0)
	s.await("the queue's key is named", func() bool { return said.name(s.keys.SendingQueue()) })
	s.redis.Del(ctx, s.keys.SendingQueue())
	again, _ := s.write("again", "again")
	s.push(taskOf(again, 0))
	s.awaitRecord(again, msgSuccess)
	if n := said.count(); n > 10 {
		t.Errorf("%d warnings", n)
	}
}

// warnings counts what is said at Warn and above, and keeps it.
type warnings struct {
	mu   sync.Mutex
	said []string
}

func (w *warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w *warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w *warnings) WithGroup(string) slog.Handler                { return w }
func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, text)
	return nil
}

func (w *warnings) name(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, text := range w.said {
		if strings.Contains(text, key) {
			return true
		}
	}
	return false
}

func (w *warnings) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.said)
}

// TestSilentRedis: with a Redis that takes connections and never answers, who holds what is
// answered at once, and live segments are placed.
func TestSilentRedis(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var asked atomic.Int64
	r.Placement.records.redis.AddHook(stuck{&asked})
	box := r.box(1, nil, stores(0))
	const n = 20
	for i := range n {
		s := r.segment(i, 1)
		placed := make(chan struct{})
		var once sync.Once
		s.Placed = func() { once.Do(func() { close(placed) }) }
		r.Place(s)
		select {
		case <-placed:
		case <-time.After(10 * time.Second):
			t.Fatal("a live segment waits for Redis")
		}
		if got := r.Find(s.Path, s.Digest, front.Asker{Addr: netip.MustParseAddr("127.0.0.1")}).Holders; len(got) != 1 || got[0].Box != box {
			t.Errorf("holders: %v", got)
		}
		if _, ok := r.Records().Lookup(s.Path); !ok {
			t.Error("no record")
		}
	}
	r.await("Redis was asked at all", func() bool { return asked.Load() > 0 })
	if r.Records().Count() != n {
		t.Errorf("%d records", r.Records().Count())
	}
}

// stuck lets commands wait until their context ends.
type stuck struct{ asked *atomic.Int64 }

func (s stuck) DialHook(next redis.DialHook) redis.DialHook { return next }
func (s stuck) ProcessHook(redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, _ redis.Cmder) error { s.asked.Add(1); <-ctx.Done(); return ctx.Err() }
}

func (s stuck) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		s.asked.Add(1)
		<-ctx.Done()
		for _, cmd := range cmds {
			cmd.SetErr(ctx.Err())
		}
		return ctx.Err()
	}
}

// TestTwoTasksForOneFile: served at the same time they make no more copies than one does.
func TestTwoTasksForOneFile(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for n := range 4 {
		s.box(n).set(slow)
	}
	path, d := s.write("file", "content")
	for ttl := range 4 {
		s.push(taskOf(path, 600-ttl))
	}
	s.start()
	s.await("both lists empty", func() bool { return s.left() == 0 })
	if n := s.holders(path, d); n != 2 {
		t.Errorf("on %d boxes", n)
	}
	s.await("four tasks placed", func() bool { return s.queue.Totals().Ended[TaskPlaced] == 4 }) // counted behind the lists
}

// TestRecordBeforeTheEnd: a task leaves TAKEN after its record is in Redis, however slow that is.
func TestRecordBeforeTheEnd(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	s.box(1)
	path, _ := s.write("file", "content")
	s.start()
	order := &order{}
	s.client.AddHook(order)
	s.push(taskOf(path, 600))
	var record, end int
	s.await("finished", func() bool { // the queue is empty a moment before its command is noted
		order.mu.Lock()
		defer order.mu.Unlock()
		record = slices.Index(order.done, "hset "+s.keys.ProcessedFile(path))
		end = slices.Index(order.done, "lrem "+s.keys.Taken())
		return end >= 0
	})
	if record < 0 || end < record {
		t.Errorf("the record is the command %d, and the task's end %d: %q", record, end, order.done)
	}
}

// order notes which commands were carried out; pipelines take their time.
type order struct {
	mu   sync.Mutex
	done []string
}

func (o *order) note(cmds ...redis.Cmder) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, cmd := range cmds {
		if args := cmd.Args(); len(args) > 1 {
			o.done = append(o.done, fmt.Sprint(args[0], " ", args[1]))
		}
	}
}

func (o *order) DialHook(next redis.DialHook) redis.DialHook { return next }
func (o *order) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		defer o.note(cmd)
		return next(ctx, cmd)
	}
}

func (o *order) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		defer o.note(cmds...)
		<-time.After(100 * time.Millisecond)
		return next(ctx, cmds)
	}
}

// TestLongerTTLRenewsCopies: a file that is to stay longer stays where it is.
func TestLongerTTLRenewsCopies(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	for n := range 4 {
		s.box(n)
	}
	path, d := s.write("file", "content")
	s.start()
	for _, ttl := range []int{60, 600, 3600} {
		s.push(taskOf(path, ttl))
		s.await("placed", func() bool { return s.left() == 0 })
	}
	if n := s.holders(path, d); n != 2 {
		t.Errorf("on %d boxes", n)
	}
	if got := s.placement.records.holdersUntil(path, d, time.Now().Add(time.Hour-time.Minute)); len(got) != 2 {
		t.Errorf("for an hour on %v", got)
	}
}
