package stream

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

// encoder writes one rendition as encoders do, with all that can go wrong. What it writes says
// what it is: a segment names its rendition, run, number, init segment, key and whether it
// begins with a discontinuity; init segments and keys name theirs.
type encoder struct {
	r   *rig
	rng *rand.Rand

	name    string // rendition
	window  int    // segments listed
	ring    int    // names repeat after so many; 0: never
	fmp4    bool   // with init segments
	keyed   bool   // with keys that change
	replays bool   // after a restart it writes the same bytes

	run       int
	next      int // number of the next segment
	first     int // listed
	listed    []listed
	goesOn    int // the number that the last run would have come to
	init      int
	key       int
	target    int // seconds
	header    string
	ended     bool
	everEnded bool
}

type listed struct {
	number, init, key int // init and key are -1 where there is none
	discontinuity     bool
	tags, duration    string
}

func newEncoder(r *rig, rng *rand.Rand, name string) *encoder {
	e := &encoder{r: r, rng: rng, name: name, window: 2 + rng.IntN(8), target: 2, init: -1, key: -1}
	switch rng.IntN(4) {
	case 0:
		e.fmp4 = true
	case 1:
		e.fmp4, e.keyed = true, true
	case 2:
		e.replays = rng.IntN(2) == 0
	}
	if rng.IntN(3) == 0 {
		e.ring = e.window + rng.IntN(4)
	}
	return e
}

func (e *encoder) playlist() string { return e.name + ".m3u8" }

func (e *encoder) file(number int) string {
	if e.ring > 0 {
		number %= e.ring
	}
	return fmt.Sprintf("%s-%d.ts", e.name, number)
}

// Names of init segments and keys come again with each run.
func (e *encoder) initFile(n int) string { return fmt.Sprintf("%s-init-%d.mp4", e.name, n) }
func (e *encoder) keyFile(n int) string  { return fmt.Sprintf("%s-%d.key", e.name, n) }

func (e *encoder) content(l listed) string {
	return fmt.Sprintf("%s %d %d %d %d %v %s", e.name, e.run, l.number, l.init, l.key, l.discontinuity, strings.Repeat("x", l.number%7))
}

func (e *encoder) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:%d\n#EXT-X-MEDIA-SEQUENCE:%d\n", e.target, e.first)
	init, key := -1, -1
	for _, l := range e.listed {
		if l.init != init {
			if key >= 0 {
				b.WriteString("#EXT-X-KEY:METHOD=NONE\n")
				key = -1
			}
			fmt.Fprintf(&b, "#EXT-X-MAP:URI=%q\n", e.initFile(l.init))
		}
		if l.key != key {
			fmt.Fprintf(&b, "#EXT-X-KEY:METHOD=AES-128,URI=%q\n", e.keyFile(l.key))
		}
		init, key = l.init, l.key
		if l.discontinuity {
			b.WriteString("#EXT-X-DISCONTINUITY\n")
		}
		fmt.Fprintf(&b, "%s#EXTINF:%s,\n%s\n", l.tags, l.duration, e.file(l.number))
	}
	b.WriteString(e.header) // where a half-written playlist has it not
	if e.ended {
		b.WriteString("#EXT-X-ENDLIST\n")
	}
	return b.String()
}

// upcoming decides what the next segment is, and writes what it needs.
func (e *encoder) upcoming() listed {
	if e.fmp4 && (e.init < 0 || e.rng.IntN(15) == 0) {
		e.init++
		e.r.write(e.initFile(e.init), fmt.Sprintf("init %s %d %d", e.name, e.run, e.init))
	}
	if e.keyed && (e.key < 0 || e.rng.IntN(5) == 0) {
		e.key++
		e.r.write(e.keyFile(e.key), fmt.Sprintf("key %s %d %d", e.name, e.run, e.key))
	}
	l := listed{number: e.next, init: e.init, key: e.key, duration: fmt.Sprintf("%d.000000", e.target)}
	if e.replays {
		return l
	}
	switch e.rng.IntN(12) {
	case 0:
		l.duration = "1.2"
	case 1:
		l.duration = fmt.Sprintf("%d.4999", e.target)
	case 2:
		l.tags = fmt.Sprintf("#EXT-X-CUE-OUT:%d\n", e.next)
	case 3:
		l.tags = fmt.Sprintf("#EXT-X-PROGRAM-DATE-TIME:2026-01-02T03:04:%02d.000Z\n", e.next%60)
	case 4:
		l.discontinuity = len(e.listed) > 0
	}
	return l
}

// produce adds a segment and lists it.
func (e *encoder) produce() {
	e.ended = false
	l := e.upcoming()
	e.r.write(e.file(l.number), e.content(l))
	e.listed = append(e.listed, l)
	e.next++
	if len(e.listed) > e.window {
		gone := e.listed[0]
		e.first++
		e.listed = e.listed[1:]
		if e.ring == 0 && e.rng.IntN(2) == 0 {
			os.Remove(e.r.dir + "/" + e.file(gone.number))
		}
	}
	e.r.write(e.playlist(), e.text())
}

// end lists what there is as all there is.
func (e *encoder) end() {
	if len(e.listed) == 0 {
		return
	}
	e.ended, e.everEnded = true, true
	e.r.write(e.playlist(), e.text())
}

// restart begins again with the same names. The old playlist stays until the first segment is whole.
func (e *encoder) restart() {
	if e.rng.IntN(3) == 0 {
		e.end()
	}
	e.ended = false
	if len(e.listed) > 0 {
		e.goesOn = e.next
	}
	e.next = 0
	if !e.replays {
		e.run++
		if e.rng.IntN(3) == 0 {
			e.next = e.rng.IntN(30)
		}
		if e.rng.IntN(5) == 0 {
			e.target = 2 + e.rng.IntN(2)
		}
		if e.rng.IntN(5) == 0 {
			e.header = "#EXT-X-INDEPENDENT-SEGMENTS\n"
		}
	}
	if e.next == e.goesOn {
		e.next++ // that number would look as if nothing had happened
	}
	e.first, e.listed, e.init, e.key = e.next, nil, -1, -1
}

// tear leaves the playlist half written, at the end of a line: what does not show by itself.
func (e *encoder) tear() {
	lines := strings.SplitAfter(e.text(), "\n")
	e.r.write(e.playlist(), strings.Join(lines[:1+e.rng.IntN(len(lines)-1)], ""))
}

// begin writes the start of the next segment, which may be a file that is still listed, and
// of its init segment, which is so after a restart.
func (e *encoder) begin() {
	if e.fmp4 && e.init < 0 {
		e.r.write(e.initFile(0), "half of init")
	}
	e.r.write(e.file(e.next), "half of it")
}

// lose lists two segments and deletes the first of them before anybody looks.
func (e *encoder) lose() {
	e.produce()
	lost := e.file(e.next - 1)
	e.produce()
	os.Remove(e.r.dir + "/" + lost)
}
