// Package traffic keeps the accounts of what a box delivered until entrances have them: each delivery
// once for each entrance, whatever breaks in between. It owns the journal of deliveries, the division
// into numbered batches, and what each entrance has acknowledged. It must not know how deliveries
// are served or read from a log, nor how reports travel.
//
// A delivery is recorded in memory, with the viewer's address cut to its network. Once a second what was
// recorded becomes one line in the file of the open batch: up to 50 deliveries by themselves, what is
// above that summed up, so that a second never takes more than 64 KiB and no byte is lost. A batch is
// finished, and never changes again, when a report takes it along or it is full. Batches go to each entrance
// in order, one at a time; the file goes when all have acknowledged it. What is not in the journal is
// never sent, so that a restart sends a batch again as it was, or not at all.
//
// A kill loses what was recorded since the last line, a second or what its write takes longer. What a
// log's position covers is not lost but read again, because a line has both or neither.
package traffic

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/wire"
)

// Defaults of Config.
const (
	DefaultMaxBytes = 16 << 20
	DefaultEvery    = time.Second
)

// MaxPosition is how long a position may be, in bytes.
const MaxPosition = 4 << 10

// resendAfter is when a batch that an entrance took and did not acknowledge is sent to it again.
const resendAfter = 20 * time.Second

// Config is what a Service needs. Records and Registerer may be nil.
type Config struct {
	Box id.BoxID
	// Dir is the journal's, for this process alone; it is made when it is needed. Below a directory of
	// segstore its name must begin with a dot.
	Dir string
	// Sync waits until a finished batch is on the disk: what was sent then survives a power failure.
	Sync       bool
	MaxBytes   int64         // of the journal on disk; 0: DefaultMaxBytes
	Every      time.Duration // how often the journal is written; 0: DefaultEvery
	Records    Records
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Records hears of the deliveries that wait for entrances. Its methods must not block.
type Records interface {
	// Waiting tells of new deliveries: those of a batch from number first on, as keys name them.
	Waiting(m wire.Mark, first int, deliveries []wire.Delivery)
	// Acknowledged tells that the first n deliveries of a batch, which are all, wait no more.
	Acknowledged(m wire.Mark, n int)
}

type noRecords struct{}

func (noRecords) Waiting(wire.Mark, int, []wire.Delivery) {}
func (noRecords) Acknowledged(wire.Mark, int)             {}

// Delivery is one answer to a viewer's GET.
type Delivery struct {
	Time   time.Time  // the end of the answer; zero: now
	URL    string     // the escaped path: /<publisher>/<path>, however it is written; others are not counted, nor is a query looked at
	Status int        // of HTTP
	Bytes  int64      // of the body that were sent
	Viewer netip.Addr // the zero Addr: not known
}

// Service keeps the accounts. Its methods may be called concurrently.
type Service struct {
	cfg     Config
	metrics metrics

	mu      sync.Mutex // never held while the disk is used
	pending *table
	count   int64 // deliveries since the start
	bytes   int64 // of them
	ignored int64

	// disk is taken before mu.
	disk    sync.Mutex
	journal *journal
	feeds   map[*Feed]bool
	failing bool // the journal cannot be written
	dropped map[Reason]loss
}

// Reason is why deliveries were dropped.
type Reason string

// The reasons.
const (
	ReasonFull    Reason = "full"    // the journal reached its limit
	ReasonDamaged Reason = "damaged" // a batch cannot be read any more
)

// loss is deliveries that were dropped.
type loss struct{ count, bytes int64 }

func (l *loss) add(b *batch) { l.count, l.bytes = l.count+b.count, l.bytes+b.bytes }

// Open reads the journal that earlier lives left. The caller has made sure that no other process uses the
// directory. Errors name the directory.
func Open(cfg Config) (*Service, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.Every == 0 {
		cfg.Every = DefaultEvery
	}
	if cfg.Records == nil {
		cfg.Records = noRecords{}
	}
	j, err := openJournal(cfg.Dir, cfg.Sync, time.Now())
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, pending: newTable(), journal: j, feeds: make(map[*Feed]bool), dropped: make(map[Reason]loss)}
	s.metrics = newMetrics(s, cfg.Registerer)
	s.metrics.torn.Add(float64(j.torn))
	if j.torn > 0 {
		cfg.Log.Warn("the accounts of the last second before a crash were not written whole and are left out", "dir", cfg.Dir, "lines", j.torn)
	}
	s.disk.Lock()
	defer s.disk.Unlock()
	s.makeRoom()
	return s, nil
}

// Record takes one delivery. It never waits for the disk.
func (s *Service) Record(d Delivery) {
	s.mu.Lock()
	s.record(&d)
	s.mu.Unlock()
}

// RecordAll takes what was read from a log up to a position, which is any UTF-8 text of at most
// MaxPosition bytes, else it panics. Deliveries and position are written together or not at all. Positions without
// deliveries are written with the next that has some: what they pass over is passed over again.
func (s *Service) RecordAll(list []Delivery, position string) {
	if len(position) > MaxPosition {
		panic(fmt.Sprintf("traffic: a position of %d bytes", len(position)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range list {
		s.record(&list[i])
	}
	s.pending.position = position
}

// Position returns the last position that is in the journal, where reading a log goes on after a
// restart; "": none.
func (s *Service) Position() string {
	s.disk.Lock()
	defer s.disk.Unlock()
	return s.journal.position
}

// record is under mu.
func (s *Service) record(d *Delivery) {
	at, url := d.Time, d.URL
	if at.IsZero() {
		at = time.Now()
	}
	if i := strings.IndexByte(url, '?'); i >= 0 {
		url = url[:i]
	}
	e := entry{
		Time: min(max(at.Unix(), 0), lastSecond), URL: url, Status: min(max(d.Status, 0), 999),
		Bytes: max(d.Bytes, 0), Count: 1, Network: networkOf(d.Viewer),
	}
	if !s.pending.add(e) {
		if e.URL = usual(url); !s.pending.add(e) {
			s.ignored++
			return
		}
	}
	s.count++
	s.bytes += e.Bytes
}

// Run writes the journal once a second until ctx ends, and then what is left. Errors are logged, not
// returned: the box serves without accounts too.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(s.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = s.Flush()
		case <-ctx.Done():
			err := s.Flush()
			s.Close()
			if lost := s.State(); err != nil && lost.Unwritten > 0 {
				s.cfg.Log.Error("accounts are lost: the journal cannot be written", "deliveries", lost.Unwritten, "error", err)
			}
			return nil
		}
	}
}

// Close finishes the open batch, without what is not written yet.
func (s *Service) Close() {
	s.disk.Lock()
	defer s.disk.Unlock()
	if s.journal.open != nil {
		s.journal.finish()
	}
}

// Flush writes what was recorded to the journal. When that fails, it is kept in memory, summed up where it
// grows, and the next call tries again.
func (s *Service) Flush() error {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	t := s.pending
	if t.count == 0 {
		s.mu.Unlock()
		return nil
	}
	s.pending = newTable()
	s.pending.position = t.position
	s.mu.Unlock()

	l := line{Entries: t.entries(), Position: t.position}
	if err := s.journal.write(&l, t.cost, time.Now()); err != nil {
		s.mu.Lock()
		s.pending.absorb(t)
		s.mu.Unlock()
		s.metrics.failures.Inc()
		if !s.failing {
			s.failing = true
			s.cfg.Log.Warn("the accounts of deliveries cannot be written; they wait in memory", "dir", s.cfg.Dir, "error", err)
		}
		return err
	}
	if s.failing {
		s.failing = false
		s.cfg.Log.Info("the accounts of deliveries can be written again", "dir", s.cfg.Dir)
	}
	b := s.journal.last()
	first := b.lines - len(l.Entries)
	s.cfg.Records.Waiting(b.mark, first, deliveries(l.Entries))
	s.trim()
	s.makeRoom()
	return nil
}

// trim removes the batches that every entrance has acknowledged. disk is held.
func (s *Service) trim() {
	least := int64(math.MaxInt64)
	for f := range s.feeds {
		least = min(least, f.acked)
	}
	for b := s.journal.oldest(); b != nil && b.n <= least; b = s.journal.oldest() {
		s.remove(b)
	}
}

// makeRoom drops the oldest batches while the journal is over its limit. disk is held.
func (s *Service) makeRoom() {
	for b := s.journal.oldest(); b != nil && s.journal.used > s.cfg.MaxBytes; b = s.journal.oldest() {
		s.drop(b, ReasonFull)
	}
}

// drop removes a batch that some entrance has not acknowledged. disk is held.
func (s *Service) drop(b *batch, why Reason) {
	lost := s.dropped[why]
	lost.add(b)
	s.dropped[why] = lost
	for f := range s.feeds {
		f.drop(b, why)
	}
	s.remove(b)
}

// remove is under disk.
func (s *Service) remove(b *batch) {
	if err := s.journal.remove(b); err != nil {
		s.cfg.Log.Debug("cannot remove a batch of accounts", "batch", b.name(), "error", err)
	}
	s.cfg.Records.Acknowledged(b.mark, b.lines)
}

// deliveries returns entries as they cross the wire.
func deliveries(entries []entry) []wire.Delivery {
	list := make([]wire.Delivery, len(entries))
	for i := range entries {
		list[i] = entries[i].delivery()
	}
	return list
}

func (e *entry) delivery() wire.Delivery {
	d := wire.Delivery{
		URL: e.URL, Status: wire.Text(fmt.Sprintf("%03d", e.Status)), Size: wire.Text(fmt.Sprint(e.Bytes)),
		Datetime: time.Unix(e.Time, 0).UTC().Format(wire.DeliveryTime), Network: e.Network.String(),
	}
	if e.Count > 1 {
		d.Count = e.Count
	}
	return d
}

// LogID names a delivery of a batch by its number there, from 0: the last part of
// <box>:TRAFFIC_FLOW:log-….
func LogID(m wire.Mark, number int) string {
	return fmt.Sprintf("%s%08x%08x", m.Boot, m.Seq, number)
}

// State is what the box's owner may want to know.
type State struct {
	Deliveries     int64   `json:"deliveries"` // since the start
	Bytes          int64   `json:"bytes"`
	Unwritten      int64   `json:"unwritten"` // of them, those that are not in the journal yet
	WaitingBatches int     `json:"waiting_batches"`
	Waiting        int64   `json:"waiting_deliveries"` // in the journal, for one entrance at least
	JournalBytes   int64   `json:"journal_bytes"`      // on the disk
	OldestAge      float64 `json:"oldest_age_s"`       // of what waits
	Dropped        int64   `json:"dropped_deliveries"` // before all entrances had them
	DroppedBytes   int64   `json:"dropped_bytes"`
}

// State returns it.
func (s *Service) State() State {
	s.disk.Lock()
	defer s.disk.Unlock()
	s.mu.Lock()
	st := State{Deliveries: s.count, Bytes: s.bytes, Unwritten: s.pending.count}
	s.mu.Unlock()
	st.WaitingBatches, st.JournalBytes = len(s.journal.batches), s.journal.used
	for _, b := range s.journal.batches {
		st.Waiting += b.count
	}
	if st.WaitingBatches > 0 {
		st.OldestAge = max(0, time.Since(s.journal.batches[0].made).Seconds())
	}
	for _, lost := range s.dropped {
		st.Dropped, st.DroppedBytes = st.Dropped+lost.count, st.DroppedBytes+lost.bytes
	}
	return st
}

// flowKey is a delivery's key in EXCHANGE.
func (s *Service) flowKey(m wire.Mark, number int) string {
	return keys.Box(s.cfg.Box).TrafficFlow(LogID(m, number))
}
