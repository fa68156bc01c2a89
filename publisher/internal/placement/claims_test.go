package placement

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/wire"
)

func boxID(n int) id.BoxID { return id.BoxID(fmt.Sprintf("box-%032x", n)) }

func have(path id.Path, content string) wire.HaveFile {
	return wire.HaveFile{FilePath: path, SHA256: id.DigestOf([]byte(content)), Size: int64(len(content))}
}

// TestClaims: which bytes a path has after a restart, by what boxes say, Redis knows and the
// publisher's own file shows.
func TestClaims(t *testing.T) {
	t.Parallel()
	const path = id.Path("/movie")
	true3, lie3, lie9 := have(path, "yes"), have(path, "lie"), have(path, "long lies")
	for name, c := range map[string]struct {
		says    []wire.HaveFile // by box
		redis   string          // content on record; "": nothing
		own     string          // content of the publisher's own file; "": none
		want    wire.HaveFile   // zero: no record
		holders []int
	}{
		"one box":                     {says: []wire.HaveFile{true3}, want: true3, holders: []int{0}},
		"most boxes":                  {says: []wire.HaveFile{lie3, true3, true3}, want: true3, holders: []int{1, 2}},
		"the first of equals":         {says: []wire.HaveFile{true3, lie3}, want: true3, holders: []int{0}},
		"Redis before most":           {says: []wire.HaveFile{lie3, lie3, true3}, redis: "yes", want: true3, holders: []int{2}},
		"Redis before all":            {says: []wire.HaveFile{lie3, lie3}, redis: "yes"},
		"own file's size":             {says: []wire.HaveFile{lie9, lie9, true3}, own: "yes", want: true3, holders: []int{2}},
		"own file's size, before all": {says: []wire.HaveFile{lie9}, own: "yes"},
		"own file's digest":           {says: []wire.HaveFile{lie3, lie3, true3}, own: "yes", want: true3, holders: []int{2}},
		"Redis before the own file":   {says: []wire.HaveFile{true3}, redis: "yes", own: "changed since", want: true3, holders: []int{0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _ := newTestRecords(t)
			if c.redis != "" {
				before := newRecords(testPublisher, r.redis, r.log)
				before.add(testFile(path, c.redis, 0), boxID(9), time.Now(), taskFacts{extra: map[string]string{"TTL": "0", "channel": "ch1"}})
				if err := before.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			own := ""
			if c.own != "" {
				own = filepath.Join(t.TempDir(), "own")
				if err := os.WriteFile(own, []byte(c.own), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for n, h := range c.says {
				r.replaceHoldings(boxID(n), []wire.HaveFile{h})
			}
			if err := r.follow(t.Context()); err != nil {
				t.Fatal(err)
			}
			q := &Queue{Placement: &Placement{records: r}, LocalFile: func(id.Path) string { return own }, Log: slog.New(slog.DiscardHandler)}
			q.examine(t.Context())
			if err := r.follow(t.Context()); err != nil {
				t.Fatal(err)
			}
			got, ok := r.Lookup(path)
			if ok != (c.want.Size > 0) || got.Digest != c.want.SHA256 || got.Size != c.want.Size {
				t.Fatalf("%+v, %v", got, ok)
			}
			var boxes []id.BoxID
			for _, n := range c.holders {
				boxes = append(boxes, boxID(n))
			}
			holders := r.holders(path, c.want.SHA256)
			slices.Sort(holders)
			if !slices.Equal(holders, boxes) {
				t.Errorf("held by %v, want %v", holders, boxes)
			}
			fields := r.redis.HGetAll(t.Context(), keys.Publisher(testPublisher).ProcessedFile(path)).Val()
			if c.redis != "" && (fields[fieldDigest] != id.DigestOf([]byte(c.redis)).String() || fields["channel"] != "ch1" || fields["ID"] != string(boxID(9)) || fields["TTL"] != "0") {
				t.Errorf("Redis says now %v", fields)
			}
			if c.redis == "" && c.own == "" && fields[fieldDigest] != "" {
				t.Errorf("a box's word is in Redis as certain: %v", fields)
			}
		})
	}
}

// TestClaimsOverTime: a majority that comes later counts, one that goes is not kept, and what the
// publisher pushed itself is not voted about.
func TestClaimsOverTime(t *testing.T) {
	t.Parallel()
	const path = id.Path("/movie")
	yes, lie := have(path, "yes"), have(path, "lie")
	r, _ := newTestRecords(t)
	digest := func() id.Digest { p, _ := r.Lookup(path); return p.Digest }
	r.replaceHoldings(boxID(0), []wire.HaveFile{lie})
	if err := r.follow(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.replaceHoldings(boxID(1), []wire.HaveFile{yes})
	if digest() != lie.SHA256 {
		t.Error("one box outvotes one")
	}
	r.replaceHoldings(boxID(2), []wire.HaveFile{yes})
	if digest() != yes.SHA256 || len(r.holders(path, yes.SHA256)) != 2 {
		t.Error("a later majority does not count")
	}
	r.replaceHoldings(boxID(2), nil)
	r.replaceHoldings(boxID(1), nil)
	if digest() != lie.SHA256 {
		t.Error("nobody holds the bytes that won, and others are not seen")
	}
	r.add(testFile(path, "yes", 0), boxID(3), time.Now(), taskFacts{})
	for n := range 3 {
		r.replaceHoldings(boxID(n), []wire.HaveFile{lie})
	}
	if digest() != yes.SHA256 || len(r.holders(path, yes.SHA256)) != 1 {
		t.Error("what was pushed is outvoted")
	}
}

// TestRecall: Redis is believed of boxes that have not spoken themselves, for copies that are not
// over.
func TestRecall(t *testing.T) {
	t.Parallel()
	r, m := newTestRecords(t)
	d := id.DigestOf([]byte("x"))
	key := keys.Publisher(testPublisher).Holders("/f", d)
	now := time.Now()
	for n, expires := range map[int]float64{0: expiryScore(now.Add(time.Hour)), 1: expiryScore(time.Time{}), 2: expiryScore(now.Add(-time.Second)), 3: expiryScore(time.Time{})} {
		if _, err := m.ZAdd(key, expires, string(boxID(n))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.ZAdd(key, 1e12, "no box"); err != nil {
		t.Fatal(err)
	}
	r.replaceHoldings(boxID(3), nil)
	if err := r.recall(t.Context(), "/f", d, 1); err != nil {
		t.Fatal(err)
	}
	got := r.holders("/f", d)
	slices.Sort(got)
	if !slices.Equal(got, []id.BoxID{boxID(0), boxID(1)}) {
		t.Error(got)
	}
	if got := r.holdersUntil("/f", d, now.Add(2*time.Hour)); !slices.Equal(got, []id.BoxID{boxID(1)}) {
		t.Errorf("for longer than an hour: %v", got)
	}
}

// TestForget: boxes that do not come back hold nothing after a day, too many records make room,
// and what is held for ever is renewed in Redis.
func TestForget(t *testing.T) {
	t.Parallel()
	r, m := newTestRecords(t)
	now := time.Now()
	r.add(testFile("/both", "x", 0), boxID(1), now, taskFacts{})
	r.add(testFile("/both", "x", 0), boxID(2), now, taskFacts{})
	r.add(testFile("/gone", "x", 0), boxID(2), now, taskFacts{})
	flush := func() {
		t.Helper()
		if err := r.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	flush()
	up := map[id.BoxID]bool{boxID(1): true}
	r.forget(up, now.Add(absence-time.Minute))
	r.sweep(now.Add(absence))
	if r.Count() != 2 || len(r.holders("/both", id.DigestOf([]byte("x")))) != 2 {
		t.Error("forgotten too early")
	}
	r.forget(up, now.Add(absence+time.Minute))
	flush()
	r.sweep(now)
	k := keys.Publisher(testPublisher)
	if got := r.holders("/both", id.DigestOf([]byte("x"))); !slices.Equal(got, []id.BoxID{boxID(1)}) || r.Count() != 1 || m.Exists(k.ProcessedFile("/gone")) {
		t.Errorf("%v, %d records", got, r.Count())
	}
	if got := r.Totals(); got.Aged != 2 {
		t.Errorf("%+v", got)
	}

	m.FastForward(2 * 24 * time.Hour)
	r.forget(up, now.Add(2*24*time.Hour))
	flush()
	if left := m.TTL(k.Holders("/both", id.DigestOf([]byte("x")))); left < lease-time.Hour {
		t.Errorf("not renewed: expires in %v", left)
	}

	for n := range maxRecords + 10 {
		r.add(testFile(id.Path(fmt.Sprintf("/f%d", n)), "x", 0), boxID(3), now, taskFacts{})
	}
	r.forget(up, now)
	if _, ok := r.Lookup("/both"); r.Count() != maxRecords || !ok {
		t.Errorf("%d records", r.Count())
	}
	r.replaceHoldings(boxID(4), []wire.HaveFile{have("/new", "x")})
	if _, ok := r.Lookup("/new"); ok {
		t.Error("a box adds to records that are too many")
	}
}

// TestReplacedBytesLeaveRedis: HOLDERS of earlier contents do not stay.
func TestReplacedBytesLeaveRedis(t *testing.T) {
	t.Parallel()
	r, m := newTestRecords(t)
	for n := range 3 {
		r.add(testFile("/f", fmt.Sprint(n), 0), boxID(1), time.Now(), taskFacts{})
		if err := r.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	k := keys.Publisher(testPublisher)
	want := []string{k.Holders("/f", id.DigestOf([]byte("2"))), k.ProcessedFile("/f"), k.SelfInfo()}
	slices.Sort(want)
	if got := m.Keys(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestLostByRedis: a Redis that was wiped, or has come back with an older state, gets all records
// again, whether something is written just then or not.
func TestLostByRedis(t *testing.T) {
	t.Parallel()
	k := keys.Publisher(testPublisher)
	for name, lose := range map[string]func(m *miniredis.Miniredis){
		"wiped":    func(m *miniredis.Miniredis) { m.FlushAll() },
		"restored": func(m *miniredis.Miniredis) { m.HSet(k.SelfInfo(), markerField, m.HGet(k.SelfInfo(), "earlier")) },
	} {
		for when, look := range map[string]func(r *Records) error{
			"idle": func(r *Records) error { return r.checkMarker(t.Context()) },
			"busy": func(r *Records) error {
				r.add(testFile("/live", "x", time.Minute), boxID(1), time.Now(), taskFacts{})
				return nil
			},
		} {
			t.Run(name+", "+when, func(t *testing.T) {
				t.Parallel()
				r, m := newTestRecords(t)
				for n := range 3 {
					r.add(testFile(id.Path(fmt.Sprintf("/f%d", n)), "x", 0), boxID(1), time.Now(), taskFacts{})
					if n == 1 {
						r.redis.HSet(t.Context(), k.SelfInfo(), "earlier", m.HGet(k.SelfInfo(), markerField))
					}
					if err := r.flush(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				if err := r.checkMarker(t.Context()); err != nil || len(r.dirty) > 0 {
					t.Fatalf("%v: written again without a reason: %d", err, len(r.dirty))
				}
				lose(m)
				m.Del(k.ProcessedFile("/f2"))
				if err := look(r); err != nil {
					t.Fatal(err)
				}
				if err := r.flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := m.HGet(k.ProcessedFile("/f2"), "MSG"); got != msgSuccess {
					t.Errorf("MSG %q", got)
				}
				if err := r.checkMarker(t.Context()); err != nil || len(r.dirty) > 0 {
					t.Errorf("%v: written again and again: %d", err, len(r.dirty))
				}
			})
		}
	}
}
