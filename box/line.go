package box

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/box/internal/capacity"
	"dandelion/pkg/config"
	"dandelion/pkg/uplink"
)

// openLine makes the limit of upload: the configured one, or half of what the line can send, as
// configured or learned.
func (b *Box) openLine() {
	limit, limited := b.cfg.UploadLimit.Get()
	said, known := b.cfg.UploadCapacity.Get()
	rate := limit.BytesPerSecond()
	switch {
	case limited:
	case known:
		rate = limitOf(said.BytesPerSecond())
	default:
		rate = limitOf(capacity.Default)
	}
	b.limiter = uplink.New(rate)
	if known {
		return
	}
	var learn capacity.Config
	if !limited { // else what the owner chose holds, and nothing goes ahead of it to learn more
		learn.Trials = true
		var said sync.Once
		learn.Changed = func(rate int64) {
			b.limiter.SetRate(limitOf(rate))
			said.Do(func() {
				b.log.Info("learned what the line can send, of which half may be used", "upload_capacity", bits(rate), "upload_limit", bits(b.limiter.Rate()))
			})
		}
	}
	b.line = capacity.New(learn)
}

func bits(bytesPerSecond int64) config.BitRate { return config.BitRate(bytesPerSecond * 8 / 1e3 * 1e3) }

// limitOf is the limit for a line of that capacity, bytes/s both. It is never 0, which were no limit.
func limitOf(rate int64) int64 { return max(rate/2, minUpload.BytesPerSecond()) }

// capacity is what the line can send, in bytes/s; learned is true where what was sent showed it, known
// where it is not a mere default.
func (b *Box) capacity() (rate int64, learned, known bool) {
	if b.line == nil {
		said, _ := b.cfg.UploadCapacity.Get()
		return said.BytesPerSecond(), false, true
	}
	rate, learned = b.line.Capacity()
	return rate, learned, learned
}

// knownCapacity is what entrances are told: bytes/s; 0: nothing.
func (b *Box) knownCapacity() int64 {
	if rate, _, known := b.capacity(); known {
		return rate
	}
	return 0
}

// uploadState is what /api/v1/box says of the upload, in bytes/s.
type uploadState struct {
	Capacity int64 `json:"capacity"`
	Learned  bool  `json:"capacity_learned"` // from what was sent; else it is configured, or a default
	Limit    int64 `json:"limit"`
	Now      int64 `json:"now"`  // in the last second
	Peak     int64 `json:"peak"` // the most in one second of the last minute
}

func (b *Box) uploadState() uploadState {
	s := uploadState{Limit: b.limiter.Rate(), Now: b.limiter.Now(), Peak: b.limiter.Peak()}
	s.Capacity, s.Learned, _ = b.capacity()
	return s
}

func newUploadMetrics(reg prometheus.Registerer, b *Box) {
	gauge := func(name, help string, read func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dandelion_box_upload_" + name, Help: help}, read))
	}
	gauge("capacity_bytes", "What the line can send, in bytes/s.", func() float64 { rate, _, _ := b.capacity(); return float64(rate) })
	gauge("limit_bytes", "What of it the box may use, in bytes/s.", func() float64 { return float64(b.limiter.Rate()) })
	gauge("peak_bytes", "The most that the box sent in one second of the last minute.", func() float64 { return float64(b.limiter.Peak()) })
	gauge("transfers", "Answers and relays that share the limit now.", func() float64 { return float64(b.limiter.Flows()) })
	gauge("household_bytes", "What the rest of the household sends, in bytes/s.", func() float64 { return float64(b.report.OtherUpload()) })
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "dandelion_box_upload_bytes_total", Help: "Bytes of files sent to viewers and to other boxes.",
	}, func() float64 { return float64(b.limiter.Sent()) }))
}
