package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// How many random histories are played, and from which seed on. More than the default finds
// more: DANDELION_HISTORIES=20000 go test -run Promises ./publisher/internal/stream
const (
	histories   = 16
	stepsOfEach = 200
)

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Whatever the encoder, the boxes, the disk and crashes do, a viewer sees playlists that keep
// what RFC 8216 section 6.2 promises between any two reloads, and that lead to whole
// segments, each once and in order, with every break marked; and when all is calm, to all.
func TestPlaylistsKeepTheirPromises(t *testing.T) {
	t.Parallel()
	first := fromEnv(t, "DANDELION_SEED", 0)
	for seed := first; seed < first+fromEnv(t, "DANDELION_HISTORIES", histories); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { t.Parallel(); play(t, uint64(seed)) })
	}
}

// model is a stream with all that works on it.
type model struct {
	*rig
	rng      *rand.Rand
	encoders []*encoder
	damaged  bool // the state file was, once
}

func newModel(t testing.TB, seed uint64) *model {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := &model{rig: newRig(t), rng: rng}
	m.also = newViewers(m.rig, rng)
	if rng.IntN(4) == 0 {
		m.cfg.WindowLimit, m.also.limited = 400, true // a few segments
	}
	names := []string{"low", "high", "audio"}[:1+rng.IntN(3)]
	for _, name := range names {
		e := newEncoder(m.rig, rng, name)
		m.encoders, m.also.encoders[name] = append(m.encoders, e), e
	}
	if len(names) > 1 {
		m.write("master.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n"+strings.Join(names, ".m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=2\n")+".m3u8\n")
	}
	return m
}

func play(t *testing.T, seed uint64) {
	t.Logf("DANDELION_SEED=%d", seed)
	m := newModel(t, seed)
	m.start()
	for range stepsOfEach {
		m.now = m.now.Add(time.Duration(m.rng.IntN(700)) * time.Millisecond)
		m.act(m.encoders[m.rng.IntN(len(m.encoders))])
		m.check()
		m.also.offered()
	}
	m.calm()
}

func (m *model) act(e *encoder) {
	switch action := m.rng.IntN(100); {
	case action < 45:
		m.encode(e, action)
	case action < 50:
		m.now = m.now.Add(time.Duration(m.rng.IntN(3000)) * time.Millisecond)
		m.look()
	case action < 52:
		m.now = m.now.Add(20 * time.Second)
		m.look()
	case action < 60:
		m.save()
	case action < 64:
		m.saveWhile()
	case action < 76:
		m.placedOne()
	case action < 80:
		m.s.tick(m.now)
	case action < 82:
		m.boxes = 3 - m.boxes
	case action < 84:
		m.diskFull(e)
	case action < 86:
		m.save() // a graceful stop
		m.start()
	case action < 98:
		m.crash(e)
	case action < 99:
		m.damage()
	default:
		m.calm()
	}
}

// encode lets the encoder do something.
func (m *model) encode(e *encoder, action int) {
	switch {
	case action < 25:
		e.produce()
	case action < 29:
		e.produce() // unseen
		return
	case action < 32:
		e.restart()
		return
	case action < 34:
		e.begin()
	case action < 38:
		e.tear()
		m.look()
		if m.rng.IntN(2) == 0 {
			m.write(e.playlist(), e.text())
		} else {
			e.restart() // it crashed while it wrote
		}
		return
	case action < 41:
		e.produce()
		m.look() // that it restarted and lost its first segment together could not be told
		e.lose()
	case action < 43:
		e.end()
	default:
		if len(e.listed) > 0 { // deleted early
			os.Remove(m.dir + "/" + e.file(e.listed[m.rng.IntN(len(e.listed))].number))
		}
		return
	}
	m.look()
}

// away lets the encoders do anything while nobody looks.
func (m *model) away() {
	for range m.rng.IntN(12) {
		m.now = m.now.Add(time.Duration(m.rng.IntN(1500)) * time.Millisecond)
		switch e := m.encoders[m.rng.IntN(len(m.encoders))]; m.rng.IntN(8) {
		case 0:
			e.restart()
		case 1:
			e.end()
		default:
			e.produce()
		}
	}
}

func (m *model) placedOne() {
	if len(m.placed) > 0 {
		m.s.placed(m.now, m.placed[m.rng.IntN(len(m.placed))].Path)
		m.check()
	}
}

// saveWhile writes the state while all goes on.
func (m *model) saveWhile() {
	goOn := func() {
		for range m.rng.IntN(3) {
			m.encoders[m.rng.IntN(len(m.encoders))].produce()
			m.look()
			m.placedOne()
		}
		m.s.tick(m.now)
		m.check()
	}
	m.s.write = func(name string, state *stateFile) error {
		goOn()
		err := writeState(name, state)
		goOn()
		return err
	}
	m.save()
	m.s.write = writeState
}

// diskFull lets a segment come while nothing can be written, and be it there in time after.
func (m *model) diskFull(e *encoder) {
	m.full = true
	m.s.write = func(name string, _ *stateFile) error {
		if err := os.WriteFile(name+".tmp", []byte(`{"ver`), 0o600); err != nil {
			m.t.Fatal(err)
		}
		return errors.New("no space left on device")
	}
	for range 1 + m.rng.IntN(3) {
		e.produce()
		m.look()
		m.s.save(m.now)
		m.s.tick(m.now)
		m.check()
	}
	m.full, m.s.write = false, writeState
}

// crash is a kill -9 at any moment: between two steps, or between any two steps of writing
// the state.
func (m *model) crash(e *encoder) {
	stage := m.rng.IntN(6)
	m.s.write = func(name string, state *stateFile) error {
		b, err := json.Marshal(state)
		if err != nil {
			m.t.Fatal(err)
		}
		switch stage {
		case 0: // in the middle of the temporary file
			err = os.WriteFile(name+".tmp", b[:m.rng.IntN(len(b))], 0o600)
		case 1: // behind it
			err = os.WriteFile(name+".tmp", b, 0o600)
		case 2: // renamed, and nobody was told
			err = writeState(name, state)
		}
		if err != nil {
			m.t.Fatal(err)
		}
		return errors.New("killed")
	}
	m.s.save(m.now)
	m.check()
	m.away()
	if m.rng.IntN(4) == 0 { // the clock of a small device jumps
		jump := time.Duration(m.rng.IntN(7200)-3600) * time.Second
		m.now, m.also.skew = m.now.Add(jump), m.also.skew+jump
	}
	m.start()
}

// damage spoils the state file, as no crash does; what was in it is lost, the promises are not.
func (m *model) damage() {
	b, err := os.ReadFile(m.state + "/state.json")
	if err != nil || m.damaged {
		return
	}
	m.damaged = true
	if err := os.WriteFile(m.state+"/state.json", b[:m.rng.IntN(len(b))], 0o600); err != nil {
		m.t.Fatal(err)
	}
	clear(m.seen)
	m.also.forget()
	m.start()
}

// calm lets the encoders work undisturbed: everything that they list is shown then, without a
// break of ours.
func (m *model) calm() {
	m.t.Helper()
	const rounds = 8
	var contents [rounds]map[*encoder]string
	for i := range rounds {
		contents[i] = map[*encoder]string{}
		for _, e := range m.encoders {
			e.produce()
			contents[i][e] = e.content(e.listed[len(e.listed)-1])
		}
		m.step(3 * time.Second)
	}
	m.step(3 * time.Second)
	for _, e := range m.encoders {
		media := m.shown(e.name + "/index.m3u8")
		for i := range min(e.window, rounds/2) {
			if i >= len(media.Entries) && m.also.limited {
				break // shortened to three target durations
			}
			entry := media.Entries[len(media.Entries)-1-i]
			if entry.Gap {
				m.t.Fatalf("%s: a gap where all was calm\n%s\nlog:\n%s", e.name, media.AppendTo(nil), m.logs)
			}
			want := contents[rounds-1-i][e]
			if got := m.read(e.name, entry.URI); got != want || entry.Discontinuity != strings.Contains(want, "true") {
				m.t.Fatalf("%s: %q is shown (discontinuity: %v), want %q; log:\n%s", e.name, got, entry.Discontinuity, want, m.logs)
			}
		}
	}
	if _, ok := m.s.Playlist("index.m3u8"); !ok {
		m.t.Fatalf("no index; log:\n%s", m.logs)
	}
}
