package placement

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/front"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/publisher/internal/push"
)

func TestComplaints(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_800_000_000, 0)
	type word struct {
		from  string
		after time.Duration
	}
	for name, tt := range map[string]struct {
		words   []word
		suspect bool
	}{
		"one viewer, again and again":   {[]word{{"192.0.2.1", 0}, {"192.0.2.1", 1}, {"192.0.2.1", 2}, {"192.0.2.1", 3}}, false},
		"two":                           {[]word{{"192.0.2.1", 0}, {"192.0.2.2", 1}, {"192.0.2.1", 2}, {"192.0.2.2", 3}}, false},
		"three":                         {[]word{{"192.0.2.1", 0}, {"192.0.2.2", 1}, {"192.0.2.3", 2}}, true},
		"three, too far apart":          {[]word{{"192.0.2.1", 0}, {"192.0.2.2", 6 * time.Second}, {"192.0.2.3", 12 * time.Second}}, false},
		"a fourth while it still hurts": {[]word{{"192.0.2.1", 0}, {"192.0.2.2", 6 * time.Second}, {"192.0.2.3", 12 * time.Second}, {"192.0.2.4", 13 * time.Second}}, true},
		"one household's IPv6":          {[]word{{"2001:db8::1", 0}, {"2001:db8:0:2::2", 1}, {"2001:db8:0:3::3", 2}}, false},
		"three households' IPv6":        {[]word{{"2001:db8:1::1", 0}, {"2001:db8:2::2", 1}, {"2001:db8:3::3", 2}}, true},
	} {
		var d doubts
		at, suspect := now, false
		for _, w := range tt.words {
			at = now.Add(w.after)
			suspect = d.complain(netip.MustParseAddr(w.from), at) || suspect
		}
		if suspect != tt.suspect || d.suspected(at) != tt.suspect || d.suspected(at.Add(suspectFor)) {
			t.Errorf("%s: suspect %v, then %v, later %v; want %v", name, suspect, d.suspected(at), d.suspected(at.Add(suspectFor)), tt.suspect)
		}
	}
}

func (r *rig) judgedWell(box id.BoxID) bool {
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	return r.members[box].doubts.answered
}

// placedOne places a segment on the only box and returns what tells whether viewers are sent there.
func (r *rig) placedOne() (s Live, offered func() bool) {
	s = r.segment(1, 1)
	r.Place(s)
	r.await("a copy", func() bool { return r.copies1(s) == 1 && r.idle() })
	return s, func() bool {
		return len(r.Find(s.Path, s.Digest, front.Asker{Addr: netip.MustParseAddr("127.0.0.1")}).Holders) == 1
	}
}

// TestDeafBox: a viewer's complaint makes the publisher look for itself; a box that does not answer
// gets no viewers and no segments until it does.
func TestDeafBox(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, stores(0))
	s, offered := r.placedOne()
	r.await("a first look", func() bool { return r.judgedWell(box) })
	viewer := netip.MustParseAddr("192.0.2.1")
	asked := r.looks.Load()
	r.Complained(box, s.Path, viewer)
	r.await("a look", func() bool { return r.looks.Load() > asked })
	if !offered() {
		t.Error("one viewer's word was enough")
	}
	r.edge.Store(http.StatusInternalServerError)
	r.Complained(box, s.Path, viewer)
	r.await("no viewer is sent there", func() bool { return !offered() })
	if got := r.Placement.Boxes(); got[0].Excluded == "" || r.copies1(s) != 0 {
		t.Errorf("segments are still sent there: %+v", got)
	}
	r.edge.Store(http.StatusOK)
	r.await("viewers are sent there again", offered)
}

// TestUnreachableEdgeIsNotJudged: where the publisher never reached the viewers' side of a box, it
// cannot tell whether viewers do.
func TestUnreachableEdgeIsNotJudged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edge.Store(http.StatusBadGateway)
	box := r.box(1, nil, stores(0))
	s, offered := r.placedOne()
	asked := r.looks.Load()
	for i := range 2 {
		r.Complained(box, s.Path, netip.MustParseAddr("192.0.2.1"))
		r.await("a look", func() bool { return int(r.looks.Load()-asked) > i })
	}
	if !offered() {
		t.Error("a box that cannot be judged from here gets no viewers")
	}
}

// TestBoxWithoutTheFile: the records follow what a box says that it does not hold.
func TestBoxWithoutTheFile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.edge.Store(http.StatusNotFound)
	box := r.box(1, nil, stores(0))
	s, offered := r.placedOne()
	r.Complained(box, s.Path, netip.MustParseAddr("192.0.2.1"))
	r.await("no viewer is sent there", func() bool { return !offered() })
	if other := r.Placement.Boxes(); other[0].Excluded != "" {
		t.Errorf("the box itself is well: %+v", other)
	}
}

// TestThreeViewersAreEnough: what the publisher cannot see itself, viewers of three addresses can.
// The box comes last then, and is better than nobody.
func TestThreeViewersAreEnough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.box(1, nil, stores(0))
	r.box(2, nil, stores(0))
	s := r.segment(1, 2)
	r.Place(s)
	r.await("two copies", func() bool { return r.copies1(s) == 2 && r.idle() })
	viewer := netip.MustParseAddr("127.0.0.1")
	first := func() id.BoxID {
		holders := r.Find(s.Path, s.Digest, front.Asker{Addr: viewer}).Holders
		if len(holders) != 2 {
			t.Fatalf("%d holders", len(holders))
		}
		return holders[0].Box
	}
	suspect := first()
	for i, from := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"} {
		if first() != suspect {
			t.Errorf("%d complaints of fewer than three were enough", i)
		}
		r.Complained(suspect, s.Path, netip.MustParseAddr(from))
	}
	if first() == suspect {
		t.Error("three complain and viewers are still sent there first")
	}
}

// TestDeafBoxIsReplaced: what only a deaf box holds is placed on another one.
func TestDeafBoxIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.box(1, nil, stores(0))
	s, offered := r.placedOne()
	r.show(s)
	r.await("a first look", func() bool { return r.looks.Load() > 0 })
	second := r.box(2, nil, stores(0))
	r.await("looks", func() bool { return r.judgedWell(second) })
	r.Placement.mu.Lock()
	for box, m := range r.members {
		m.doubts.deaf = box != second
	}
	r.Placement.mu.Unlock()
	r.wakeRepair()
	r.await("another holder", offered)
}

// TestWhatMadeRoomRests: a file that its holder let go for room is not placed again at once, and no
// other box has a say in that.
func TestWhatMadeRoomRests(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, func(wire.FileHeader) any { return wire.Stored{} })
	content := "kept"
	f := push.File{Path: "/kept", Size: 4, Digest: id.DigestOf([]byte(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }}
	r.records.add(f, box, time.Now(), taskFacts{})
	yielded := func(by id.BoxID) bool {
		r.records.yielded(by, []id.Path{f.Path})
		r.records.mu.Lock()
		defer r.records.mu.Unlock()
		return !r.records.files[f.Path].yielded.IsZero()
	}
	if yielded("box-99999999999999999999999999999999") || !yielded(box) {
		t.Error("a box that never held it counts, or the holder does not")
	}
}
