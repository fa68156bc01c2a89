package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/state/redistest"
)

// Three nodes: each key is on one of them, and what works on two keys works in one slot alone.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster := redistest.StartCluster(t, 3)
	var told logs
	s, err := Open(ctx, Config{URL: cluster.Nodes[0].URL(), Addrs: cluster.Addrs()[1:], Cluster: true}, "", told.logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if _, ok := s.UniversalClient.(*redis.ClusterClient); !ok {
		t.Fatalf("the client is a %T", s.UniversalClient)
	}
	if text := told.String(); !strings.Contains(text, "Redis is reachable") || strings.Contains(text, "WARN") || strings.Contains(text, "unknown") {
		t.Errorf("opening it said %s", text)
	}
	for range 10 { // on any node
		if now, err := s.Now(ctx); err != nil || time.Since(now).Abs() > time.Minute {
			t.Errorf("Now: %v, %v", now, err)
		}
	}
	// A pipeline goes to all nodes at once, and its answers stay in order.
	cmds, err := s.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i := range 100 {
			p.Set(ctx, fmt.Sprintf("key-%d", i), i, 0)
			p.Get(ctx, fmt.Sprintf("key-%d", i))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		same(t, "a pipeline over all nodes", cmds[2*i+1].(*redis.StringCmd).Val(), fmt.Sprint(i))
	}
	for i, node := range cluster.Nodes {
		if n := node.Client(t).DBSize(ctx).Val(); n < 10 {
			t.Errorf("node %d has %d of 100 keys", i, n)
		}
	}
	s.RPush(ctx, "{queue}:from", "x")
	same(t, "BLMOVE in one slot", must[string](t)(s.BLMove(ctx, "{queue}:from", "{queue}:to", "LEFT", "RIGHT", 0).Result()), "x")
	err = s.BLMove(ctx, "from", "to", "LEFT", "RIGHT", 0).Err()
	if err == nil || errors.Is(err, redis.Nil) || !strings.Contains(err.Error(), "CROSSSLOT") {
		t.Errorf("BLMOVE between slots: got %v, want CROSSSLOT", err)
	}
	_, err = s.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "from", 1, 0)
		p.Set(ctx, "to", 1, 0)
		return nil
	})
	if err == nil {
		t.Error("a transaction between slots was carried out")
	}

	// A node dies and comes back with its data. What stands on it fails meanwhile, in words of the
	// Cluster or of the network.
	cluster.Nodes[1].Kill()
	write := func(ctx context.Context) (first error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		for i := range 100 {
			first = errors.Join(first, s.Set(ctx, fmt.Sprintf("key-%d", i), i, 0).Err())
		}
		return first
	}
	if err := write(ctx); err == nil {
		t.Error("all 100 keys were written without a third of the slots")
	} else {
		line, _, _ := strings.Cut(err.Error(), "\n")
		t.Log("while a node is down: ", line)
	}
	cluster.Nodes[1].Restart(t)
	for begin := time.Now(); ; {
		err := write(ctx)
		if err == nil {
			break
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatal("30 s after the node came back: ", err)
		}
	}
	for i := range 100 {
		same(t, "after the node came back", must[string](t)(s.Get(ctx, fmt.Sprintf("key-%d", i)).Result()), fmt.Sprint(i))
	}
}

// A command whose answer is lost is not sent again by the client, which could not know whether it was carried
// out: one INCR is one, alone and in a pipeline.
func TestClusterSendsNothingTwice(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	leaky := newLeaky(t)
	// The node announces the leaky wire as its own address.
	cluster := redistest.StartCluster(t, 1, "--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", leaky.port())
	node := cluster.Nodes[0]
	leaky.to.Store(node.Addr())
	s := open(t, Config{URL: "redis://" + leaky.addr() + "/0", Cluster: true}, "")
	for name, incr := range map[string]func() error{
		"command": func() error { return s.Incr(ctx, "command").Err() },
		"pipeline": func() error {
			_, err := s.Pipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "pipeline"); return nil })
			return err
		},
		"transaction": func() error {
			_, err := s.TxPipelined(ctx, func(p redis.Pipeliner) error { p.Incr(ctx, "transaction"); return nil })
			return err
		},
	} {
		if err := incr(); err != nil {
			t.Fatal(name, err)
		}
		leaky.losing.Store(true)
		err := incr()
		if err == nil {
			t.Errorf("%s: no error although the answer was lost", name)
		}
		same(t, name, must[string](t)(node.Client(t).Get(ctx, name).Result()), "2")
	}
	if err := s.Incr(ctx, "command").Err(); err != nil {
		t.Errorf("after the answers came again: %v", err)
	}
}

// leaky is a wire to a Redis that loses an answer, and breaks then.
type leaky struct {
	ln     net.Listener
	to     atomic.Value // string
	losing atomic.Bool  // the next answer
}

func newLeaky(t *testing.T) *leaky {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	l := &leaky{ln: ln}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", l.to.Load().(string))
			if err != nil {
				client.Close()
				continue
			}
			go func() {
				defer server.Close()
				_, _ = io.Copy(server, client)
			}()
			go func() {
				defer client.Close()
				b := make([]byte, 64<<10)
				for {
					n, err := server.Read(b)
					if err != nil || l.losing.CompareAndSwap(true, false) {
						return
					}
					if _, err := client.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l
}

func (l *leaky) addr() string { return l.ln.Addr().String() }

func (l *leaky) port() string {
	_, port, _ := net.SplitHostPort(l.addr())
	return port
}

// The master dies. The client finds the next one through the Sentinels, and what the replica had is there.
func TestSentinel(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	sentinels := redistest.StartSentinels(t, 3)
	s, err := Open(ctx, Config{Addrs: sentinels.Addrs(), Sentinel: sentinels.Name}, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.Set(ctx, "before", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	sentinels.AwaitReplica(t)
	sentinels.Master.Kill()
	began := time.Now()
	if err := s.Set(ctx, "after", "y", 0).Err(); err == nil {
		t.Error("a write to a dead master has no error")
	} else {
		t.Log("while there is no master: ", err)
	}
	for s.Set(ctx, "after", "y", 0).Err() != nil {
		if time.Since(began) > 30*time.Second {
			t.Fatal("no master 30 s after the death of the first")
		}
	}
	t.Logf("writes go on after %.1f s", time.Since(began).Seconds())
	same(t, "what the replica had", must[string](t)(s.Get(ctx, "before").Result()), "x")
	sentinels.AwaitFailover(t)
}
