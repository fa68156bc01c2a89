package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
)

// forgetEvery is how often innards.forget is called.
const forgetEvery = 10 * time.Second

// embedded is a Redis in this process. The process' own client reaches it through memory
// (newPipe): no port that others could find, no password, and no system calls.
type embedded struct {
	log    *slog.Logger
	server *miniredis.Miniredis
	serve  *server.Server // the part of it that takes connections
	in     *innards
	clock  *clock
	writes atomic.Uint64 // commands so far that may have changed something
	saver  *saver
	door   *door // nil: no port

	stop context.CancelFunc
	done sync.WaitGroup
}

func openEmbedded(listen, dir string, log *slog.Logger) (_ *embedded, err error) {
	if err := prepare(dir); err != nil {
		return nil, err
	}
	img, err := loadImage(dir, log)
	if err != nil {
		return nil, err
	}
	if img == nil {
		img = &image{}
	}
	e := &embedded{log: log, server: miniredis.NewMiniRedis()}
	defer func() {
		if err != nil {
			e.server.Close()
		}
	}()
	if e.serve, err = startServer(e.server); err != nil {
		return nil, err
	}
	if e.in, err = reach(e.server); err != nil {
		return nil, err
	}
	e.clock = newClock(img.now)
	e.server.SetTime(e.clock.current())
	keys, err := img.restore(e.server, e.clock.wall())
	if err != nil {
		return nil, fmt.Errorf("the embedded state in %s cannot be used: %w", dir, err)
	}
	e.serve.SetPreHook(e.count)
	e.saver = newSaver(dir, &e.writes, func(buf []byte) []byte { return e.in.dump(buf, e.clock) }, log)
	if listen != "" {
		if e.door, err = openDoor(listen, e.serve, &e.writes); err != nil {
			return nil, err
		}
		log.Info("Other programs reach the embedded state", "url", "redis://"+e.door.addr()+"/0")
	}
	var ctx context.Context
	ctx, e.stop = context.WithCancel(context.Background())
	e.done.Go(func() { e.keepTime(ctx) })
	e.done.Go(func() { e.saver.run(ctx) })
	if e.door != nil {
		e.done.Go(func() { e.door.run(log) })
	}
	log.Info("The embedded state is open", "dir", dir, "keys", keys)
	return e, nil
}

func (e *embedded) sync(ctx context.Context) error { return e.saver.sync(ctx) }
func (e *embedded) now() time.Time                 { return e.clock.current() }
func (e *embedded) wrote()                         { e.writes.Add(1) }

// prepare makes dir and finds out whether it can be written to, before anybody relies on it.
func prepare(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = writeSynced(filepath.Join(dir, tempFile), nil)
	}
	if err == nil {
		err = os.Remove(filepath.Join(dir, tempFile))
	}
	if err != nil {
		return fmt.Errorf("the embedded state cannot be kept in %s (%s): let this user write there, or choose another data_dir, or set redis.url", dir, shortCause(err))
	}
	return nil
}

// startServer starts m without a listener: dialling it is the one public way to do that.
func startServer(m *miniredis.Miniredis) (*server.Server, error) {
	conn, err := m.Dial()
	if err != nil {
		return nil, fmt.Errorf("the embedded state cannot start: %w", err)
	}
	return m.Server(), conn.Close()
}

// client returns the client of this process.
func (e *embedded) client() *redis.Client {
	return redis.NewClient(common(&redis.Options{
		Addr: "embedded",
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			client, server := newPipe()
			e.serve.ServeConn(server)
			return client, nil
		},
		ReadTimeout: ioTimeout, WriteTimeout: ioTimeout,
		PipelinePoolSize: -1, // separate connections gain nothing without a network
	}))
}

// count is called before each command, also for those that scripts call, which hold the
// server's lock: it must not take it.
func (e *embedded) count(_ *server.Peer, cmd string, _ ...string) bool {
	if !changesNothing(cmd) && !e.serve.IsReadOnlyCommand(cmd) {
		e.writes.Add(1)
	}
	return false
}

// changesNothing knows the commands that do not change data and that miniredis does not mark as
// read-only. Blocking ones are counted elsewhere, when they return: they mostly wait.
func changesNothing(cmd string) bool {
	switch cmd {
	case "PING", "ECHO", "HELLO", "AUTH", "SELECT", "CLIENT", "COMMAND", "INFO", "TIME", "QUIT",
		"MULTI", "DISCARD", "WATCH", "UNWATCH", "SCRIPT", "EVAL", "EVALSHA", "PUBLISH", "SUBSCRIBE", "PSUBSCRIBE":
		return true
	}
	return blocks(cmd)
}

func blocks(cmd string) bool {
	switch cmd {
	case "BLMOVE", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX":
		return true
	}
	return false
}

func (e *embedded) keepTime(ctx context.Context) {
	tick := time.NewTicker(clockStep)
	defer tick.Stop()
	forget := time.NewTicker(forgetEvery)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			e.in.pass(e.clock.advance())
		case <-forget.C:
			e.in.forget()
		}
	}
}

// close ends all connections and writes the last snapshot.
func (e *embedded) close() error {
	var doorErr error
	if e.door != nil {
		doorErr = e.door.close()
	}
	e.stop()
	e.done.Wait()
	e.server.Close() // the data stays
	return errors.Join(doorErr, e.saver.close())
}

// isBlocking is blocks for a name as a client writes it.
func isBlocking(cmd []byte) bool {
	return len(cmd) <= len("BRPOPLPUSH") && blocks(strings.ToUpper(string(cmd)))
}
