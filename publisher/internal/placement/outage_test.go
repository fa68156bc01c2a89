package placement

import (
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"dandelion/pkg/id"
)

func TestOutageIsToldOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		said := &warnings{}
		log := slog.New(said)
		var o outage
		for range 4 * 60 {
			o.failed(log, "Redis is away", errors.New("refused"))
			time.Sleep(time.Second)
		}
		if n := said.count(); n != 1 {
			t.Errorf("%d warnings in 4 min", n)
		}
		time.Sleep(stillOut)
		o.failed(log, "Redis is away", errors.New("refused"))
		if n := said.count(); n != 2 {
			t.Errorf("%d warnings in 9 min", n)
		}
		o.over(log, "Redis is back")
		o.failed(log, "Redis is away", errors.New("refused"))
		if n := said.count(); n != 3 {
			t.Errorf("%d warnings after a second outage", n)
		}
	})
}

// TestRedisGoneAndBack: while Redis is away live segments are placed and known; when it is back,
// empty even, their records and those of tasks are written, the queue goes on, and the log was not
// flooded.
func TestRedisGoneAndBack(t *testing.T) {
	t.Parallel()
	s := newShop(t)
	said := &warnings{}
	s.log = slog.New(said)
	s.box(1)
	s.box(2)
	s.start()
	before, _ := s.write("before", "before")
	s.push(taskOf(before, 600))
	s.awaitRecord(before, msgSuccess)
	s.await("the list is empty", func() bool { return s.left() == 0 })

	s.gate.set(false)
	segments := &rig{t: t, dir: s.dir}
	const n = 20
	for i := range n {
		l := segments.segment(i, 2)
		s.placement.Place(l)
		s.await("two holders in memory", func() bool { return len(s.placement.records.holders(l.Path, l.Digest)) == 2 })
	}
	s.await("failures are met", func() bool { return said.count() > 0 })
	during, _ := s.write("during", "during")
	s.push(taskOf(during, 600))
	lost := s.redis.RPop(t.Context(), s.keys.SendingQueue()).Val()
	s.redis.FlushAll(t.Context())
	s.push(lost)
	s.gate.set(true)

	s.awaitRecord(during, msgSuccess)
	for _, path := range []id.Path{before, segments.segment(0, 2).Path, segments.segment(n-1, 2).Path} {
		record := s.awaitRecord(path, msgSuccess)
		d, err := id.ParseDigest(record[fieldDigest])
		if err != nil {
			t.Errorf("%s: %v", path, record)
		}
		// Written behind the record: they are keys of their own.
		s.await("its two holders in Redis", func() bool { return s.redis.ZCard(t.Context(), s.keys.Holders(path, d)).Val() == 2 })
	}
	if got := said.count(); got > 5 {
		t.Errorf("%d warnings: %q", got, said.said)
	}

	// Wiped while all is well and nothing is written.
	s.redis.FlushAll(t.Context())
	s.awaitRecord(before, msgSuccess)

	// Wiped while the publisher is away: what boxes have comes back.
	s.kill()
	s.redis.FlushAll(t.Context())
	s.start()
	s.awaitRecord(before, msgSuccess)
	s.awaitRecord(during, msgSuccess)
}
