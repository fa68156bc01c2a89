package uplink

import "time"

const (
	slot      = 100 * time.Millisecond
	perSecond = int64(time.Second / slot)
	slots     = 60 * perSecond
)

// meter counts what is given out, in slots of the last 60 s.
type meter struct {
	began time.Time
	total int64
	last  int64        // the slot of the last call, counted from began
	bytes [slots]int64 // of slot i at i % slots
}

// advance empties the slots that have begun since the last call and returns the one of now.
func (m *meter) advance(now time.Time) *int64 {
	at := int64(now.Sub(m.began) / slot)
	for i := max(m.last+1, at-slots+1); i <= at; i++ {
		m.bytes[i%slots] = 0
	}
	m.last = max(m.last, at)
	return &m.bytes[m.last%slots]
}

func (m *meter) add(now time.Time, n int64) {
	*m.advance(now) += n
	m.total += n
}

// takeBack counts n bytes as not given out, those of the last slots first.
func (m *meter) takeBack(now time.Time, n int64) {
	m.total -= n
	m.advance(now)
	for i := m.last; n > 0 && i > max(-1, m.last-slots); i-- {
		back := min(n, m.bytes[i%slots])
		m.bytes[i%slots] -= back
		n -= back
	}
}

// second is the sum of the slots of the second that ends with slot i.
func (m *meter) second(i int64) (sum int64) {
	for j := max(0, i-perSecond+1, m.last-slots+1); j <= i; j++ {
		sum += m.bytes[j%slots]
	}
	return sum
}

func (m *meter) lately(now time.Time) int64 {
	m.advance(now)
	return m.second(m.last)
}

func (m *meter) peak(now time.Time) (most int64) {
	m.advance(now)
	for i := max(0, m.last-slots+1); i <= m.last; i++ {
		most = max(most, m.second(i))
	}
	return most
}
