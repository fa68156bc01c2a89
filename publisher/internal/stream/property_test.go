package stream

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// encoder writes one rendition as encoders do, with all that can go wrong. The content of a
// segment says which it is: rendition, run, number.
type encoder struct {
	r      *rig
	rng    *rand.Rand
	name   string // rendition
	run    int
	next   int // number of the next segment
	first  int // listed
	listed []string
	window int
	ring   int // names repeat after so many; 0: never
	goesOn int // the number that the last run would have come to
	ended  bool
}

func (e *encoder) playlist() string { return e.name + ".m3u8" }

func (e *encoder) file(number int) string {
	if e.ring > 0 {
		number %= e.ring
	}
	return fmt.Sprintf("%s-%d.ts", e.name, number)
}

func (e *encoder) content(number int) string {
	return fmt.Sprintf("%s %d %d %s", e.name, e.run, number, strings.Repeat("x", number%7))
}

func (e *encoder) text() string {
	s := mediaText(e.first, e.listed...)
	if e.ended {
		s += "#EXT-X-ENDLIST\n"
	}
	return s
}

// produce adds a segment and lists it.
func (e *encoder) produce() {
	e.ended = false
	e.r.write(e.file(e.next), e.content(e.next))
	e.listed = append(e.listed, e.file(e.next))
	e.next++
	if len(e.listed) > e.window {
		gone := e.first
		e.first++
		e.listed = e.listed[1:]
		if e.ring == 0 && e.rng.IntN(2) == 0 {
			os.Remove(e.r.dir + "/" + e.file(gone))
		}
	}
	e.r.write(e.playlist(), e.text())
}

// restart begins again with the same names. The old playlist stays until the first segment is whole.
func (e *encoder) restart() {
	if e.rng.IntN(3) == 0 {
		e.ended = true
		e.r.write(e.playlist(), e.text())
		e.ended = false
	}
	e.run++
	if len(e.listed) > 0 {
		e.goesOn = e.next
	}
	e.next = 0
	if e.rng.IntN(3) == 0 {
		e.next = e.rng.IntN(30)
	}
	if e.next == e.goesOn {
		e.next++ // that number would look as if nothing had happened
	}
	e.first, e.listed = e.next, nil
}

// tear leaves the playlist half written, at the end of a line: what does not show by itself.
func (e *encoder) tear() {
	lines := strings.SplitAfter(e.text(), "\n")
	e.r.write(e.playlist(), strings.Join(lines[:1+e.rng.IntN(len(lines)-1)], ""))
}

// begin writes the start of the next segment, which may be a file that is still listed.
func (e *encoder) begin() { e.r.write(e.file(e.next), "half of "+e.content(e.next)) }

// lose lists two segments and deletes the first of them before anybody looks.
func (e *encoder) lose() {
	e.produce()
	lost := e.file(e.next - 1)
	e.produce()
	os.Remove(e.r.dir + "/" + lost)
}

var seeds = flag.Int("seeds", 40, "random histories to play")

// Whatever the encoder, the boxes and crashes do, a viewer sees playlists that keep what RFC
// 8216 section 6.2 promises between any two reloads, and that lead to whole segments, each
// once and in order, with every break marked.
func TestPlaylistsKeepTheirPromises(t *testing.T) {
	t.Parallel()
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); play(t, uint64(seed), 250) })
	}
}

func play(t *testing.T, seed uint64, steps int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t)
	if rng.IntN(4) == 0 {
		r.cfg.WindowLimit = 200 // a few segments
	}
	encoders := []*encoder{
		{r: r, rng: rng, name: "low", window: 2 + rng.IntN(8)},
		{r: r, rng: rng, name: "high", window: 2 + rng.IntN(8)},
	}
	for _, e := range encoders {
		if rng.IntN(3) == 0 {
			e.ring = e.window + rng.IntN(4)
		}
	}
	history := &history{t: t, at: map[string]string{}, number: map[string]uint64{}}
	r.start()
	for range steps {
		e := encoders[rng.IntN(len(encoders))]
		switch action := rng.IntN(100); {
		case action < 35:
			e.produce()
			r.look()
		case action < 40:
			e.produce() // unseen
		case action < 43:
			e.restart()
		case action < 46:
			e.begin()
			r.look()
		case action < 50:
			e.tear()
			r.look()
			if rng.IntN(2) == 0 {
				e.r.write(e.playlist(), e.text())
			} else {
				e.restart() // it crashed while it wrote
			}
		case action < 53:
			e.produce()
			r.look() // that it restarted and lost its first segment together could not be told
			e.lose()
			r.look()
		case action < 60:
			r.now = r.now.Add(time.Duration(rng.IntN(3000)) * time.Millisecond)
			r.look()
		case action < 62:
			r.now = r.now.Add(20 * time.Second)
			r.look()
		case action < 75:
			r.save()
		case action < 90:
			if len(r.placed) > 0 {
				r.s.Placed(r.placed[rng.IntN(len(r.placed))].Path)
			}
		case action < 93:
			r.s.tick(r.now)
		case action < 95:
			r.boxes = 3 - r.boxes
		case action < 98:
			r.start() // kill -9: nothing is written
		default:
			r.save()
			r.start()
		}
		r.check()
		history.look(r)
	}
	// When all is calm again, everything that is listed is shown.
	for range 5 {
		for _, e := range encoders {
			e.produce()
		}
		r.step(3 * time.Second)
	}
	r.step(3 * time.Second)
	for _, e := range encoders {
		media := r.shown(e.name + "/index.m3u8")
		if got := r.read(e.name, media.Entries[len(media.Entries)-1].URI); got != e.content(e.next-1) {
			t.Errorf("%s ends with %q, want %q; log:\n%s", e.name, got, e.content(e.next-1), r.logs)
		}
	}
	history.look(r)
	if t.Failed() {
		t.Logf("seed %d; log:\n%s", seed, r.logs)
	}
}

// history is what viewers have seen so far, by rendition and sequence number.
type history struct {
	t      *testing.T
	at     map[string]string // content by rendition and number
	number map[string]uint64 // by content
}

func (h *history) look(r *rig) {
	h.t.Helper()
	for _, name := range []string{"low", "high"} {
		if _, ok := r.s.Playlist(name + "/index.m3u8"); !ok {
			continue
		}
		media := r.shown(name + "/index.m3u8")
		var before string // content of the entry before
		gaps := 0
		for i, e := range media.Entries {
			number := media.Sequence + uint64(i)
			if e.Gap {
				gaps++
				continue
			}
			content := r.read(name, e.URI)
			key := fmt.Sprint(name, number)
			if was, ok := h.at[key]; ok && was != content {
				h.t.Fatalf("%s %d was %q and is %q", name, number, was, content)
			}
			if was, ok := h.number[content]; ok && was != number {
				h.t.Fatalf("%q is shown as %d and as %d; log:\n%s", content, was, number, r.logs)
			}
			h.at[key], h.number[content] = content, number
			h.follows(r, before, content, gaps, e.Discontinuity)
			before, gaps = content, 0
		}
	}
	// What is being placed is the same.
	for _, seg := range r.placed {
		if f, info, err := r.s.Open(seg.Path); err == nil {
			f.Close()
			if info.Digest != seg.Digest || !info.Placeable {
				h.t.Fatalf("%s: offered with %s, opened with %+v", seg.Path, seg.Digest, info)
			}
		}
	}
}

// follows checks that one segment may stand behind another.
func (h *history) follows(r *rig, before, content string, gaps int, discontinuity bool) {
	h.t.Helper()
	var name string
	var run, number, runBefore, numberBefore int
	if n, _ := fmt.Sscanf(content, "%s %d %d", &name, &run, &number); n != 3 || strings.HasPrefix(content, "half") {
		h.t.Fatalf("%q is not a whole segment; log:\n%s", content, r.logs)
	}
	if before == "" || discontinuity {
		return
	}
	fmt.Sscanf(before, "%s %d %d", &name, &runBefore, &numberBefore)
	if run != runBefore || number != numberBefore+1+gaps {
		h.t.Fatalf("%q follows %q with %d gaps and no discontinuity; log:\n%s", content, before, gaps, r.logs)
	}
}
