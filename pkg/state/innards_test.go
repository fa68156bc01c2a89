package state

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

func newServer(t testing.TB) *miniredis.Miniredis {
	t.Helper()
	server := miniredis.NewMiniRedis()
	if _, err := startServer(server); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	return server
}

func TestTimePasses(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	in := must[*innards](t)(reach(server))
	now := time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)
	server.Set("forever", "1")
	server.Set("short", "1")
	server.SetTTL("short", 10*time.Second)
	server.HSet("long", "a", "1", "b", "2")
	server.SetTTL("long", time.Minute)
	server.HExpire("long", "a", 20*time.Second)
	server.DB(5).Set("other database", "1")
	server.DB(5).SetTTL("other database", 10*time.Second)
	server.SetTTL("nothing", 10*time.Second)

	in.pass(now, 9*time.Second)
	same(t, "keys after 9 s", server.Keys(), []string{"forever", "long", "short"})
	same(t, "TTL after 9 s", server.TTL("short"), time.Second)
	in.pass(now, 2*time.Second)
	same(t, "keys after 11 s", server.Keys(), []string{"forever", "long"})
	same(t, "keys of the other database", server.DB(5).Keys(), []string{})
	same(t, "TTL of a key that is not there", server.TTL("nothing"), time.Duration(0))
	in.pass(now, 10*time.Second)
	same(t, "fields after 21 s", must[[]string](t)(server.HKeys("long")), []string{"b"})
	in.pass(now, time.Hour)
	same(t, "keys after an hour", server.Keys(), []string{"forever"})
}

// Every key that ever was would otherwise stay in memory.
func TestKeysThatAreGoneAreForgotten(t *testing.T) {
	t.Parallel()
	server := newServer(t)
	in := must[*innards](t)(reach(server))
	server.Set("stays", "1")
	const keys = 5000
	for i := range keys {
		key := fmt.Sprint("log-", i)
		server.HSet(key, "a", "1")
		server.Del(key)
		server.RPush(key+"-list", "1")
		must[string](t)(server.Lpop(key + "-list"))
	}
	v := reflect.ValueOf(server.DB(0)).Elem()
	remembered := func() int { return v.FieldByName("keyVersion").Len() + v.FieldByName("lru").Len() }
	if n := remembered(); n < 2*keys {
		t.Fatalf("only %d keys are remembered: miniredis has changed, and forget may not be needed", n)
	}
	in.forget()
	if n := remembered(); n > 2 {
		t.Errorf("%d keys are remembered, want 2", n)
	}
	same(t, "the key that stays", must[string](t)(server.Get("stays")), "1")
}

func TestChangedMiniredisIsAnError(t *testing.T) {
	t.Parallel()
	var changed struct {
		keys map[string]int
		ttl  map[string]time.Duration
	}
	changed.keys, changed.ttl = nil, nil
	v := reflect.ValueOf(&changed).Elem()
	_, err := field[map[string]string](v, "keys")
	if err == nil || !strings.Contains(err.Error(), "does not fit this version of miniredis") {
		t.Errorf("a field of another type: got %v", err)
	}
	if _, err := field[map[string]string](v, "gone"); err == nil {
		t.Error("a field that is gone: got no error")
	}
	if _, err := field[map[string]int64](v, "ttl"); err == nil {
		t.Error("an element of another named type: got no error")
	}
	if p, err := field[map[string]time.Duration](v, "ttl"); err != nil || p == nil {
		t.Errorf("a field that fits: got %v", err)
	}
}
