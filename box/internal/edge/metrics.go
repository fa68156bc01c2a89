package edge

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Edge.
type metrics struct {
	requests   *prometheus.CounterVec
	bytes      prometheus.Counter
	aborted    prometheus.Counter
	refused    prometheus.Counter
	idleClosed prometheus.Counter
	bounced    prometheus.Counter
}

func newMetrics(e *Edge, reg prometheus.Registerer) metrics {
	m := metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dandelion_edge_requests_total", Help: "Requests of viewers answered, by HTTP status.",
		}, []string{"status"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_edge_body_bytes_total", Help: "Body bytes sent to viewers.",
		}),
		aborted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_edge_aborted_total", Help: "Answers that ended early: the viewer left or was too slow.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_edge_connections_refused_total", Help: "Connections turned away because there were too many: told so, or closed at once.",
		}),
		idleClosed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_edge_idle_closed_total", Help: "Connections without a request that gave their place to a new one.",
		}),
		bounced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_edge_bounced_total", Help: "Requests sent away because the upload was used up: back to the publisher, or told to come later.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.bytes, m.aborted, m.refused, m.idleClosed, m.bounced, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "dandelion_edge_connections", Help: "Open connections, without those that became websockets.",
		}, func() float64 { all, _ := e.conns.Count(); return float64(all) }))
	}
	return m
}

func (m *metrics) count(d Delivery) {
	m.requests.WithLabelValues(strconv.Itoa(d.Status)).Inc()
	m.bytes.Add(float64(d.Bytes))
	if d.Aborted {
		m.aborted.Inc()
	}
}
