package box

import (
	"context"
	"net/http"
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/box/internal/edge"
	"dandelion/box/internal/traffic"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// journalName is the directory of the accounts. It begins with a dot, so that neither segstore nor a web
// server takes it for a publisher's.
const journalName = ".traffic"

// journalDir is beside the live segments: in memory where the system has some, which survives a crash of
// the process and wears no card. With edge nginx, whose log is on the disk anyway, it is too: it has how far
// the log was read, which must be known after a crash of the machine.
func (b *Box) journalDir() string {
	if b.cfg.nginx() {
		return filepath.Join(b.cfg.DataDir, journalName)
	}
	return filepath.Join(b.store.Usage().Live.Path, journalName)
}

// delivered takes what viewers got into the accounts: every answer to a GET, as a web server's log would have
// it, with what was really sent of its body. 304 and the 302 of a box without upload count as requests without
// bytes. HEAD and OPTIONS deliver nothing: publishers ask by HEAD whether a box still answers.
func (b *Box) delivered(d edge.Delivery) {
	if d.Method == http.MethodGet {
		b.traffic.Record(traffic.Delivery{Time: d.Time, URL: d.URL, Status: d.Status, Bytes: d.Bytes, Viewer: d.Viewer})
	}
}

const (
	flowQueue = 4096           // deliveries that wait for Redis
	maxFlows  = 10_000         // hashes TRAFFIC_FLOW at once
	flowTTL   = 24 * time.Hour // of those that nobody deletes, because the box is gone
)

// flowChange is deliveries of one batch that are to have a hash each, or no more.
type flowChange struct {
	mark       wire.Mark
	first      int             // of deliveries
	deliveries []wire.Delivery // nil: all gone
	n          int             // how many are gone
}

// Waiting implements traffic.Records.
func (r *records) Waiting(m wire.Mark, first int, deliveries []wire.Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(deliveries)
	if r.queued+n > flowQueue || r.hashes+n > maxFlows {
		r.dropped.Add(float64(n))
		return
	}
	r.flows = append(r.flows, flowChange{mark: m, first: first, deliveries: deliveries})
	r.queued += n
	r.flowing[m] += n
	r.hashes += n
}

// Acknowledged implements traffic.Records.
func (r *records) Acknowledged(m wire.Mark, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hashes -= r.flowing[m]
	delete(r.flowing, m)
	if len(r.flows) == flowQueue {
		return // they expire
	}
	r.flows = append(r.flows, flowChange{mark: m, n: n})
}

// writeFlows writes what changed of TRAFFIC_FLOW, in order.
func (r *records) writeFlows(ctx context.Context, st *state.State) error {
	r.mu.Lock()
	flows := r.flows
	r.flows, r.queued = nil, 0
	r.mu.Unlock()
	for i, change := range flows {
		err := within(ctx, func(ctx context.Context) error {
			_, err := st.Pipelined(ctx, func(p redis.Pipeliner) error {
				r.writeFlow(ctx, p, change)
				return nil
			})
			return err
		})
		if err != nil {
			for _, lost := range flows[i:] {
				r.dropped.Add(float64(len(lost.deliveries)))
			}
			return err
		}
	}
	return nil
}

// writeFlow uses one command for each key: in a Cluster they are in different slots.
func (r *records) writeFlow(ctx context.Context, p redis.Pipeliner, change flowChange) {
	for i, d := range change.deliveries {
		key := r.box.TrafficFlow(traffic.LogID(change.mark, change.first+i))
		p.HSet(ctx, key, "datetime", d.Datetime, "url", d.URL, "status", string(d.Status), "size", string(d.Size))
		p.Expire(ctx, key, flowTTL)
	}
	for i := range change.n {
		p.Del(ctx, r.box.TrafficFlow(traffic.LogID(change.mark, i)))
	}
}
