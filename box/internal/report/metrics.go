package report

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	connected prometheus.Gauge
	reports   prometheus.Counter
	failures  prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		connected: f.NewGauge(prometheus.GaugeOpts{
			Name: "dandelion_box_entrances_connected", Help: "Entrances that the box has a session with.",
		}),
		reports: f.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_reports_total", Help: "Reports sent to entrances.",
		}),
		failures: f.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_entrance_failures_total", Help: "Sessions with entrances that failed, vain attempts included.",
		}),
	}
}
