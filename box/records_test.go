package box

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/testnginx"
	"dandelion/pkg/wire"
)

// TestRecords: what other programs find in Redis (docs/protocol.md).
func TestRecords(t *testing.T) {
	t.Parallel()
	server := redistest.StartServer(t)
	client := server.Client(t)
	e := newEntrance(t)
	cfg := testConfig(t)
	cfg.Entrances = []string{e.url}
	b := start(t, cfg, state.Config{URL: server.URL()})
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	push(t, conn, "/timed", time.Minute, []byte("x"))
	push(t, conn, "/kept", 0, []byte("y"))

	key := keys.Box(b.ID())
	entrance := id.EntranceIDOf([]byte("e"))
	eventually(t, func() error {
		files, err := client.ZRangeWithScores(t.Context(), key.ExpireFiles(), 0, -1).Result()
		if err != nil || len(files) != 1 || files[0].Member != "/"+string(pub)+"/timed" {
			return fmt.Errorf("EXPIRE_FILES %v, %v", files, err)
		}
		if left := time.Until(time.UnixMilli(int64(files[0].Score * 1000))); left < 30*time.Second || left > time.Minute {
			return fmt.Errorf("expires in %v", left)
		}
		return nil
	})
	for hash, want := range map[string]map[string]string{
		key.Subscribe(pub):     {"ID": string(pub), "IP": "198.51.100.1", "TYPE": "PUBLISHER", "COMMAND": "PUBLISH", "FEATURES": "ack,grant,relay,traffic", "FRONT_URL": "http://198.51.100.1:7071", "ADDRESS": "127.0.0.1"},
		key.SelfExchange():     {"ID": string(b.ID()), "TYPE": "BOX", "COMMAND": "EXCHANGE", "IP": "0.0.0.0"},
		key.Exchange(entrance): {"ID": string(entrance), "TYPE": "ENTRANCE", "MESSAGE": "ACCEPTED"},
	} {
		eventually(t, func() error {
			got, err := client.HGetAll(t.Context(), hash).Result()
			for field, value := range want {
				if got[field] != value {
					return fmt.Errorf("%s: %s is %q, %v", hash, field, got[field], err)
				}
			}
			return nil
		})
	}
	for hash, expires := range map[string]bool{key.Subscribe(pub): true, key.Exchange(entrance): true, key.SelfExchange(): false} {
		ttl, err := client.TTL(t.Context(), hash).Result()
		if err != nil || (ttl > 0) != expires {
			t.Errorf("%s: TTL %v, %v", hash, ttl, err)
		}
	}
	if err := conn.WriteText(wire.Encode(wire.Delete{
		Peer: wire.Peer{ID: string(pub), IP: "x", Type: wire.TypePublisher}, Command: wire.CommandDelete, FilePaths: []string{"/timed"},
	})); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if n, err := client.ZCard(t.Context(), key.ExpireFiles()).Result(); n != 0 || err != nil {
			return fmt.Errorf("%d left, %v", n, err)
		}
		return nil
	})
}

// TestRedisDown: a box whose Redis does not answer takes files and serves them.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	b := start(t, testConfig(t), state.Config{URL: "redis://" + testnginx.FreeAddr(t)})
	conn := b.publisher(wire.BoxWSPath(b.ID()))
	// More than its queue holds, so that nothing may wait for it.
	for i := range 50 {
		push(t, conn, id.Path(fmt.Sprintf("/f%d", i)), time.Minute, []byte("x"))
	}
	for range 2 * recordQueue {
		b.records.Deleted(pub, "/x")
	}
	if status, body := b.get("/" + string(pub) + "/f49"); status != 200 || body != "x" {
		t.Errorf("%d %q", status, body)
	}
	if _, metrics := b.get("/metrics"); strings.Contains(metrics, "dandelion_box_records_dropped_total 0\n") {
		t.Error("nothing is counted as dropped")
	}
}
