package ledger

import (
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

func TestClaimExceeds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		compared, redirected int64
		want                 bool
	}{
		{0, 0, false},
		{claimSlack, 0, false},
		{claimSlack + 1, 0, true},
		{1e12, 1e12, false},
		{109e10, 1e12, false},
		{111e10, 1e12, true},
		{1e12, 2e12, false},
		{maxSum, 0, true},
		{0, maxSum, false},
	} {
		c := Claim{Compared: test.compared, Redirected: test.redirected}
		if c.Exceeds() != test.want || (c.Reason() != "") != test.want {
			t.Errorf("%+v: %v %q", c, c.Exceeds(), c.Reason())
		}
	}
}

// TestClaims: what a box claims is compared with what publishers say that report redirects, and with
// nobody else's.
func TestClaims(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		now := time.Now().Truncate(time.Hour).Add(30 * time.Minute)
		b.now = func() time.Time { return now }
		const GB = 1 << 30
		honest, greedy, silent, liar := boxID(1), boxID(2), boxID(3), boxID(4)
		seq := 0
		claim := func(box id.BoxID, list ...wire.Delivery) {
			seq++
			b.Deliveries(box, deliveries(box, list...), mark(1, seq), nil)
			b.idle()
		}
		claim(honest, delivery(path(1, "s"), 200, 10*GB, now), delivery(path(1, "s"), 404, 9*GB, now))
		claim(greedy, delivery(path(1, "s"), 200, 12*GB, now))
		claim(silent, delivery(path(2, "s"), 200, 12*GB, now)) // 2 reports no redirects
		claim(liar, delivery(path(1, "s"), 200, GB, now))      // was sent nobody
		// 3 began to report when it had had viewers for a while: that hour is not compared.
		claim(honest, delivery(path(3, "s"), 200, 5*GB, now.Add(-3*time.Hour)), delivery(path(3, "s"), 200, 5*GB, now))
		b.Redirects(publisherID(1), mark(1, 1).Mark, []wire.Redirected{{Box: honest, Count: 1, Bytes: 10 * GB}, {Box: greedy, Count: 1, Bytes: 10 * GB}}, nil)
		b.Redirects(publisherID(3), mark(1, 1).Mark, []wire.Redirected{{Box: honest, Count: 1, Bytes: GB}}, nil)
		b.idle()
		if err := b.refreshClaims(t.Context()); err != nil {
			t.Fatal(err)
		}
		for box, want := range map[id.BoxID]Claim{
			honest: {Bytes: 29 * GB, Deliveries: 4, Compared: 10 * GB, Redirected: 10 * GB},
			greedy: {Bytes: 12 * GB, Deliveries: 1, Compared: 12 * GB, Redirected: 10 * GB},
			silent: {Bytes: 12 * GB, Deliveries: 1},
			liar:   {Bytes: GB, Deliveries: 1, Compared: GB},
		} {
			c, _ := b.Claim(box)
			same(t, string(box), c, want)
			same(t, "it exceeds", c.Exceeds(), box == greedy || box == liar)
		}
		c, _ := b.Claim(greedy)
		if want := "it claims 12885 MB that publishers should know of; they sent it viewers for 10737 MB"; !strings.Contains(c.Reason(), want) {
			t.Error(c.Reason())
		}
		// Dating back does not help.
		claim(silent, delivery(path(1, "s"), 200, 3*GB, now.Add(-30*time.Hour)))
		if err := b.refreshClaims(t.Context()); err != nil {
			t.Fatal(err)
		}
		c, _ = b.Claim(silent)
		same(t, "late", c, Claim{Bytes: 12 * GB, Deliveries: 1, Late: 3 * GB})
		if want := "it told of 3221 MB that it dates further back"; !strings.Contains(c.Reason(), want) {
			t.Error(c.Reason())
		}
		if _, some := b.Claim(boxID(9)); some {
			t.Error("a box without accounts claims something")
		}
		// A day later nothing is left of it.
		later := now.Add(26 * time.Hour)
		b.now = func() time.Time { return later }
		if err := b.refreshClaims(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c, some := b.Claim(greedy); some {
			t.Errorf("%+v", c)
		}
	})
}

// TestClaimsOfFailures: failed deliveries of one hour, whose bytes are more than all of another one, do not make
// a box exceed what it was sent viewers for, in whatever order Redis has the fields.
func TestClaimsOfFailures(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, st *state.State) {
		b := newBook(t, st)
		now := time.Now().Truncate(time.Hour).Add(30 * time.Minute)
		b.now = func() time.Time { return now }
		box := boxID(1)
		var list []wire.Delivery
		for i := range 12 {
			list = append(list, delivery(path(1, "s"), 404, 1000<<i, now.Add(-time.Duration(i)*time.Hour)))
		}
		b.Deliveries(box, deliveries(box, list...), mark(1, 1), nil)
		b.Redirects(publisherID(1), mark(1, 1).Mark, []wire.Redirected{{Box: box, Count: 1, Bytes: 1000}}, nil)
		b.idle()
		// All hours are compared.
		known := map[string]reporter{string(publisherID(1)): {redirects: hourOf(now) - claimHours, deliveries: noReporterKnown}}
		for range 20 {
			next, err := b.compare(t.Context(), known)
			if err != nil {
				t.Fatal(err)
			}
			if c := next.boxes[box]; c.Compared != 0 || c.Exceeds() {
				t.Fatalf("%+v: %s", c, c.Reason())
			}
		}
	})
}
