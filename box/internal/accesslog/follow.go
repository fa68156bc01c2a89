package accesslog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Take is given what was read, in the order of the log, and the position behind it. It returns nil once it has
// both, or neither counts: after an error it is given the same again a little later. There may be no
// deliveries, where the lines were garbage. The slice is the follower's again when it returns.
type Take func(deliveries []Delivery, behind Position) error

// Config is what a Follower needs.
type Config struct {
	Path string   // of the log; it need not exist yet
	From Position // where Take's last position was; zero: the beginning of the file that is there now
	Take Take

	Poll       time.Duration         // between looks at a log of which everything was read; 0: 500 ms
	Settle     time.Duration         // for which a rotated log must not have grown before the next one is begun; 0: 1 s
	Registerer prometheus.Registerer // nil: no metrics
	Log        *slog.Logger
}

const (
	defaultPoll   = 500 * time.Millisecond
	defaultSettle = time.Second
)

// Follower follows one log.
type Follower struct {
	cfg     Config
	metrics metrics
	list    []Delivery
	said    string // the last complaint: it is not said twice in a row
}

type metrics struct {
	lines  *prometheus.CounterVec
	gaps   prometheus.Counter
	behind prometheus.Gauge
}

// Results of a line, as the metric has them.
const (
	resultTaken   = "taken"
	resultGarbage = "garbage"
	resultTooLong = "too_long"
)

// New returns a Follower that does nothing before Run.
func New(cfg Config) *Follower {
	cfg.Poll, cfg.Settle = cmp.Or(cfg.Poll, defaultPoll), cmp.Or(cfg.Settle, defaultSettle)
	f := &Follower{cfg: cfg, metrics: metrics{
		lines: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dandelion_box_log_lines_total", Help: "Lines of nginx's access log, by what became of them: taken, garbage, too_long.",
		}, []string{"result"}),
		gaps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dandelion_box_log_gaps_total", Help: "How often the log was gone in which reading should have gone on: its last lines are not accounted.",
		}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "dandelion_box_log_behind_bytes", Help: "Bytes of nginx's access log that are not read yet.",
		}),
	}}
	for _, result := range []string{resultTaken, resultGarbage, resultTooLong} {
		f.metrics.lines.WithLabelValues(result)
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(f.metrics.lines, f.metrics.gaps, f.metrics.behind)
	}
	return f
}

// Run follows the log until ctx ends, and returns nil then. What is wrong with the log is logged, and tried
// again. It is called once.
func (f *Follower) Run(ctx context.Context) error {
	l := f.resume(ctx)
	for quiet := time.Now(); l != nil; {
		grew, err := f.readOut(ctx, l)
		f.complain("reading nginx's access log", err)
		if grew {
			quiet = time.Now()
		}
		if ctx.Err() != nil {
			break
		}
		if next := f.next(ctx, l, time.Since(quiet)); next != nil {
			f.leave(l)
			l, quiet = next, time.Now()
			continue
		}
		f.wait(ctx)
	}
	if l != nil {
		l.f.Close()
	}
	return nil
}

func (f *Follower) wait(ctx context.Context) {
	timer := time.NewTimer(f.cfg.Poll)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// complain logs what is wrong, once in a row.
func (f *Follower) complain(what string, err error) {
	if err == nil || err.Error() == f.said {
		return
	}
	f.said = err.Error()
	if errors.Is(err, fs.ErrPermission) {
		f.cfg.Log.Error(what+": this user may not: add it to the group of the file (on Debian: usermod -aG adm <user>)", "error", err)
		return
	}
	f.cfg.Log.Warn(what, "error", err)
}

// resume opens the log where it was left; nil: ctx has ended.
func (f *Follower) resume(ctx context.Context) *log {
	if name, ok := f.find(f.cfg.From); ok {
		l, err := openLog(name, f.cfg.From.Offset)
		if err == nil {
			l.closed = name != f.cfg.Path && l.inode != f.cfg.From.Inode // a copy
			return l
		}
		f.complain("opening nginx's access log", err)
	}
	if f.cfg.From.Offset > 0 {
		f.metrics.gaps.Inc()
		f.cfg.Log.Warn("the access log that was read last is gone; what nginx wrote to its end is not accounted", "path", f.cfg.Path)
	}
	if l := f.shortened(); l != nil {
		return l
	}
	return f.await(ctx)
}

// shortened opens the log at its end where it is the one that was read last and has less than was read of it: a
// power failure took its end, or it was restored. All that is left was taken; nil: it is not so.
func (f *Follower) shortened() *log {
	info, err := os.Stat(f.cfg.Path)
	if at := f.cfg.From; err != nil || info.Size() >= at.Offset || info.Size() < headSize || !begins(f.cfg.Path, at) {
		return nil
	}
	l, err := openLog(f.cfg.Path, info.Size())
	if err != nil {
		return nil
	}
	return l
}

// await opens the log from its beginning as soon as it is there; nil: ctx has ended.
func (f *Follower) await(ctx context.Context) *log {
	for ctx.Err() == nil {
		l, err := openLog(f.cfg.Path, 0)
		if err == nil {
			return l
		}
		if errors.Is(err, fs.ErrNotExist) {
			f.complain("waiting for nginx's access log", err)
		} else {
			f.complain("opening nginx's access log", err)
		}
		f.wait(ctx)
	}
	return nil
}

// find returns the name that the file of a position has now: that of the log, that which a rotation gave it, or that of
// the copy that was made before it was truncated.
func (f *Follower) find(at Position) (name string, ok bool) {
	if at == (Position{}) {
		return "", false
	}
	if info, err := os.Stat(f.cfg.Path); err == nil && inode(info) == at.Inode && holds(f.cfg.Path, at) {
		return f.cfg.Path, true
	}
	if at.Offset == 0 {
		return "", false
	}
	for _, same := range []bool{true, false} {
		for _, o := range olders(f.cfg.Path) {
			if (o.inode == at.Inode) == same && holds(o.name, at) {
				return o.name, true
			}
		}
	}
	if holds(f.cfg.Path, at) { // restored from a backup, or moved to another disk
		return f.cfg.Path, true
	}
	return "", false
}

// next returns the log that comes after l, of which everything was read; nil: l goes on. quiet is for how long
// l has not grown.
func (f *Follower) next(ctx context.Context, l *log, quiet time.Duration) *log {
	if l.closed {
		return f.successor(ctx, l)
	}
	cut, err := l.truncated()
	f.complain("reading nginx's access log", err)
	if cut {
		return f.afterTruncation(l)
	}
	info, err := os.Stat(f.cfg.Path)
	if err != nil || inode(info) == l.inode {
		return nil // removed: nginx goes on writing to it until it is told to make a new one
	}
	// nginx's processes turn to the new file one after the other.
	if info.Size() == 0 || quiet < f.cfg.Settle {
		return nil
	}
	return f.successor(ctx, l)
}

// afterTruncation returns the copy that was made of l before, where it has more than was read, or l from its beginning.
func (f *Follower) afterTruncation(l *log) *log {
	for _, o := range olders(f.cfg.Path) {
		if l.taken == 0 || o.inode == l.inode || o.size <= l.taken || !holds(o.name, l.position()) {
			continue
		}
		if rest, err := openLog(o.name, l.taken); err == nil {
			rest.closed = true
			l.buf, l.skip = l.buf[:0], false // it has the rest of a line that was begun
			return rest
		}
	}
	again, err := openLog(f.cfg.Path, 0)
	f.complain("opening nginx's access log", err)
	return again
}

// successor opens what was written after a log that was rotated away: another one that was rotated away since,
// or the present one; nil: neither is there, or ctx has ended.
func (f *Follower) successor(ctx context.Context, l *log) *log {
	info, err := l.f.Stat()
	if err != nil {
		return f.await(ctx)
	}
	for _, o := range olders(f.cfg.Path) {
		if o.inode == l.inode || !o.changed.After(info.ModTime()) || o.size >= l.taken && l.taken > 0 && holds(o.name, l.position()) {
			continue // itself, older, or its copy
		}
		if next, err := openLog(o.name, 0); err == nil {
			next.closed = true
			return next
		}
	}
	return f.await(ctx)
}

// leave closes a log that has come to its end.
func (f *Follower) leave(l *log) {
	if l.pending() { // a line that nobody will finish
		f.metrics.lines.WithLabelValues(resultGarbage).Inc()
	}
	l.f.Close()
}

// readOut gives on all lines that are there, and reports whether there were any.
func (f *Follower) readOut(ctx context.Context, l *log) (grew bool, err error) {
	defer func() { f.noteBehind(l) }()
	if cut, err := l.truncated(); cut || err != nil {
		return false, err
	}
	for ctx.Err() == nil {
		before := l.read
		lines, err := l.fill()
		if err != nil {
			return grew, err
		}
		if l.read == before {
			return grew, nil
		}
		grew = true
		if lines == nil {
			continue
		}
		f.parse(lines, l.skip)
		if !f.give(ctx, l, lines) {
			return grew, nil
		}
	}
	return grew, nil
}

func (f *Follower) noteBehind(l *log) {
	if info, err := l.f.Stat(); err == nil {
		f.metrics.behind.Set(float64(max(0, info.Size()-l.taken)))
	}
}

// parse fills f.list. Where skip is true the first line lacks its beginning, which was too long to keep.
func (f *Follower) parse(lines []byte, skip bool) {
	f.list = f.list[:0]
	var garbage, tooLong int
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n')
		line := bytes.TrimSuffix(lines[:end], []byte("\r"))
		lines = lines[end+1:]
		if skip || len(line) > maxLine {
			skip = false
			tooLong++
			continue
		}
		d, err := Parse(line)
		if err != nil {
			garbage++
			continue
		}
		f.list = append(f.list, d)
	}
	f.metrics.lines.WithLabelValues(resultTaken).Add(float64(len(f.list)))
	f.metrics.lines.WithLabelValues(resultGarbage).Add(float64(garbage))
	f.metrics.lines.WithLabelValues(resultTooLong).Add(float64(tooLong))
}

// give gives f.list to Take until it takes it; false: ctx has ended.
func (f *Follower) give(ctx context.Context, l *log, lines []byte) bool {
	if err := l.took(lines); err != nil {
		f.complain("reading nginx's access log", err)
	}
	for {
		err := f.cfg.Take(f.list, l.position())
		if err == nil {
			clear(f.list) // or its texts would stay until the next portion
			return true
		}
		f.complain("deliveries cannot be kept; trying again", err)
		if ctx.Err() != nil {
			return false
		}
		f.wait(ctx)
	}
}
