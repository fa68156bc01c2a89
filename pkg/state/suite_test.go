package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// The tests of this file say what Dandelion relies on. Each runs on the embedded state and on
// a real Redis.

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestHashes(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		same(t, "new fields", must[int64](t)(s.HSet(ctx, "h", "a", 1, "b", "two", "c", "").Result()), int64(3))
		same(t, "fields that exist", must[int64](t)(s.HSet(ctx, "h", map[string]any{"a": 1.5, "d": "ü\x00\r\n"}).Result()), int64(1))
		same(t, "HMSET", must[bool](t)(s.HMSet(ctx, "h", "e", "5").Result()), true)
		same(t, "HGETALL", must[map[string]string](t)(s.HGetAll(ctx, "h").Result()),
			map[string]string{"a": "1.5", "b": "two", "c": "", "d": "ü\x00\r\n", "e": "5"})
		same(t, "HMGET", must[[]any](t)(s.HMGet(ctx, "h", "b", "x").Result()), []any{"two", nil})
		same(t, "HINCRBY", must[int64](t)(s.HIncrBy(ctx, "h", "n", 3).Result()), int64(3))
		same(t, "HSETNX on a field that exists", must[bool](t)(s.HSetNX(ctx, "h", "b", "x").Result()), false)
		same(t, "HDEL", must[int64](t)(s.HDel(ctx, "h", "a", "b", "c", "d", "e", "n", "x").Result()), int64(6))
		same(t, "EXISTS of an empty hash", must[int64](t)(s.Exists(ctx, "h").Result()), int64(0))
		if err := s.HGet(ctx, "h", "a").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("HGET of nothing: got %v, want redis.Nil", err)
		}
		s.Set(ctx, "string", "x", 0)
		if err := s.HSet(ctx, "string", "a", 1).Err(); err == nil || !strings.HasPrefix(err.Error(), "WRONGTYPE") {
			t.Errorf("HSET of a string: got %v, want WRONGTYPE", err)
		}
	})
}

func TestSets(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		same(t, "SADD", must[int64](t)(s.SAdd(ctx, "s", "a", "b", "a").Result()), int64(2))
		members := must[[]string](t)(s.SMembers(ctx, "s").Result())
		slices.Sort(members)
		same(t, "SMEMBERS", members, []string{"a", "b"})
		same(t, "SISMEMBER", must[bool](t)(s.SIsMember(ctx, "s", "b").Result()), true)
		same(t, "SREM", must[int64](t)(s.SRem(ctx, "s", "b", "c").Result()), int64(1))
		same(t, "SCARD", must[int64](t)(s.SCard(ctx, "s").Result()), int64(1))
	})
}

func TestSortedSets(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		const now = 1.75e9
		same(t, "ZADD of several", must[int64](t)(s.ZAdd(ctx, "z",
			redis.Z{Score: now + 20, Member: "a"}, redis.Z{Score: now + 0.25, Member: "b"}, redis.Z{Score: now - 1, Member: "c"}).Result()), int64(3))
		byScore := func(from, to string) []string {
			return must[[]string](t)(s.ZRangeByScore(ctx, "z", &redis.ZRangeBy{Min: from, Max: to}).Result())
		}
		same(t, "ZRANGEBYSCORE", byScore("-inf", fmt.Sprint(int64(now+1))), []string{"c", "b"})
		same(t, "ZRANGEBYSCORE, exclusive", byScore(fmt.Sprintf("(%d", int64(now-1)), "+inf"), []string{"b", "a"})
		same(t, "ZRANGEBYSCORE with a limit", must[[]redis.Z](t)(s.ZRangeByScoreWithScores(ctx, "z",
			&redis.ZRangeBy{Min: "-inf", Max: "+inf", Offset: 1, Count: 1}).Result()), []redis.Z{{Score: now + 0.25, Member: "b"}})

		zadd := func(args redis.ZAddArgs) int64 { return must[int64](t)(s.ZAddArgs(ctx, "z", args).Result()) }
		score := func(member string) float64 { return must[float64](t)(s.ZScore(ctx, "z", member).Result()) }
		same(t, "ZADD GT CH, lower", zadd(redis.ZAddArgs{GT: true, Ch: true, Members: []redis.Z{{Score: now, Member: "a"}}}), int64(0))
		same(t, "score after", score("a"), now+20)
		same(t, "ZADD GT CH, higher", zadd(redis.ZAddArgs{GT: true, Ch: true, Members: []redis.Z{{Score: now + 40, Member: "a"}}}), int64(1))
		same(t, "score after", score("a"), now+40)
		zadd(redis.ZAddArgs{XX: true, Members: []redis.Z{{Score: 7, Member: "new"}, {Score: 8, Member: "c"}}})
		if err := s.ZScore(ctx, "z", "new").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("ZADD XX made a member: got %v, want redis.Nil", err)
		}
		same(t, "score after XX", score("c"), 8.0)
		zadd(redis.ZAddArgs{NX: true, Members: []redis.Z{{Score: 1, Member: "c"}}})
		same(t, "score after NX", score("c"), 8.0)

		same(t, "ZREVRANGE", must[[]string](t)(s.ZRevRange(ctx, "z", 0, 0).Result()), []string{"a"})
		same(t, "ZREM", must[int64](t)(s.ZRem(ctx, "z", "a", "nobody").Result()), int64(1))
		same(t, "ZREMRANGEBYSCORE", must[int64](t)(s.ZRemRangeByScore(ctx, "z", "-inf", "(100").Result()), int64(1))
		same(t, "ZCARD", must[int64](t)(s.ZCard(ctx, "z").Result()), int64(1))
	})
}

func TestLists(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		same(t, "RPUSH", must[int64](t)(s.RPush(ctx, "l", "a", "b", "a", "c").Result()), int64(4))
		same(t, "LMOVE", must[string](t)(s.LMove(ctx, "l", "done", "LEFT", "RIGHT").Result()), "a")
		same(t, "LRANGE", must[[]string](t)(s.LRange(ctx, "l", 0, -1).Result()), []string{"b", "a", "c"})
		same(t, "LREM", must[int64](t)(s.LRem(ctx, "l", 1, "a").Result()), int64(1))
		same(t, "LPUSH", must[int64](t)(s.LPush(ctx, "l", "first").Result()), int64(3))
		same(t, "LPOP", must[string](t)(s.LPop(ctx, "l").Result()), "first")
		same(t, "LLEN", must[int64](t)(s.LLen(ctx, "l").Result()), int64(2))
		s.LTrim(ctx, "l", 1, -1)
		same(t, "LRANGE after LTRIM", must[[]string](t)(s.LRange(ctx, "l", 0, -1).Result()), []string{"c"})
		if err := s.LMove(ctx, "nothing", "done", "LEFT", "RIGHT").Err(); !errors.Is(err, redis.Nil) {
			t.Errorf("LMOVE from nothing: got %v, want redis.Nil", err)
		}
	})
}

func TestBLMove(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		t.Run("what is there", func(t *testing.T) {
			s.RPush(ctx, "from", "a")
			same(t, "BLMOVE", must[string](t)(s.BLMove(ctx, "from", "to", "LEFT", "RIGHT", 0).Result()), "a")
			same(t, "the other list", must[[]string](t)(s.LRange(ctx, "to", 0, -1).Result()), []string{"a"})
		})
		t.Run("what comes after several slices", func(t *testing.T) {
			moved := make(chan string)
			go func() {
				v, err := s.BLMove(ctx, "late", "to", "LEFT", "RIGHT", 0).Result()
				moved <- fmt.Sprint(v, err)
			}()
			time.AfterFunc(2*blockSlice+blockSlice/2, func() { s.RPush(ctx, "late", "b") })
			same(t, "BLMOVE", <-moved, "b<nil>")
		})
		t.Run("nothing until the timeout", func(t *testing.T) {
			const timeout = blockSlice + blockSlice/5
			start := time.Now()
			if err := s.BLMove(ctx, "never", "to", "LEFT", "RIGHT", timeout).Err(); !errors.Is(err, redis.Nil) {
				t.Errorf("got %v, want redis.Nil", err)
			}
			if took := time.Since(start); took < timeout {
				t.Errorf("it waited %v, want at least %v", took, timeout)
			}
		})
		t.Run("the end of ctx", func(t *testing.T) {
			waiting, cancel := context.WithCancel(ctx)
			var cancelled time.Time
			time.AfterFunc(blockSlice/3, func() { cancelled = time.Now(); cancel() })
			if err := s.BLMove(waiting, "never", "to", "LEFT", "RIGHT", 0).Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want context.Canceled", err)
			}
			if late := time.Since(cancelled); late > 10*blockSlice {
				t.Errorf("it returned %v after the end of ctx", late)
			}
		})
		t.Run("a wrong type", func(t *testing.T) {
			s.Set(ctx, "string", "x", 0)
			if err := s.BLMove(ctx, "string", "to", "LEFT", "RIGHT", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "WRONGTYPE") {
				t.Errorf("got %v, want WRONGTYPE", err)
			}
		})
		t.Run("many wait while others work", func(t *testing.T) {
			const waiters = 20
			waiting, cancel := context.WithCancel(ctx)
			moved := make(chan string, waiters)
			for range waiters {
				go func() { moved <- s.BLMove(waiting, "jobs", "to", "LEFT", "RIGHT", 0).Val() }()
			}
			got := map[string]bool{}
			for i := range waiters {
				if err := s.RPush(ctx, "jobs", strconv.Itoa(i)).Err(); err != nil {
					t.Error(err)
				}
			}
			for range waiters {
				got[<-moved] = true
			}
			cancel()
			if len(got) != waiters || got[""] {
				t.Errorf("%d different elements, want %d: %v", len(got), waiters, slices.Sorted(maps.Keys(got)))
			}
		})
	})
}

func TestExpiry(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		now := must[time.Time](t)(s.Now(ctx))
		s.Set(ctx, "a", "1", time.Hour)
		s.HSet(ctx, "b", "x", "1")
		s.Set(ctx, "forever", "1", 0)
		same(t, "EXPIREAT", must[bool](t)(s.ExpireAt(ctx, "b", now.Add(2*time.Hour)).Result()), true)
		same(t, "EXPIRE of nothing", must[bool](t)(s.Expire(ctx, "nothing", time.Hour).Result()), false)
		near := func(key string, want time.Duration) {
			t.Helper()
			if got := must[time.Duration](t)(s.PTTL(ctx, key).Result()); got < want-2*time.Second || got > want+time.Second {
				t.Errorf("PTTL %s: got %v, want about %v", key, got, want)
			}
		}
		near("a", time.Hour)
		near("b", 2*time.Hour)
		same(t, "TTL without expiry", must[time.Duration](t)(s.TTL(ctx, "forever").Result()), time.Duration(-1))
		same(t, "TTL of nothing", must[time.Duration](t)(s.TTL(ctx, "nothing").Result()), time.Duration(-2))
		same(t, "EXPIREAT in the past", must[bool](t)(s.ExpireAt(ctx, "a", now.Add(-time.Second)).Result()), true)
		same(t, "EXISTS after", must[int64](t)(s.Exists(ctx, "a").Result()), int64(0))
		same(t, "PERSIST", must[bool](t)(s.Persist(ctx, "b").Result()), true)
		same(t, "TTL after PERSIST", must[time.Duration](t)(s.TTL(ctx, "b").Result()), time.Duration(-1))

		// Real time: a key lives until its end and not much longer.
		const life = 300 * time.Millisecond
		start := time.Now()
		s.PExpire(ctx, "b", life)
		for must[int64](t)(s.Exists(ctx, "b").Result()) == 1 {
			if time.Since(start) > 20*time.Second {
				t.Fatal("a key of 300 ms is there after 20 s")
			}
		}
		if lived := time.Since(start); lived < life-2*clockStep {
			t.Errorf("a key of %v lived %v", life, lived)
		}
	})
}

func TestTransactionsAndPipelines(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		var n *redis.IntCmd
		_, err := s.TxPipelined(ctx, func(p redis.Pipeliner) error {
			p.HSet(ctx, "{k}:h", "a", 1)
			p.ZAdd(ctx, "{k}:z", redis.Z{Score: 1, Member: "a"})
			n = p.ZCard(ctx, "{k}:z")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "ZCARD in a transaction", n.Val(), int64(1))

		// One that is far larger than every buffer on the way, in both directions.
		const commands = 2000
		value := strings.Repeat("x", 1000)
		answers, err := s.Pipelined(ctx, func(p redis.Pipeliner) error {
			for i := range commands {
				p.HSet(ctx, "big", strconv.Itoa(i), value)
				p.HGet(ctx, "big", strconv.Itoa(i))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "answers", len(answers), 2*commands)
		same(t, "the last one", answers[2*commands-1].(*redis.StringCmd).Val(), value)
		all := must[map[string]string](t)(s.HGetAll(ctx, "big").Result())
		same(t, "fields", len(all), commands)

		// An error of one command does not stop the others.
		answers, err = s.Pipelined(ctx, func(p redis.Pipeliner) error {
			p.LPush(ctx, "big", "wrong type")
			p.HLen(ctx, "big")
			return nil
		})
		if err == nil || !strings.HasPrefix(err.Error(), "WRONGTYPE") {
			t.Errorf("got %v, want WRONGTYPE", err)
		}
		same(t, "the command after it", answers[1].(*redis.IntCmd).Val(), int64(commands))
	})
}

func TestScriptOnOneKey(t *testing.T) {
	t.Parallel()
	endLease := redis.NewScript(`
		local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
		if score and tonumber(score) == tonumber(ARGV[2]) then
			return redis.call('ZREM', KEYS[1], ARGV[1])
		end
		return 0`)
	onBoth(t, func(t *testing.T, s *State) {
		ctx := t.Context()
		const score = 1750000000.123
		s.ZAdd(ctx, "leases", redis.Z{Score: score, Member: "box"})
		other := must[int](t)(endLease.Run(ctx, s, []string{"leases"}, "box", score+1).Int())
		same(t, "another's lease", other, 0)
		own := must[int](t)(endLease.Run(ctx, s, []string{"leases"}, "box", score).Int())
		same(t, "the own lease", own, 1)
		gone := must[int](t)(endLease.Run(ctx, s, []string{"leases"}, "box", score).Int())
		same(t, "no lease", gone, 0)
	})
}

func TestTime(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		before := time.Now()
		now := must[time.Time](t)(s.Now(t.Context()))
		redisTime := must[time.Time](t)(s.Time(t.Context()).Result())
		for name, got := range map[string]time.Time{"Now": now, "TIME": redisTime} {
			if d := got.Sub(before); d < -time.Second || d > 10*time.Second {
				t.Errorf("%s is %v from the system's clock", name, d)
			}
		}
		later := must[time.Time](t)(s.Now(t.Context()))
		if later.Before(now) {
			t.Errorf("Now went back from %v to %v", now, later)
		}
	})
}

func TestSyncAndClose(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, s *State) {
		s.Set(t.Context(), "a", "1", 0)
		if err := s.Sync(t.Context()); err != nil {
			t.Errorf("Sync: %v", err)
		}
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		if err := s.Get(t.Context(), "a").Err(); err == nil {
			t.Error("a command after Close succeeded")
		}
		if err := s.Sync(t.Context()); s.Embedded() && err == nil {
			t.Error("Sync after Close succeeded")
		}
	})
}
