package placement

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
)

var (
	queueSeed  = flag.Uint64("queue.seed", 0, "seed of the queue's property test; 0: a new one")
	queueSteps = flag.Int("queue.steps", 120, "steps of the queue's property test")
)

// model is what must become of the tasks that were pushed.
type model struct {
	good      map[id.Path]id.Digest
	short     map[id.Path]bool // with a TTL that may be over before boxes can take the file
	malformed map[string]bool
	missing   map[id.Path]bool
}

// TestNoTaskIsLost pushes tasks of all kinds to a publisher that is killed and restarted at
// random, whose connections to Redis break, with boxes that come, go, refuse and are slow. In the
// end each task is on record as what it must be, both lists are empty, and no file is on more
// boxes than allowed.
func TestNoTaskIsLost(t *testing.T) {
	t.Parallel()
	seed := *queueSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("again with: -queue.seed=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := newShop(t)
	for n := range 4 {
		s.box(n)
	}
	m := model{map[id.Path]id.Digest{}, map[id.Path]bool{}, map[string]bool{}, map[id.Path]bool{}}
	s.start()
	pace := time.NewTicker(20 * time.Millisecond)
	defer pace.Stop()
	kills := 0
	for n := range *queueSteps {
		<-pace.C
		switch dice := rng.IntN(100); {
		case dice < 60:
			s.pushSome(rng, &m, n)
		case dice < 85:
			b := s.boxes[rng.IntN(len(s.boxes))]
			b.set(mood(rng.IntN(4)))
		case dice < 92:
			s.gate.flap()
		default:
			s.kill()
			s.start()
			kills++
		}
	}
	for _, b := range s.boxes {
		b.set(willing)
	}
	s.await("both lists empty", func() bool { return s.left() == 0 })
	t.Logf("%d kills; %d good, %d short, %d malformed, %d missing; %+v", kills, len(m.good), len(m.short), len(m.malformed), len(m.missing), s.queue.Totals())
	s.check(&m)
}

func (s *shop) pushSome(rng *rand.Rand, m *model, n int) {
	switch dice := rng.IntN(10); {
	case dice < 4:
		s.pushGood(m, n, []int{0, 600}[rng.IntN(2)])
	case dice < 5:
		s.pushGood(m, n, 2)
	case dice < 7: // again, to the last byte or not
		for path := range m.good { // the map's order is random, but not the seed's: twins are all alike
			s.push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": %d}`, path, []int{0, 600}[rng.IntN(2)]))
			delete(m.short, path)
			break
		}
	case dice < 8:
		raw := []string{"not JSON %d", `{"TTL": %d}`, `[%d]`}[rng.IntN(3)]
		raw = fmt.Sprintf(raw, n)
		m.malformed[raw] = true
		s.push(raw)
	default:
		path := s.file(fmt.Sprintf("missing-%d", n))
		m.missing[path] = true
		s.push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": 600}`, path))
	}
}

func (s *shop) pushGood(m *model, n, ttl int) {
	path, content := s.file(fmt.Sprintf("file-%d", n)), fmt.Appendf(nil, "content %d", n)
	if err := os.WriteFile(string(path), content, 0o600); err != nil {
		s.t.Fatal(err)
	}
	m.good[path] = id.DigestOf(content)
	if ttl == 2 {
		m.short[path] = true
	}
	s.push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": "%d", "n": %d}`, path, ttl, n))
}

func (s *shop) check(m *model) {
	for path, digest := range m.good {
		record := s.processed(path)
		holders := s.holders(path, digest)
		excess, stored := 0, 0
		for _, b := range s.boxes {
			b.mu.Lock()
			excess += b.excess[path]
			stored += b.stored[path]
			b.mu.Unlock()
		}
		switch {
		case m.short[path] && stored > 0 && (len(record) == 0 || record["MSG"] == msgSuccess): // placed, and over or nearly so
		case m.short[path] && strings.HasPrefix(record["MSG"], "Error: TTL over"):
		case record["MSG"] != msgSuccess || record[fieldDigest] != digest.String():
			s.t.Errorf("%s: %v, on %d boxes", path, record, holders)
		case holders == 0 && !m.short[path]:
			s.t.Errorf("%s is on record as placed and on no box", path)
		}
		if holders > s.queue.Replicas+excess {
			s.t.Errorf("%s is on %d boxes: %d are asked for and %d excused", path, holders, s.queue.Replicas, excess)
		}
	}
	for raw := range m.malformed {
		path := id.Path("/malformed/" + id.DigestOf([]byte(raw)).Short())
		if record := s.processed(path); !strings.HasPrefix(record["MSG"], "Error: malformed") {
			s.t.Errorf("%s: %v", raw, record)
		}
	}
	for path := range m.missing {
		if record := s.processed(path); !strings.HasPrefix(record["MSG"], "Error: file gone") {
			s.t.Errorf("%s: %v", path, record)
		}
	}
}
