package edge

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one Edge.
type metrics struct {
	requests *prometheus.CounterVec
	bytes    prometheus.Counter
	aborted  prometheus.Counter
	refused  prometheus.Counter
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
			Name: "dandelion_edge_connections_refused_total", Help: "Connections closed at once because there were too many.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.bytes, m.aborted, m.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "dandelion_edge_connections", Help: "Open connections, without those that became websockets.",
		}, func() float64 { return float64(e.conns.Load()) }))
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
