//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/testnginx"
	"dandelion/pkg/watch"
)

// startTwins starts two processes of one entrance behind nginx, as docs/operations.md says: the second has the
// key of the first. It returns nginx's URL.
func (f *fleet) startTwins() string {
	t := f.t
	t.Helper()
	gate := testnginx.FreeAddr(t)
	more := fmt.Sprintf("  public_url: %q\n  trusted_proxies: [127.0.0.1]\n", "http://"+gate)
	f.entrance = f.newEntrance("entrance", more)
	data := filepath.Join(f.dir, "twin", "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(data, "key.pem"), string(read(t, filepath.Join(f.dir, "entrance", "data", "key.pem"))))
	f.twin = f.newEntrance("twin", more)
	if f.twin.id != f.entrance.id {
		ends(t, "with one key the processes are %s and %s", f.entrance.id, f.twin.id)
	}
	edits := map[string]string{
		"listen":                "listen " + gate + ";",
		"server 127.0.0.1:7070": "server " + f.entrance.addr + "; server " + f.twin.addr + ";",
	}
	for _, tls := range []string{"ssl_certificate", "ssl_certificate_key", "ssl_protocols", "ssl_session_cache", "ssl_session_timeout"} {
		edits[tls] = ""
	}
	testnginx.Start(t, gate, testnginx.Edit(t, repositoryConf(t, "entrance.conf"), edits))
	return "http://" + gate
}

// known is what a process of the entrance says of boxes: by ID, whether their connection is with another one.
func known(t *testing.T, entrance *daemon) (map[string]bool, error) {
	list, err := getJSON[struct {
		Boxes []struct {
			ID           string `json:"id"`
			OtherProcess bool   `json:"other_process"`
		} `json:"boxes"`
	}](t, entrance.url()+"/api/v1/boxes?limit=1000")
	boxes := map[string]bool{}
	for _, b := range list.Boxes {
		boxes[b.ID] = b.OtherProcess
	}
	return boxes, err
}

// TestTwoEntrances: of two processes of one entrance behind nginx one is killed. No box is lost, the stream
// goes on, and each delivery is counted once.
func TestTwoEntrances(t *testing.T) {
	t.Parallel()
	server := redistest.StartServer(t)
	const boxes, lease = 4, 20 * time.Second // entrance.lease_ttl
	fleet := newFleet(t, plan{boxes: boxes, twin: true, state: fmt.Sprintf("redis:\n  url: %q\n", server.URL())})
	encoder := encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4) // a stream that has just begun has nothing to buffer

	// Each process knows all boxes, and each box is connected to one of them.
	here := map[*daemon]int{}
	for _, e := range []*daemon{fleet.entrance, fleet.twin} {
		eventually(t, soon, func() error {
			list, err := known(t, e)
			if err == nil && len(list) != boxes {
				err = fmt.Errorf("%s knows %d boxes, want %d", e.name, len(list), boxes)
			}
			here[e] = 0
			for _, elsewhere := range list {
				if !elsewhere {
					here[e]++
				}
			}
			return err
		})
	}
	if here[fleet.entrance] == 0 || here[fleet.twin] == 0 || here[fleet.entrance]+here[fleet.twin] != boxes {
		t.Errorf("%d boxes are connected to one process and %d to the other, want %d, some at each", here[fleet.entrance], here[fleet.twin], boxes)
	}

	viewers := watching(t, fleet.index(), 2)
	awaitPlayed(t, viewers, 2*time.Second)
	fleet.twin.kill()
	died := time.Now()
	// At no moment does a box leave the entrance, neither in Redis nor at the process that is left, until all are
	// connected to that one and it has renewed their leases.
	set := server.Client(t)
	renewed := fmt.Sprint(died.Add(lease).Unix())
	eventually(t, lease, func() error {
		leases, err := set.ZRangeWithScores(t.Context(), keys.Entrance(fleet.entrance.id).BoxSet(), 0, -1).Result()
		if err != nil || len(leases) != boxes {
			return fatal{fmt.Errorf("%.1f s after the kill BOX_SET has %d boxes (%v), want %d", time.Since(died).Seconds(), len(leases), err, boxes)}
		}
		list, err := known(t, fleet.entrance)
		if err != nil || len(list) != boxes {
			return fatal{fmt.Errorf("%.1f s after the kill the other process knows %d boxes (%v), want %d", time.Since(died).Seconds(), len(list), err, boxes)}
		}
		for box, elsewhere := range list {
			if elsewhere {
				return fmt.Errorf("%s is not connected to the process that is left", box)
			}
		}
		n, err := set.ZCount(t.Context(), keys.Entrance(fleet.entrance.id).BoxSet(), renewed, "+inf").Result()
		if err == nil && n < boxes {
			err = fmt.Errorf("%d leases are younger than the kill, want %d", n, boxes)
		}
		return err
	})
	t.Logf("all boxes were connected to the other process, with new leases, after %.1f s", time.Since(died).Seconds())
	fleet.awaitBoxes(boxes)
	fleet.awaitMore(1)
	smooth(t, viewers)

	// The killed process comes back as the same entrance.
	fleet.twin.start()
	eventually(t, soon, func() error {
		list, err := known(t, fleet.twin)
		if err == nil && len(list) != boxes {
			err = fmt.Errorf("the process that came back knows %d boxes, want %d", len(list), boxes)
		}
		return err
	})

	// No delivery was counted twice, and none was lost.
	finish(t, encoder)
	awaitOver(t, viewers)
	for _, b := range fleet.boxes {
		fleet.accounted(viewers, b, 0)
	}
}

// ready asks a daemon's /debug/ready and returns what is wrong; "" when it is ready.
func ready(t *testing.T, d *daemon) string {
	_, _, err := get(t, d.url()+"/debug/ready")
	if err != nil {
		return err.Error()
	}
	return ""
}

// onRedis runs a stream and tasks on a fleet whose daemons all keep their state in one Redis: dandelion watch
// sees segments from boxes, an upload and a task of another program are placed and on record, boxes and the
// entrance have their keys.
func onRedis(t *testing.T, fleet *fleet, client redis.UniversalClient) {
	t.Helper()
	status, stdout, stderr := run(t, patience, nil, program("dandelion"), "watch", "--viewers", "3", "--for", "4s", "--json", fleet.index())
	var s watch.Summary
	if err := json.Unmarshal([]byte(stdout[max(strings.Index(stdout, "{"), 0):]), &s); status != 0 || err != nil {
		ends(t, "dandelion watch: status %d, %v: %s%s", status, err, stdout, stderr)
	}
	judgeStalls(t, "dandelion watch", s.Stalls.Count, time.Duration(s.Stalls.Seconds*float64(time.Second)))
	fromBoxes := int64(0)
	for from, n := range s.Bytes {
		if from != fleet.publisher.addr {
			fromBoxes += n
		}
	}
	if s.Playing != 3 || s.Segments.Corrupt+s.Segments.Missed > 0 || fromBoxes == 0 {
		t.Errorf("dandelion watch: %+v", s)
	}

	for _, d := range append([]*daemon{fleet.entrance, fleet.publisher}, fleet.boxes...) {
		if status, _, stderr := run(t, soon, nil, program("dandelion"), "ready", d.url()); status != 0 {
			t.Errorf("%s: dandelion ready: status %d: %s", d.name, status, stderr)
		}
	}
	placed(t, fleet, client, "first")
	box := keys.Box(fleet.boxes[0].id)
	for _, key := range []string{
		keys.Entrance(fleet.entrance.id).BoxSet(), keys.Entrance(fleet.entrance.id).Exchange(id.BoxID(fleet.boxes[0].id)),
		keys.Publisher(fleet.publisher.id).BoxRanking(), keys.Publisher(fleet.publisher.id).BoxList(),
		box.SelfExchange(), box.ExpireFiles(), box.Subscribe(id.PublisherID(fleet.publisher.id)),
	} {
		eventually(t, soon, func() error {
			if n, err := client.Exists(t.Context(), key).Result(); err != nil || n != 1 {
				return fmt.Errorf("the key %s is not there: %v", key, err)
			}
			return nil
		})
	}
}

// placed hands a file in with the tool and another through the queue, and waits until two boxes have each.
func placed(t *testing.T, fleet *fleet, client redis.UniversalClient, name string) {
	t.Helper()
	path, content := uploadRandom(t, fleet, 300_000)
	sameEverywhere(t, fleet, path, content, 2)
	q := &queue{t, client, keys.Publisher(fleet.publisher.id)}
	file := filepath.Join(t.TempDir(), name+".ts")
	content = bytes.Repeat([]byte(name), 20_000)
	write(t, file, string(content))
	q.push(fmt.Sprintf(`{"FILE_PATH": %q, "TTL": 600}`, file))
	if fields := q.recorded(file); fields["MSG"] != "Success" {
		t.Errorf("%s is on record as %v", file, fields)
	}
	sameEverywhere(t, fleet, file, content, 2)
}

// TestRedisCluster: the whole way of a stream on a Redis Cluster of three nodes. One dies and comes back: viewers
// do not notice, and what waited goes on.
func TestRedisCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, 3)
	addrs, _ := json.Marshal(cluster.Addrs())
	fleet := newFleet(t, plan{state: fmt.Sprintf("redis:\n  addrs: %s\n  cluster: true\n", addrs)})
	encode(t, fleet.source, ts, "+delete_segments")
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { client.Close() })
	fleet.awaitMore(4) // a stream that has just begun has nothing to buffer
	onRedis(t, fleet, client)
	for i, node := range cluster.Nodes {
		if n := node.Client(t).DBSize(t.Context()).Val(); n == 0 {
			t.Errorf("node %d holds nothing", i)
		}
	}
	all := append([]*daemon{fleet.entrance, fleet.publisher}, fleet.boxes...)
	for _, d := range all {
		for line := range lines(d.log.String()) {
			if hasAny(line, "CROSSSLOT", "MOVED", "level=WARN", "level=ERROR") {
				t.Errorf("%s on a Cluster that is well: %s", d.name, line)
			}
		}
	}

	viewers := watching(t, fleet.index(), 2)
	awaitPlayed(t, viewers, time.Second)
	// The one that has the leases.
	node := cluster.Nodes[slices.Index(cluster.Addrs(), slotOwner(t, client, keys.Entrance(fleet.entrance.id).BoxSet()))]
	node.Kill()
	fleet.entrance.says(t, soon, "Redis fails", node.Addr())
	eventually(t, soon, func() error {
		if why := ready(t, fleet.entrance); !strings.Contains(why, "no answer from Redis") {
			return fmt.Errorf("the entrance is ready without a node: %q", why)
		}
		return nil
	})
	if _, err := known(t, fleet.entrance); err != nil {
		t.Errorf("the entrance without a node: %v", err)
	}
	refuses(t, soon, program("dandelion"), []string{"ready", fleet.entrance.url()}, "redis: no answer from Redis")
	fleet.awaitMore(1)
	node.Restart(t)
	fleet.entrance.says(t, soon, "Redis is back")
	eventually(t, soon, func() error {
		if why := ready(t, fleet.entrance); why != "" {
			return fmt.Errorf("the entrance is not ready with all nodes: %s", why)
		}
		return nil
	})
	placed(t, fleet, client, "second")
	smooth(t, viewers)
	for _, d := range all {
		if line, found := d.log.line("CROSSSLOT"); found {
			t.Errorf("%s: %s", d.name, line)
		}
	}
}

func hasAny(text string, words ...string) bool {
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) })
}

// slotOwner returns host:port of the node that has a key.
func slotOwner(t *testing.T, client *redis.ClusterClient, key string) string {
	t.Helper()
	node, err := client.MasterForKey(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return node.Options().Addr
}

// TestRedisSentinel: the master dies under a running stream and its replica takes over. What the replica had is
// there, viewers do not notice, and new tasks are done.
func TestRedisSentinel(t *testing.T) {
	t.Parallel()
	sentinels := redistest.StartSentinels(t, 3)
	addrs, _ := json.Marshal(sentinels.Addrs())
	fleet := newFleet(t, plan{state: fmt.Sprintf("redis:\n  addrs: %s\n  sentinel: %s\n", addrs, sentinels.Name)})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4) // a stream that has just begun has nothing to buffer
	client := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: sentinels.Name, SentinelAddrs: sentinels.Addrs()})
	t.Cleanup(func() { client.Close() })
	onRedis(t, fleet, client)

	viewers := watching(t, fleet.index(), 2)
	awaitPlayed(t, viewers, time.Second)
	path, content := uploadRandom(t, fleet, 100_000)
	publisher := keys.Publisher(fleet.publisher.id)
	eventually(t, soon, func() error { // it is on record
		n, err := client.Exists(t.Context(), publisher.ProcessedFile(id.Path(path))).Result()
		if err == nil && n == 0 {
			err = fmt.Errorf("%s is not on record", path)
		}
		return err
	})
	sentinels.AwaitReplica(t) // Redis replicates behind the answer: what the replica lacks then would be lost
	sentinels.Master.Kill()
	died := time.Now()
	fleet.entrance.says(t, soon, "Redis fails")
	sentinels.AwaitFailover(t)
	fleet.entrance.says(t, soon, "Redis is back")
	t.Logf("the entrance had Redis again after %.1f s", time.Since(died).Seconds())

	replica := sentinels.Replica.Client(t)
	if fields := replica.HGetAll(t.Context(), publisher.ProcessedFile(id.Path(path))).Val(); fields["MSG"] != "Success" {
		t.Errorf("what was on record before the failover is now %v", fields)
	}
	sameEverywhere(t, fleet, path, content, 2)
	if leases := replica.ZCard(t.Context(), keys.Entrance(fleet.entrance.id).BoxSet()).Val(); leases != int64(len(fleet.boxes)) {
		t.Errorf("BOX_SET has %d boxes after the failover, want %d", leases, len(fleet.boxes))
	}
	placed(t, fleet, client, "second")
	smooth(t, viewers)
}
