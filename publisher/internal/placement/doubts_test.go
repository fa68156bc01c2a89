package placement

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/pkg/id"
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
		"one household's IPv6":          {[]word{{"2001:db8::1", 0}, {"2001:db8::2", 1}, {"2001:db8::3", 2}}, false},
		"three households' IPv6":        {[]word{{"2001:db8:1::1", 0}, {"2001:db8:2::2", 1}, {"2001:db8:3::3", 2}}, true},
	} {
		var d doubts
		at, suspect := now, false
		for _, w := range tt.words {
			at = now.Add(w.after)
			suspect = d.complain(netip.MustParseAddr(w.from), at) || suspect
		}
		if suspect != tt.suspect || d.against(at) != tt.suspect || d.against(at.Add(suspectFor)) {
			t.Errorf("%s: suspect %v, against %v, later %v; want %v", name, suspect, d.against(at), d.against(at.Add(suspectFor)), tt.suspect)
		}
	}
}

// edge is a box's side for viewers.
type edge struct {
	url    string
	status atomic.Int32 // of its answers
	asked  atomic.Int32
}

// newEdge puts an edge of its own before the rig's box.
func newEdge(r *rig, box id.BoxID, status int) *edge {
	e := &edge{}
	e.status.Store(int32(status))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		e.asked.Add(1)
		w.WriteHeader(int(e.status.Load()))
	}))
	r.t.Cleanup(srv.Close)
	e.url = srv.URL
	r.mu.Lock()
	for i := range r.boxes {
		if r.boxes[i].ID == box {
			r.boxes[i].EdgeBase = srv.URL
		}
	}
	r.mu.Unlock()
	r.changed <- struct{}{}
	return e
}

func (r *rig) judgedWell(box id.BoxID) bool {
	r.Placement.mu.Lock()
	defer r.Placement.mu.Unlock()
	return r.members[box].doubts.answered
}

// placed places a segment on the only box and returns what tells whether viewers are sent there.
func (r *rig) placedOne() (s Live, offered func() bool) {
	s = r.segment(1, 1)
	r.Place(s)
	r.await("a copy", func() bool { return r.copies1(s) == 1 && r.idle() })
	return s, func() bool {
		return len(r.HoldersFor(s.Path, s.Digest, netip.MustParseAddr("127.0.0.1"), nil)) == 1
	}
}

// TestDeafBox: a viewer's complaint makes the publisher look for itself; a box that does not answer
// gets no viewers and no segments until it does.
func TestDeafBox(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, stores(0))
	e := newEdge(r, box, http.StatusOK)
	s, offered := r.placedOne()
	r.await("a first look", func() bool { return r.judgedWell(box) })
	viewer := netip.MustParseAddr("192.0.2.1")
	asked := e.asked.Load()
	r.Complained(box, s.Path, viewer)
	r.await("a look", func() bool { return e.asked.Load() > asked })
	if !offered() {
		t.Error("one viewer's word was enough")
	}
	e.status.Store(http.StatusInternalServerError)
	r.Complained(box, s.Path, viewer)
	r.await("no viewer is sent there", func() bool { return !offered() })
	if got := r.Placement.Boxes(); got[0].Excluded == "" || r.copies1(s) != 0 {
		t.Errorf("segments are still sent there: %+v", got)
	}
	e.status.Store(http.StatusOK)
	r.await("viewers are sent there again", offered)
}

// TestUnreachableEdgeIsNotJudged: where the publisher never reached the viewers' side of a box, it
// cannot tell whether viewers do.
func TestUnreachableEdgeIsNotJudged(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, stores(0))
	e := newEdge(r, box, http.StatusBadGateway)
	r.Placement.mu.Lock()
	r.members[box].doubts = doubts{} // as before its first look, which may have met the other side
	r.Placement.mu.Unlock()
	s, offered := r.placedOne()
	asked := e.asked.Load()
	for i := range 2 {
		r.Complained(box, s.Path, netip.MustParseAddr("192.0.2.1"))
		r.await("a look", func() bool { return int(e.asked.Load()-asked) > i })
	}
	if !offered() {
		t.Error("a box that cannot be judged from here gets no viewers")
	}
}

// TestBoxWithoutTheFile: the records follow what a box says that it does not hold.
func TestBoxWithoutTheFile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, stores(0))
	newEdge(r, box, http.StatusNotFound)
	s, offered := r.placedOne()
	r.Complained(box, s.Path, netip.MustParseAddr("192.0.2.1"))
	r.await("no viewer is sent there", func() bool { return !offered() })
	if other := r.Placement.Boxes(); other[0].Excluded != "" {
		t.Errorf("the box itself is well: %+v", other)
	}
}

// TestThreeViewersAreEnough: what the publisher cannot see itself, viewers of three addresses can.
func TestThreeViewersAreEnough(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	box := r.box(1, nil, stores(0))
	s, offered := r.placedOne()
	for i, viewer := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3"} {
		if !offered() {
			t.Errorf("%d complaints of fewer than three were enough", i)
		}
		r.Complained(box, s.Path, netip.MustParseAddr(viewer))
	}
	if offered() {
		t.Error("three complain and viewers are still sent there")
	}
}
