package ingest

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

type metrics struct {
	sessions   prometheus.Gauge
	files      *prometheus.CounterVec // by result: "stored", "broken" or the kind of the refusal
	bytes      prometheus.Counter
	turnedAway *prometheus.CounterVec // by reason
	untold     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) metrics {
	f := promauto.With(r)
	return metrics{
		sessions: f.NewGauge(prometheus.GaugeOpts{
			Name: "dandelion_box_ingest_sessions", Help: "Accepted sessions of publishers.",
		}),
		files: f.NewCounterVec(prometheus.CounterOpts{
			Name: "dandelion_box_ingest_files_total",
			Help: "Files that publishers sent, by result: stored, broken (the connection ended in the middle), slow (it was ended for that) or the kind of the refusal.",
		}, []string{"result"}),
		bytes: f.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_ingest_bytes_total", Help: "Bytes of stored files.",
		}),
		turnedAway: f.NewCounterVec(prometheus.CounterOpts{
			Name: "dandelion_box_ingest_turned_away_total", Help: "Connections that were not taken, by the limit that stood against them.",
		}, []string{"reason"}),
		untold: f.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_ingest_gone_untold_total", Help: "Files that went before their time, of which publishers were not told because there were too many at once.",
		}),
	}
}
