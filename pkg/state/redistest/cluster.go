package redistest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// settled is how long a Cluster or a set of Sentinels may take until all know each other. On a free
// machine it is 3 to 5 s: a node waits for 2 s before it takes writes.
const settled = 60 * time.Second

// Cluster is a Redis Cluster of masters without replicas, each with an equal part of the slots.
type Cluster struct {
	Nodes []*Server
}

// StartCluster starts a Redis Cluster of n nodes on 127.0.0.1 and waits until it takes writes. Each
// node keeps what it has in an append-only file, so that Restart brings it back with its data. args go
// behind each node's own.
func StartCluster(tb testing.TB, n int, args ...string) *Cluster {
	tb.Helper()
	c := &Cluster{}
	for range n {
		// The bus has a port of its own here: the usual one, 10000 higher, may be taken or too high.
		c.Nodes = append(c.Nodes, StartServer(tb, append([]string{
			"--cluster-enabled", "yes", "--cluster-port", fmt.Sprint(freePort(tb)), "--cluster-node-timeout", "2000", "--appendonly", "yes",
		}, args...)...))
	}
	const slots = 16384
	for i, s := range c.Nodes {
		first := s.Client(tb)
		must(tb, first.Do(tb.Context(), "CLUSTER", "SET-CONFIG-EPOCH", i+1).Err())
		must(tb, first.ClusterAddSlotsRange(tb.Context(), i*slots/n, (i+1)*slots/n-1).Err())
		if i > 0 {
			bus := c.Nodes[0].option("--cluster-port")
			must(tb, first.Do(tb.Context(), "CLUSTER", "MEET", "127.0.0.1", c.Nodes[0].Port, bus).Err())
		}
	}
	c.Await(tb)
	return c
}

// Await waits until all nodes see the whole Cluster.
func (c *Cluster) Await(tb testing.TB) {
	tb.Helper()
	for _, s := range c.Nodes {
		s.await(tb, fmt.Sprintf("the Cluster of %d nodes", len(c.Nodes)), func(client *redis.Client) (string, bool) {
			info, err := client.ClusterInfo(tb.Context()).Result()
			return fmt.Sprint(info, err), has(info, "cluster_state:ok", "cluster_slots_ok:16384", fmt.Sprintf("cluster_known_nodes:%d", len(c.Nodes)))
		})
	}
}

// Addrs returns host:port of each node.
func (c *Cluster) Addrs() (addrs []string) {
	for _, s := range c.Nodes {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// Sentinels are a master, its replica and Sentinels that watch them.
type Sentinels struct {
	Name            string // of the master, as Sentinels call it
	Master, Replica *Server
	Sentinels       []*Server
}

// StartSentinels starts a master with one replica and n Sentinels, more than half of which must agree on a
// failover, and waits until all know each other and the replica has what the master has. A master that
// does not answer for 1 s counts as down.
func StartSentinels(tb testing.TB, n int) *Sentinels {
	tb.Helper()
	s := &Sentinels{Name: "dandelion", Master: StartServer(tb)}
	s.Replica = StartServer(tb, "--replicaof", fmt.Sprintf("127.0.0.1 %d", s.Master.Port))
	s.AwaitReplica(tb)
	for range n {
		file := filepath.Join(tb.TempDir(), "sentinel.conf") // Sentinel writes into it
		must(tb, os.WriteFile(file, fmt.Appendf(nil,
			"sentinel monitor %[1]s 127.0.0.1 %[2]d %[3]d\nsentinel down-after-milliseconds %[1]s 1000\nsentinel failover-timeout %[1]s 10000\n",
			s.Name, s.Master.Port, n/2+1), 0o600))
		s.Sentinels = append(s.Sentinels, startServer(tb, []string{file, "--sentinel"}, nil))
	}
	for _, sentinel := range s.Sentinels {
		sentinel.await(tb, "the Sentinels", func(client *redis.Client) (string, bool) {
			m, err := client.Do(tb.Context(), "SENTINEL", "MASTER", s.Name).Result()
			said := strings.ReplaceAll(fmt.Sprint(m, err), " ", ":")
			return said, has(said, "num-slaves:1", fmt.Sprintf("num-other-sentinels:%d:", n-1))
		})
	}
	return s
}

// AwaitReplica waits until the replica has all that the master has.
func (s *Sentinels) AwaitReplica(tb testing.TB) {
	tb.Helper()
	s.Master.await(tb, "the replica", func(client *redis.Client) (string, bool) {
		info, err := client.Info(tb.Context(), "replication").Result()
		var offset string
		for line := range strings.Lines(info) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "master_repl_offset:"); ok {
				offset = value
			}
		}
		return fmt.Sprint(info, err), has(info, "state=online,offset="+offset+",")
	})
}

// AwaitFailover waits until the replica is the master.
func (s *Sentinels) AwaitFailover(tb testing.TB) {
	tb.Helper()
	s.Replica.await(tb, "the failover", func(client *redis.Client) (string, bool) {
		info, err := client.Info(tb.Context(), "replication").Result()
		return fmt.Sprint(info, err), has(info, "role:master")
	})
}

// Addrs returns host:port of each Sentinel.
func (s *Sentinels) Addrs() (addrs []string) {
	for _, sentinel := range s.Sentinels {
		addrs = append(addrs, sentinel.Addr())
	}
	return addrs
}

func has(text string, words ...string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
