package ledger

import (
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
)

// part is what one batch says of one box. It is one call of a script.
type part struct {
	box id.BoxID
	// source names who numbers the batches: a boot of the box, or <publisher>:<boot>; "" where
	// deliveries are known by their keys.
	source  string
	seq     int64
	arrived time.Time

	cells map[cell]*Sums // with a source
	// Totals of the source, at most maxSum.
	droppedBytes, droppedCount int64

	lines []line // without a source

	redirects bool // of a publisher
	onlyKnown bool // count only where the box has accounts
	done      bool // in an attempt before
}

// line is a delivery that is known by its key.
type line struct {
	key    string
	prefix string // of its fields
	bytes  int64
	failed bool
}

// size is how many numbers the part adds, about.
func (p *part) size() int { return 3*len(p.cells) + 2*len(p.lines) + 1 }

// add adds sums to a cell.
func (p *part) add(c cell, s *Sums) {
	old := p.cells[c]
	if old == nil {
		old = new(Sums)
		p.cells[c] = old
	}
	old.add(s)
}

// days returns the days of the cells, that of the arrival first.
func (p *part) days() []int64 {
	today := dayOf(hourOf(p.arrived))
	others := map[int64]bool{}
	for c := range p.cells {
		if day := dayOf(c.hour); day != today {
			others[day] = true
		}
	}
	return append([]int64{today}, slices.Sorted(maps.Keys(others))...)
}

// call is the script that counts the part, and its keys and arguments.
type call struct {
	script *redis.Script
	keys   []string
	args   []any
}

// call says how the part is counted; keep is how long accounts are kept.
func (p *part) call(own keys.Entrance, keep time.Duration) call {
	if p.source == "" {
		return p.callKeyed(own, keep)
	}
	known, most := "0", fieldsPerDay
	if p.onlyKnown {
		known = "1"
	}
	if p.redirects {
		most = redirectFields
	}
	now := cell{hour: hourOf(p.arrived)}
	c := call{script: markedScript, keys: []string{own.AccountMarks(p.box)}}
	c.args = append(make([]any, 0, 12+2*p.size()),
		p.source, p.seq, p.arrived.Unix(), seconds(marksLive(keep)), boxBoots, most, known,
		p.droppedBytes, p.droppedCount, now.prefix(), publisherBoots, fullMarks)
	for _, day := range p.days() {
		c.keys = append(c.keys, own.AccountDay(p.box, dayName(day)))
		c.args = append(c.args, seconds(dayLives(day, p.arrived, keep)), 0)
		count := len(c.args) - 1
		for cell, sums := range p.cells {
			if dayOf(cell.hour) == day {
				cell.fields(sums, func(field string, sum int64) { c.args = append(c.args, field, sum) })
			}
		}
		c.args[count] = (len(c.args) - count - 1) / 2
	}
	return c
}

func (p *part) callKeyed(own keys.Entrance, keep time.Duration) call {
	day := dayOf(hourOf(p.arrived))
	c := call{script: keyedScript}
	c.keys = []string{own.AccountMarks(p.box), own.AccountSeen(p.box), own.AccountDay(p.box, dayName(day))}
	c.args = append(make([]any, 0, 6+4*len(p.lines)),
		p.arrived.Unix(), seconds(marksLive(keep)), seconds(seenFor), seenKeys, fieldsPerDay, seconds(dayLives(day, p.arrived, keep)))
	for i := range p.lines {
		l := &p.lines[i]
		failed := "0"
		if l.failed {
			failed = "1"
		}
		c.args = append(c.args, l.key, l.prefix, l.bytes, failed)
	}
	return c
}

// dayLives is how long from now on a day is kept: for keep and a day from its end on. It is a span and not a
// moment, so that it does not depend on Redis' clock.
func dayLives(day int64, now time.Time, keep time.Duration) time.Duration {
	return time.Unix((day+1)*86400, 0).Sub(now) + keep + 24*time.Hour
}

// marksLive is longer than what a mark guards: a batch that is sent again after that counts in a day that
// is gone.
func marksLive(keep time.Duration) time.Duration { return keep + 48*time.Hour }

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// outcome is what a call of a script did.
type outcome struct {
	counted   int64 // batches, or deliveries by their keys
	duplicate int64 // the same
	bytes     int64 // of deliveries by their keys
	unknown   bool  // the box has no accounts and was to have some
}

// outcomeOf reads the answer of the part's script.
func (p *part) outcomeOf(answer any) (o outcome) {
	if p.source != "" {
		switch answer {
		case int64(1):
			o.counted = 1
		case int64(-1):
			o.unknown = true
		default:
			o.duplicate = 1
		}
		return o
	}
	if list, ok := answer.([]any); ok && len(list) == 2 {
		o.counted, _ = list[0].(int64)
		text, _ := list[1].(string)
		o.bytes, _ = strconv.ParseInt(text, 10, 64)
	}
	o.duplicate = int64(len(p.lines)) - o.counted
	return o
}

// job is one message of a peer, all of whose parts must be counted before it is told so.
type job struct {
	key     string // of who sends it: while one waits, the next one takes its place
	parts   []*part
	counted func() // tells the peer; nil: it does not ask
}

func (j *job) size() (n int) {
	for _, p := range j.parts {
		n += p.size()
	}
	return n
}

// left are the parts that are still to be counted.
func (j *job) left() []*part {
	return slices.DeleteFunc(slices.Clone(j.parts), func(p *part) bool { return p.done })
}
