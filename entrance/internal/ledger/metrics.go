package ledger

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	deliveries prometheus.Counter
	bytes      prometheus.Counter
	redirects  prometheus.Counter
	duplicates prometheus.Counter
	errors     prometheus.Counter
	rounds     prometheus.Counter
	syncTime   prometheus.Summary
	refused    map[refusal]prometheus.Counter
	dropped    map[drop]prometheus.Counter
}

func (m *metrics) register(reg prometheus.Registerer, l *Ledger) {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dandelion_entrance_" + name, Help: help})
		reg.MustRegister(c)
		return c
	}
	m.deliveries = counter("accounts_deliveries_total", "Deliveries of boxes that this process counted.")
	m.bytes = counter("accounts_bytes_total", "Bytes of those deliveries.")
	m.redirects = counter("accounts_redirects_total", "Redirects of publishers that this process counted.")
	m.duplicates = counter("accounts_duplicates_total", "Batches, and deliveries of old boxes, that had been counted before.")
	m.errors = counter("accounts_errors_total", "Exchanges with Redis about accounts that failed and are repeated.")
	m.rounds = counter("accounts_rounds_total", "Pipelines of accounts sent to Redis.")
	m.syncTime = prometheus.NewSummary(prometheus.SummaryOpts{
		Name: "dandelion_entrance_accounts_sync_seconds", Help: "How long it took to make counted batches durable.",
	})
	reg.MustRegister(m.syncTime, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "dandelion_entrance_accounts_waiting", Help: "Numbers that wait to be counted; there is room for 250,000.",
	}, func() float64 { return float64(l.queue.numbers()) }))
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_entrance_accounts_refused_total", Help: "Deliveries and redirects that cannot be counted, by reason.",
	}, []string{"reason"})
	dropped := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dandelion_entrance_accounts_dropped_total", Help: "Batches that were not taken, by reason; peers of ours send them again, old boxes do not.",
	}, []string{"reason"})
	reg.MustRegister(refused, dropped)
	m.refused, m.dropped = make(map[refusal]prometheus.Counter), make(map[drop]prometheus.Counter)
	for _, why := range refusals {
		m.refused[why] = refused.WithLabelValues(string(why))
	}
	for _, why := range drops {
		m.dropped[why] = dropped.WithLabelValues(string(why))
	}
}

// count takes over how the script of a part ended.
func (m *metrics) count(p *part, o outcome) {
	m.duplicates.Add(float64(o.duplicate))
	switch {
	case o.unknown:
		for _, sums := range p.cells {
			m.refused[refusedBox].Add(float64(sums.Redirects))
		}
	case p.source == "":
		m.deliveries.Add(float64(o.counted))
		m.bytes.Add(float64(o.bytes))
	case o.counted > 0:
		for _, sums := range p.cells {
			m.deliveries.Add(float64(sums.Deliveries))
			m.bytes.Add(float64(sums.Bytes))
			m.redirects.Add(float64(sums.Redirects))
		}
	}
}
