package state

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/state/redistest"
)

// One node that has all slots answers as a Cluster does.
func TestCluster(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	url := redistest.Start(t, "--cluster-enabled", "yes")
	node := open(t, Config{URL: url}, "")
	if err := node.ClusterAddSlotsRange(ctx, 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	// The node waits for 2 s before it says that it is ready.
	for start := time.Now(); node.Set(ctx, "a", 1, 0).Err() != nil; {
		if time.Since(start) > 30*time.Second {
			t.Fatal("the cluster is not ready after 30 s: ", node.ClusterInfo(ctx))
		}
	}
	s := open(t, Config{URL: url, Cluster: true}, "")
	if _, ok := s.UniversalClient.(*redis.ClusterClient); !ok {
		t.Fatalf("the client is a %T", s.UniversalClient)
	}
	if _, err := s.Now(ctx); err != nil {
		t.Errorf("Now: %v", err)
	}
	s.RPush(ctx, "{queue}:from", "x")
	same(t, "BLMOVE in one slot", must[string](t)(s.BLMove(ctx, "{queue}:from", "{queue}:to", "LEFT", "RIGHT", 0).Result()), "x")
	err := s.BLMove(ctx, "from", "to", "LEFT", "RIGHT", 0).Err()
	if err == nil || errors.Is(err, redis.Nil) || !strings.Contains(err.Error(), "CROSSSLOT") {
		t.Errorf("BLMOVE between slots: got %v, want CROSSSLOT", err)
	}
}
