package box

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/redis/go-redis/v9"

	"dandelion/box/internal/ingest"
	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

const (
	recordQueue    = 4096             // changes of EXPIRE_FILES that wait for Redis
	recordEvery    = time.Second      // how often they are written
	recordTimeout  = 2 * time.Second  // for one write
	subscribeTTL   = 60 * time.Second // of SUBSCRIBE:<publisher>
	subscribeEvery = 20 * time.Second // how often it is renewed
	answerTTL      = 5 * time.Minute  // of EXCHANGE:<entrance>
	sweepEvery     = 30 * time.Second // EXPIRE_FILES
)

// records writes what other programs may want to know of the box into Redis (docs/protocol.md):
// nothing of the box's own depends on it. It is behind a bounded queue, and what Redis does not
// take in time is dropped and counted.
type records struct {
	box      keys.Box
	open     func(context.Context) (*state.State, error)
	sessions func() []ingest.Info
	log      *slog.Logger
	dropped  prometheus.Counter

	files chan fileChange
	wake  chan struct{} // the sessions changed

	mu      sync.Mutex
	report  map[string]string // nil: nothing new
	answers map[id.EntranceID]map[string]string
	flows   []flowChange      // of TRAFFIC_FLOW, in order
	queued  int               // deliveries in flows
	flowing map[wire.Mark]int // how many deliveries of each batch have a hash, or are about to
	hashes  int               // the sum of flowing
}

// fileChange is one of EXPIRE_FILES; expires is zero for a file that is gone.
type fileChange struct {
	member  string
	expires time.Time
}

func newRecords(box id.BoxID, open func(context.Context) (*state.State, error), reg prometheus.Registerer, log *slog.Logger) *records {
	return &records{
		box: keys.Box(box), open: open, log: log,
		files: make(chan fileChange, recordQueue),
		wake:  make(chan struct{}, 1),
		dropped: promauto.With(reg).NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_records_dropped_total",
			Help: "Changes of EXPIRE_FILES, and deliveries of TRAFFIC_FLOW, that Redis did not take in time or that were too many.",
		}),
		answers: make(map[id.EntranceID]map[string]string),
		flowing: make(map[wire.Mark]int),
	}
}

func (r *records) Stored(e segstore.Entry) {
	if e.Expires.IsZero() {
		return // it goes when its room is needed: there is no time to note
	}
	r.change(fileChange{member(e.Publisher, e.Path), e.Expires})
}

func (r *records) Deleted(pub id.PublisherID, path id.Path) {
	r.change(fileChange{member: member(pub, path)})
}

func member(pub id.PublisherID, path id.Path) string { return "/" + string(pub) + string(path) }

func (r *records) change(c fileChange) {
	select {
	case r.files <- c:
	default:
		r.dropped.Inc()
	}
}

func (r *records) SessionsChanged() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *records) Reported(flat map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report = flat
}

func (r *records) Answered(entrance id.EntranceID, flat map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answers[entrance] = flat
}

// Run opens the state and writes until ctx ends. It fails only when the state cannot be opened.
func (r *records) Run(ctx context.Context) error {
	st, err := r.open(ctx)
	if err != nil {
		return err
	}
	defer st.Close()
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	var subscribed, swept time.Time
	failing := false
	for {
		woken := false
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			woken = true
		case <-tick.C:
		}
		now := time.Now()
		errs := []error{r.writeFiles(ctx, st), r.writeExchanges(ctx, st), r.writeFlows(ctx, st)}
		if woken || now.Sub(subscribed) > subscribeEvery {
			subscribed = now
			errs = append(errs, r.writeSessions(ctx, st))
		}
		if now.Sub(swept) > sweepEvery {
			swept = now
			errs = append(errs, within(ctx, func(ctx context.Context) error {
				return st.ZRemRangeByScore(ctx, r.box.ExpireFiles(), "-inf", strconv.FormatInt(now.Unix(), 10)).Err()
			}))
		}
		failing = r.note(ctx, failing, errs)
	}
}

// note logs once that Redis does not take records, and once that it does again.
func (r *records) note(ctx context.Context, failing bool, errs []error) bool {
	for _, err := range errs {
		if err != nil && ctx.Err() == nil {
			if !failing {
				r.log.Warn("Redis does not take the box's records; the box works on without", "error", err)
			}
			return true
		}
	}
	if failing {
		r.log.Info("Redis takes the box's records again")
	}
	return false
}

func within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	return f(ctx)
}

// writeFiles writes what waits in the queue, in order, in two commands.
func (r *records) writeFiles(ctx context.Context, st *state.State) error {
	last := make(map[string]time.Time)
	for n := len(r.files); n > 0; n-- {
		c := <-r.files
		last[c.member] = c.expires
	}
	var add []redis.Z
	var remove []any
	for m, expires := range last {
		if expires.IsZero() {
			remove = append(remove, m)
		} else {
			add = append(add, redis.Z{Score: float64(expires.UnixMilli()) / 1000, Member: m})
		}
	}
	if len(last) == 0 {
		return nil
	}
	err := within(ctx, func(ctx context.Context) error {
		_, err := st.Pipelined(ctx, func(p redis.Pipeliner) error {
			if len(add) > 0 {
				p.ZAdd(ctx, r.box.ExpireFiles(), add...)
			}
			if len(remove) > 0 {
				p.ZRem(ctx, r.box.ExpireFiles(), remove...)
			}
			return nil
		})
		return err
	})
	if err != nil {
		r.dropped.Add(float64(len(last)))
	}
	return err
}

func (r *records) writeExchanges(ctx context.Context, st *state.State) error {
	r.mu.Lock()
	report, answers := r.report, r.answers
	r.report, r.answers = nil, make(map[id.EntranceID]map[string]string)
	r.mu.Unlock()
	if report != nil {
		if err := replaceHash(ctx, st, r.box.SelfExchange(), report, 0); err != nil {
			return err
		}
	}
	for entrance, flat := range answers {
		if err := replaceHash(ctx, st, r.box.Exchange(entrance), flat, answerTTL); err != nil {
			return err
		}
	}
	return nil
}

func (r *records) writeSessions(ctx context.Context, st *state.State) error {
	written := make(map[id.PublisherID]bool)
	for _, info := range r.sessions() {
		if written[info.Publisher] { // the oldest session speaks for the publisher
			continue
		}
		written[info.Publisher] = true
		features := make([]string, len(info.Features))
		for i, f := range info.Features {
			features[i] = string(f)
		}
		flat := map[string]string{
			"ID": string(info.Publisher), "IP": info.IP, "TYPE": "PUBLISHER", "COMMAND": "PUBLISH",
			"ADDRESS": info.Address, "SINCE": strconv.FormatInt(info.Since.Unix(), 10),
		}
		if info.FrontURL != "" {
			flat["FRONT_URL"] = info.FrontURL
		}
		if len(features) > 0 {
			flat["FEATURES"] = strings.Join(features, ",")
		}
		if err := replaceHash(ctx, st, r.box.Subscribe(info.Publisher), flat, subscribeTTL); err != nil {
			return err
		}
	}
	return nil
}

// replaceHash writes a hash without leaving fields of the earlier one. ttl 0: for ever.
func replaceHash(ctx context.Context, st *state.State, key string, flat map[string]string, ttl time.Duration) error {
	return within(ctx, func(ctx context.Context) error {
		_, err := st.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.Del(ctx, key)
			p.HSet(ctx, key, flat)
			if ttl > 0 {
				p.Expire(ctx, key, ttl)
			}
			return nil
		})
		return err
	})
}
