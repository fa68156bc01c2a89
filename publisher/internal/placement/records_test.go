package placement

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
)

func newTestRecords(t *testing.T) (*Records, *miniredis.Miniredis) {
	m := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: m.Addr(), MaxRetries: -1})
	t.Cleanup(func() { client.Close() })
	return newRecords(testPublisher, client, slog.New(slog.DiscardHandler)), m
}

func testFile(path id.Path, content string, ttl time.Duration) push.File {
	return push.File{Path: path, Digest: id.DigestOf([]byte(content)), Size: int64(len(content)), TTL: ttl}
}

func TestRecords(t *testing.T) {
	t.Parallel()
	r, _ := newTestRecords(t)
	now := time.Now()
	one := testFile("/f", "one", time.Minute)
	if !r.add(one, "box-a", now, taskFacts{}) || r.add(one, "box-b", now, taskFacts{}) || r.add(one, "box-a", now, taskFacts{}) {
		t.Error("the first holder is not told from others")
	}
	if got := r.holders("/f", one.Digest); !slices.Equal(got, []id.BoxID{"box-a", "box-b"}) {
		t.Error(got)
	}
	two := testFile("/f", "two", time.Minute)
	if got := r.holders("/f", two.Digest); got != nil {
		t.Error("other bytes under this path are held by", got)
	}
	if !r.add(two, "box-b", now, taskFacts{}) || r.holders("/f", one.Digest) != nil {
		t.Error("other bytes did not replace the record")
	}
	// What HAVE says replaces what is known of the box, and of it alone.
	three := id.DigestOf([]byte("three"))
	r.replaceHoldings("box-b", []wire.HaveFile{{FilePath: "/g", SHA256: three, Size: 5, Expires: now.Add(time.Hour).Unix()}})
	if len(r.holders("/f", two.Digest)) != 0 || len(r.holders("/g", three)) != 1 {
		t.Error("HAVE did not replace the holdings")
	}
	// An older copy of replaced bytes does not come back.
	r.add(two, "box-a", now, taskFacts{})
	r.replaceHoldings("box-b", []wire.HaveFile{{FilePath: "/f", SHA256: one.Digest, Size: 3}})
	if p, _ := r.Lookup("/f"); p.Digest != two.Digest || len(r.holders("/f", two.Digest)) != 1 {
		t.Error("HAVE brought replaced bytes back")
	}
}

// TestViewersAreNotSentToWhatExpires: a copy that goes within the next moments is none for viewers.
func TestViewersAreNotSentToWhatExpires(t *testing.T) {
	t.Parallel()
	r, _ := newTestRecords(t)
	now := time.Now()
	f := testFile("/f", "one", time.Minute)
	r.add(f, "box-a", now.Add(leastUseful/2-f.TTL), taskFacts{})
	r.add(f, "box-b", now, taskFacts{})
	f.TTL = 0
	r.add(f, "box-c", now, taskFacts{})
	if got := r.holdersFor("/f", f.Digest); !slices.Equal(got, []id.BoxID{"box-b", "box-c"}) {
		t.Error(got)
	}
	if got := r.holders("/f", f.Digest); len(got) != 3 {
		t.Error(got)
	}
}

// TestRecordsWaitForRedis: what changes while Redis is down is written when it is back, and what
// nobody holds any more does not pile up meanwhile.
func TestRecordsWaitForRedis(t *testing.T) {
	t.Parallel()
	r, m := newTestRecords(t)
	now := time.Now()
	m.Close()
	const n = flushBatch + 10
	for i := range n {
		r.add(testFile(id.Path(fmt.Sprintf("/f%d", i)), "x", time.Minute), "box-a", now, taskFacts{})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := r.flush(ctx); err == nil || len(r.dirty) != n {
		t.Errorf("%v, %d wait", err, len(r.dirty))
	}
	if err := m.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := r.flush(ctx); err != nil || len(r.dirty) != 0 {
		t.Errorf("%v, %d wait", err, len(r.dirty))
	}
	k := keys.Publisher(testPublisher)
	if got := m.HGet(k.ProcessedFile("/f0"), "MSG"); got != msgSuccess || m.TTL(k.ProcessedFile("/f0")) == 0 {
		t.Errorf("MSG %q", got)
	}
	// A file without a TTL does not go with the time of an earlier record.
	r.add(testFile("/f0", "y", 0), "box-a", now, taskFacts{})
	if err := r.flush(ctx); err != nil || m.TTL(k.ProcessedFile("/f0")) < lease-time.Minute {
		t.Errorf("%v: expires in %v", err, m.TTL(k.ProcessedFile("/f0")))
	}

	m.Close()
	for i := range maxDirty + 100 {
		r.add(testFile(id.Path(fmt.Sprintf("/g%d", i)), "x", time.Second), "box-a", now, taskFacts{})
	}
	r.sweep(now.Add(2 * time.Minute))
	if got := r.Count(); got > maxDirty+1 { // and /f0
		t.Errorf("%d records that nobody holds wait for Redis", got)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	r, _ := newTestRecords(t)
	now := time.Now()
	r.add(testFile("/short", "x", time.Second), "box-a", now, taskFacts{})
	r.add(testFile("/long", "x", time.Hour), "box-a", now, taskFacts{})
	r.add(testFile("/ever", "x", 0), "box-a", now, taskFacts{})
	r.sweep(now.Add(time.Minute))
	if r.Count() != 3 {
		t.Error("a record went before Redis knew of it")
	}
	if err := r.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.sweep(now.Add(time.Minute))
	if _, ok := r.Lookup("/short"); ok || r.Count() != 2 {
		t.Errorf("%d records", r.Count())
	}
}

func TestParseTask(t *testing.T) {
	t.Parallel()
	q := &Queue{}
	for raw, want := range map[string]struct {
		name string
		ttl  time.Duration
		ok   bool
	}{
		`{"FILE_PATH": "/a/b", "TTL": "30"}`: {"/a/b", 30 * time.Second, true},
		`{"FILE_PATH": "a", "X": 1}`:         {"/a", wire.DefaultTTL, true},
		`{"FILE_PATH": "/a", "TTL": 0}`:      {"/a", 0, true},
		`{"FILE_PATH": "/a", "TTL": -1}`:     {"/a", 0, false},
		`{"FILE_PATH": "/a/../b"}`:           {"/a/../b", 0, false},
		`{"TTL": 1}`:                         {"/malformed/", 0, false},
		`{"FILE_PATH": 5}`:                   {"5", 0, false},
		`[]`:                                 {"/malformed/", 0, false},
		`no`:                                 {"/malformed/", 0, false},
		`{"FILE_PATH": "/a", "X": "` + string(make([]byte, maxTask)) + `"}`: {"/malformed/", 0, false},
	} {
		got, err := q.parse(raw)
		short := raw[:min(len(raw), 60)]
		if (err == nil) != want.ok || want.ok && got.head.TTL != want.ttl {
			t.Errorf("%s: %+v, %v", short, got.head, err)
		}
		if name := got.name; name != want.name && (want.name != "/malformed/" || len(name) != len(want.name)+12) {
			t.Errorf("%s: on record as %s", short, name)
		}
	}
}
