package ledger

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
)

const (
	roundSize    = 8_000 // numbers in one round, about
	pipeScripts  = 64    // scripts in one pipeline: the embedded state takes a millisecond to begin one
	gatherFor    = 5 * time.Millisecond
	roundTimeout = 5 * time.Second
	syncTimeout  = 30 * time.Second
	firstPause   = 50 * time.Millisecond // after a failure, doubling
	longestPause = time.Second
	finalRounds  = 2 * time.Second // at the end, for what is left

	// syncShare bounds what making accounts durable takes of a disk: a twentieth of the time. The
	// embedded state writes all that it has each time.
	syncShare   = 20
	longestRest = 30 * time.Second

	sweepEvery = time.Hour // of the list of boxes with accounts
)

// runWriter counts in rounds until ctx ends, and what is left then.
func (l *Ledger) runWriter(ctx context.Context) {
	rounds, stop := outliving(ctx, finalRounds)
	defer stop()
	pause, rest := time.Duration(0), time.Duration(0)
	var swept time.Time
	for {
		select {
		case <-ctx.Done():
			l.countRest()
			return
		case <-l.queue.wake:
		}
		for !l.queue.empty() && ctx.Err() == nil {
			wait(ctx, max(gatherFor, pause, rest))
			took, err := l.round(rounds)
			rest = min(syncShare*took, longestRest)
			if err != nil {
				pause = min(max(2*pause, firstPause), longestPause)
				l.redisFailed("counting", err)
				continue
			}
			pause = 0
			l.redisAnswers()
			if now := l.now(); now.Sub(swept) > sweepEvery {
				l.sweep(ctx, now)
				swept = now
			}
		}
	}
}

// outliving returns a context that ends that long after ctx.
func outliving(ctx context.Context, by time.Duration) (longer context.Context, stop func()) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, cancel
}

func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

func (l *Ledger) countRest() {
	ctx, cancel := context.WithTimeout(context.Background(), finalRounds)
	defer cancel()
	for !l.queue.empty() && ctx.Err() == nil {
		if _, err := l.round(ctx); err != nil {
			return // the peers send it again
		}
	}
}

// round counts the oldest jobs, makes that durable and tells their peers. It returns how long making it durable
// took, and why a part of it failed; that waits again.
func (l *Ledger) round(ctx context.Context) (synced time.Duration, err error) {
	jobs := l.queue.take(roundSize)
	var parts []*part
	for _, j := range jobs {
		parts = append(parts, j.left()...)
	}
	given := make(map[*part]bool)
	for some := range slices.Chunk(parts, pipeScripts) {
		if err = l.count(ctx, some, given); err != nil {
			break
		}
	}
	var whole []*job
	for _, j := range jobs {
		switch {
		case len(j.left()) == 0:
			whole = append(whole, j)
		case slices.ContainsFunc(j.left(), func(p *part) bool { return given[p] }):
			l.metrics.dropped[dropError].Inc()
		case !l.queue.again(j):
			l.metrics.dropped[dropFull].Inc()
		}
	}
	if len(whole) == 0 {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	begin := time.Now()
	syncErr := l.state.Sync(ctx)
	synced = time.Since(begin)
	l.metrics.syncTime.Observe(synced.Seconds())
	if syncErr != nil {
		return synced, errors.Join(err, syncErr) // nobody is told: they send it again, which does no harm
	}
	for _, j := range whole {
		if j.counted != nil {
			l.answers.Go(j.counted) // a peer may take long to take it
		}
	}
	return synced, err
}

// errLoad is a failure that the next round mends: Redis does not have the scripts, as after a restart.
var errLoad = errors.New("the scripts are loaded again")

// count carries out the scripts of parts in one pipeline. It marks those as done that were counted, adds to given
// those that never will be, and returns an error when others are to be tried again.
func (l *Ledger) count(ctx context.Context, parts []*part, given map[*part]bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	if err := l.load(ctx); err != nil {
		return err
	}
	pipe := l.state.Pipeline()
	l.list(ctx, pipe, parts)
	listed := pipe.Len()
	for _, p := range parts {
		c := p.call(l.keys, l.cfg.Keep)
		pipe.EvalSha(ctx, c.script.Hash(), c.keys, c.args...)
	}
	cmds, _ := pipe.Exec(ctx) // each command has its own error
	l.metrics.rounds.Inc()
	// A box that has accounts is in the list before anybody is told that they count.
	for _, cmd := range cmds[:listed] {
		err = errors.Join(err, cmd.Err())
	}
	if err != nil {
		return err
	}
	for i, p := range parts {
		answer, failed := cmds[listed+i].(*redis.Cmd).Result()
		switch {
		case failed == nil:
			p.done = true
			l.metrics.count(p, p.outcomeOf(answer))
		case redis.HasErrorPrefix(failed, "NOSCRIPT"):
			l.loaded, err = false, errLoad
		case passes(failed):
			err = failed
		default:
			given[p] = true
			l.log.Error("traffic of a box cannot be counted", "box", p.box, "error", failed)
		}
	}
	return err
}

func (l *Ledger) load(ctx context.Context) error {
	if l.loaded {
		return nil
	}
	for _, script := range []*redis.Script{markedScript, keyedScript} {
		if err := script.Load(ctx, l.state).Err(); err != nil {
			return err
		}
	}
	l.loaded = true
	return nil
}

// list notes in the list of boxes with accounts the last day of each. Boxes of which nobody knows
// whether they have any are not added to it.
func (l *Ledger) list(ctx context.Context, pipe redis.Pipeliner, parts []*part) {
	days := make(map[id.BoxID]int64)
	known := make(map[id.BoxID]bool)
	for _, p := range parts {
		days[p.box] = max(days[p.box], slices.Max(p.days()))
		known[p.box] = known[p.box] || !p.onlyKnown
	}
	var add, change []redis.Z
	for box, day := range days {
		z := redis.Z{Score: float64(day), Member: string(box)}
		if known[box] {
			add = append(add, z)
		} else {
			change = append(change, z)
		}
	}
	if len(add) > 0 {
		pipe.ZAddArgs(ctx, l.keys.Accounts(), redis.ZAddArgs{GT: true, Members: add})
	}
	if len(change) > 0 {
		pipe.ZAddArgs(ctx, l.keys.Accounts(), redis.ZAddArgs{XX: true, GT: true, Members: change})
	}
}

// sweep takes boxes out of the list whose last account has expired.
func (l *Ledger) sweep(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	gone := dayOf(hourOf(now.Add(-l.cfg.Keep))) - 3
	if err := l.state.ZRemRangeByScore(ctx, l.keys.Accounts(), "-inf", strconv.FormatInt(gone, 10)).Err(); err != nil {
		l.redisFailed("sweeping the list of accounts", err)
	}
}

// passes reports whether what failed may succeed later: not where Redis itself says that the command is
// wrong, as where another program made a key of another type.
func passes(err error) bool {
	var said redis.Error
	if !errors.As(err, &said) {
		return true // the network
	}
	for _, passing := range []string{
		"LOADING", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "MOVED", "ASK", "BUSY", "OOM", "MISCONF", "NOREPLICAS", "NOAUTH", "max number of clients",
	} {
		if strings.Contains(err.Error(), passing) {
			return true
		}
	}
	return false
}

// redisFailed says so in the log, once for each time that Redis goes away.
func (l *Ledger) redisFailed(doing string, err error) {
	l.metrics.errors.Inc()
	if err != errLoad && l.failing.CompareAndSwap(false, true) {
		l.log.Warn("Redis fails; traffic is counted when it is back", "doing", doing, "error", err)
	}
}

func (l *Ledger) redisAnswers() {
	if l.failing.CompareAndSwap(true, false) {
		l.log.Info("Redis is back; traffic is counted")
	}
}
