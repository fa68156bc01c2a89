package registry

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	writeErrors prometheus.Counter
	written     prometheus.Counter
	batches     prometheus.Counter
	ended       prometheus.Counter
}

func (m *metrics) register(reg prometheus.Registerer, r *Registry) {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dandelion_entrance_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, value func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dandelion_entrance_" + name, Help: help}, value))
	}
	m.written = counter("redis_reports_written_total", "Reports written to Redis.")
	m.batches = counter("redis_batches_total", "Pipelines of reports sent to Redis.")
	m.writeErrors = counter("redis_errors_total", "Exchanges with Redis that failed and are repeated.")
	m.ended = counter("leases_ended_total", "Leases that this process ended in Redis.")
	gauge("boxes", "Boxes with a lease, those of other processes included.", func() float64 {
		r.mu.RLock()
		defer r.mu.RUnlock()
		return float64(len(r.boxes))
	})
	gauge("redis_unwritten_boxes", "Boxes whose last change is not in Redis yet.", func() float64 { return float64(r.writer.count()) })
}
