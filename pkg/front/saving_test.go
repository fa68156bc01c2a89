package front

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/saving"
)

// told is what entrances are told of the redirects.
func (d *door) told() string {
	var lines []string
	for _, r := range d.saving.TakeRedirects(time.Now()) {
		lines = append(lines, fmt.Sprintf("%s %s %d %d", r.Box, r.Stream, r.Count, r.Bytes))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

// TestNothingIsCountedTwice: of a viewer who asks again or is sent back only what it read in the end
// counts, as far as that can be known.
func TestNothingIsCountedTwice(t *testing.T) {
	t.Parallel()
	const s = int64(len("segment"))
	one, other := viewer{addr: "192.0.2.1", agent: "one"}, viewer{addr: "192.0.2.2", agent: "other"}
	ask := func(n int, v viewer) func(*door) { return func(d *door) { d.ask(segment(n), v) } }
	bounce := func(n int, v viewer, box string) func(*door) {
		return func(d *door) { d.mux.ServeHTTP(d.request(segment(n)+"?avoid="+box, v)) }
	}
	const boxA, boxB = "box-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "box-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	for _, tt := range []struct {
		name  string
		steps []func(*door)
		want  saving.Bytes
		told  string
	}{
		{"two viewers", []func(*door){ask(0, one), ask(0, other)}, saving.Bytes{Redirected: 2 * s}, "a demo 2 14"},
		{
			"a box fails",
			[]func(*door){ask(0, one), ask(1, one), ask(1, one)},
			saving.Bytes{Redirected: 3 * s, Returned: s},
			"a demo 2 14; b demo 1 7",
		},
		{
			"both fail",
			[]func(*door){ask(0, one), ask(1, one), ask(1, one), ask(1, one)},
			saving.Bytes{Redirected: 3 * s, Returned: 2 * s, Origin: s},
			"a demo 2 14; b demo 1 7",
		},
		{
			"after the origin all begins anew",
			[]func(*door){ask(0, one), ask(1, one), ask(1, one), ask(1, one), ask(1, one)},
			saving.Bytes{Redirected: 4 * s, Returned: 2 * s, Origin: s},
			"a demo 3 21; b demo 1 7",
		},
		{"nobody knows whether it is one viewer", []func(*door){ask(0, one), ask(0, one)}, saving.Bytes{Redirected: 2 * s}, "a demo 1 7; b demo 1 7"},
		{
			"two of one household",
			[]func(*door){ask(0, one), ask(0, one), ask(1, one), ask(1, one), ask(1, one)},
			saving.Bytes{Redirected: 5 * s, Returned: s},
			"a demo 3 21; b demo 2 14",
		},
		{"HEAD", []func(*door){func(d *door) {
			w, r := d.request(segment(0), one)
			r.Method = "HEAD"
			d.mux.ServeHTTP(w, r)
		}}, saving.Bytes{}, "a demo 1 0"},
		{"a range", []func(*door){ask(0, viewer{addr: "192.0.2.1", span: "bytes=2-4"})}, saving.Bytes{Redirected: 3}, "a demo 1 3"},
		{"a box is full", []func(*door){renamed(boxA, boxB), ask(0, one), bounce(0, one, boxA)}, saving.Bytes{Redirected: 2 * s, Returned: s}, boxB + " demo 1 7"},
		{
			"it was told already",
			[]func(*door){renamed(boxA, boxB), ask(0, one), func(d *door) { d.told() }, bounce(0, one, boxA), ask(1, one), ask(2, one)},
			saving.Bytes{Redirected: 4 * s, Returned: s},
			boxA + " demo 1 7; " + boxB + " demo 1 7",
		},
		{"who was never sent there", []func(*door){renamed(boxA, boxB), bounce(0, one, boxA)}, saving.Bytes{Redirected: s}, boxB + " demo 1 7"},
		{
			"it says so twice",
			[]func(*door){renamed(boxA, boxB), ask(0, one), bounce(0, one, boxA), bounce(0, one, boxA)},
			saving.Bytes{Redirected: 2 * s, Returned: s, Origin: s},
			boxB + " demo 1 7",
		},
	} {
		d := newDoor(t)
		for _, step := range tt.steps {
			step(d)
		}
		if got := d.saving.Stream("demo").Total(); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
		if told := d.told(); told != tt.told {
			t.Errorf("%s: told %s, want %s", tt.name, told, tt.told)
		}
	}
}

func renamed(a, b id.BoxID) func(*door) { return func(d *door) { d.boxes[0], d.boxes[1] = a, b } }
