// Package state opens Dandelion's shared state: a Redis that the operator runs, or, when none is
// configured, one embedded in the process. It owns the connection, the embedded server with its
// clock, and the snapshot that makes the embedded data outlive the process. It must not know
// any key's name (pkg/keys) nor what the values mean, and nothing above it may ask which Redis
// it is: code that works on one works on the other.
//
// Commands used on it must exist in Redis 6.2; no HEXPIRE, no keyspace notifications, no KEYS.
// Streams, HyperLogLogs and expiry times of single hash fields are not in the embedded snapshot.
package state

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// blockSlice is the longest that one blocking command sits on a connection. go-redis does not
// look at the context while it waits for an answer, so a long wait is cut into short ones.
const blockSlice = 250 * time.Millisecond

// State is an open Redis. All methods may be called concurrently.
//
// Commands are never sent twice: after a network error the caller does not know whether the
// command was carried out, and repeats it only where that does no harm.
type State struct {
	redis.UniversalClient

	embedded inProcess // nil: a real Redis
	close    func() error
}

// inProcess is the embedded Redis. It is an interface so that a program which only calls Connect does not
// carry it: a small device's binary is a tenth smaller.
type inProcess interface {
	sync(ctx context.Context) error
	now() time.Time
	wrote() // a write that the client's hook cannot see
}

// Open opens the Redis that cfg names. dir is where the embedded state keeps its snapshot,
// made with mode 0700 if missing and used by one process at a time (the caller sees to that);
// a real Redis does not use it.
//
// A Redis that does not answer is tried again for 30 s; then, or when it refuses the password
// or is older than 6.2, Open returns a one-line error that names the cause and the cure. The
// end of ctx ends the trying. ctx has no influence on the State returned: Close ends it.
func Open(ctx context.Context, cfg Config, dir string, log *slog.Logger) (*State, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if !cfg.embedded() {
		return Connect(ctx, cfg, log)
	}
	quiet()
	e, err := openEmbedded(cfg.EmbeddedListen, dir, log)
	if err != nil {
		return nil, err
	}
	client := e.client()
	s := &State{UniversalClient: client, embedded: e}
	s.close = sync.OnceValue(func() error {
		// The client goes first: what it has had an answer to is in the last snapshot.
		return errors.Join(client.Close(), e.close())
	})
	return s, nil
}

// Connect is Open for a program that keeps no state of its own: cfg must name a real Redis.
func Connect(ctx context.Context, cfg Config, log *slog.Logger) (*State, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	quiet()
	client, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	return &State{UniversalClient: client, close: sync.OnceValue(client.Close)}, nil
}

// Close ends the connection; the embedded state writes a last snapshot first. A second call
// does nothing. Commands and Sync fail afterwards.
func (s *State) Close() error { return s.close() }

// Embedded reports whether the state lives in this process.
func (s *State) Embedded() bool { return s.embedded != nil }

// Sync returns when all writes that were answered before the call are durable, or with an error
// when they are not or ctx ends. What the software acknowledges to others waits for it; leases
// and scores do not.
//
// Embedded: a snapshot taken after the call has reached the disk; calls made at the same time
// share one. Real Redis: nil at once, for its persistence is its operator's.
func (s *State) Sync(ctx context.Context) error {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.sync(ctx)
}

// Now returns the state's time, which all processes on it share: leases are measured with it.
// It is Redis' TIME. The embedded clock never jumps with the system's (see clock).
func (s *State) Now(ctx context.Context) (time.Time, error) {
	if s.embedded != nil {
		return s.embedded.now(), nil
	}
	return s.Time(ctx).Result()
}

// BLMove moves an element between lists, waiting for one up to timeout, 0 for ever. It returns
// redis.Nil when none came, and within 250 ms of the end of ctx the error of ctx. On Redis
// Cluster both keys must be in one slot.
func (s *State) BLMove(ctx context.Context, source, destination, srcpos, destpos string, timeout time.Duration) *redis.StringCmd {
	start := time.Now()
	for {
		slice := blockSlice
		if timeout > 0 {
			slice = min(slice, max(timeout-time.Since(start), time.Millisecond))
		}
		cmd := redis.NewStringCmd(ctx, "blmove", source, destination, srcpos, destpos, slice.Seconds())
		if err := ctx.Err(); err != nil {
			cmd.SetErr(err)
			return cmd
		}
		err := s.Process(ctx, cmd)
		if err == nil && s.embedded != nil {
			s.embedded.wrote()
		}
		over := timeout > 0 && time.Since(start) >= timeout
		if !errors.Is(err, redis.Nil) || over {
			return cmd
		}
	}
}
