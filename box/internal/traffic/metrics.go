package traffic

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those that State does not have.
type metrics struct {
	torn     prometheus.Counter
	failures prometheus.Counter
}

func newMetrics(s *Service, reg prometheus.Registerer) metrics {
	const prefix = "dandelion_box_traffic_"
	m := metrics{
		torn: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "torn_lines_total", Help: "Lines of the journal that a crash cut off, found at the start: a second of deliveries each.",
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "write_failures_total", Help: "Times that the journal could not be written; what was recorded waited in memory.",
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.torn, m.failures)
	under := func(read func() int64) func() float64 {
		return func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return float64(read())
		}
	}
	counter := func(name, help string, read func() float64, labels prometheus.Labels) {
		reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: prefix + name, Help: help, ConstLabels: labels}, read))
	}
	counter("deliveries_total", "Deliveries recorded.", under(func() int64 { return s.count }), nil)
	counter("bytes_total", "Body bytes of the deliveries recorded.", under(func() int64 { return s.bytes }), nil)
	counter("ignored_total", "Requests not recorded because their path names no publisher.", under(func() int64 { return s.ignored }), nil)
	for _, why := range []Reason{ReasonFull, ReasonDamaged} {
		labels := prometheus.Labels{"reason": string(why)}
		lost := func(of func(loss) int64) func() float64 {
			return func() float64 {
				s.disk.Lock()
				defer s.disk.Unlock()
				return float64(of(s.dropped[why]))
			}
		}
		counter("dropped_deliveries_total", "Deliveries dropped before all entrances had acknowledged them.", lost(func(l loss) int64 { return l.count }), labels)
		counter("dropped_bytes_total", "Body bytes of the deliveries dropped.", lost(func(l loss) int64 { return l.bytes }), labels)
	}
	gauge := func(name, help string, read func(State) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: prefix + name, Help: help}, func() float64 { return read(s.State()) }))
	}
	gauge("unwritten_deliveries", "Deliveries that are not in the journal yet.", func(s State) float64 { return float64(s.Unwritten) })
	gauge("waiting_batches", "Batches that some entrance has not acknowledged.", func(s State) float64 { return float64(s.WaitingBatches) })
	gauge("journal_bytes", "What the journal takes on its disk.", func(s State) float64 { return float64(s.JournalBytes) })
	gauge("oldest_seconds", "Age of the oldest batch that waits.", func(s State) float64 { return s.OldestAge })
	return m
}
