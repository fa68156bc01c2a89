package entrance

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"testing"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
)

// onBoth runs a test on the embedded state and on a real Redis.
func onBoth(t *testing.T, f func(t *testing.T, redis state.Config)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		f(t, embedded)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		f(t, state.Config{URL: redistest.Start(t)})
	})
}

func TestWhatIsInRedis(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, redisConfig state.Config) {
		e := start(t, redisConfig, func(cfg *Config) {
			cfg.PublicURL = "http://192.0.2.1:7070"
			cfg.OtherURLs = []string{"http://192.0.2.2:7070/dandelion/ws/", "http://192.0.2.1:7070/dandelion/ws/"}
		})
		k := keys.Entrance(e.ID())
		ctx := t.Context()
		b := newBox(t, 1)
		p := e.connect(b)
		e.offered(b, true)
		eventually(t, func() string {
			now, _ := e.state.Now(ctx)
			score, err := e.state.ZScore(ctx, k.BoxSet(), string(b.id)).Result()
			left := score - float64(now.UnixMilli())/1000
			if err != nil || left < 10 || left > 20 {
				return fmt.Sprintf("BOX_SET: the lease ends in %v s, %v", left, err)
			}
			hash, err := e.state.HGetAll(ctx, k.Exchange(b.id)).Result()
			if err != nil || hash["CPU-IDLE"] != "90" || hash["CONNECT_WS"] != b.server.URL+wire.BoxWSPath(b.id) || hash["REACHABLE"] != "yes" {
				return fmt.Sprintf("EXCHANGE: %v, %v", hash, err)
			}
			own, err := e.state.HGetAll(ctx, k.OwnInfo()).Result()
			if err != nil || own["ID"] != string(e.ID()) || own["URL"] != "http://192.0.2.1:7070/dandelion/ws/" || own["IP"] != "192.0.2.1" || own["PORT"] != "7070" {
				return fmt.Sprintf("OWN_INFO: %v, %v", own, err)
			}
			urls, err := e.state.SMembers(ctx, k.EntranceURLs()).Result()
			if err != nil || !slices.Equal(urls, []string{"http://192.0.2.2:7070/dandelion/ws/"}) {
				return fmt.Sprintf("ENTRANCE_URLS: %v, %v", urls, err)
			}
			return ""
		})

		// Fields that a report does not have any more go.
		p.ask(b.report(func(m map[string]any) { delete(m, "CPU-IDLE") }))
		eventually(t, func() string {
			if idle, err := e.state.HGet(ctx, k.Exchange(b.id), "CPU-IDLE").Result(); err != redis.Nil {
				return fmt.Sprintf("CPU-IDLE: %q %v", idle, err)
			}
			return ""
		})

		p.ws.Close()
		eventually(t, func() string {
			if score, err := e.state.ZScore(ctx, k.BoxSet(), string(b.id)).Result(); err != redis.Nil {
				return fmt.Sprintf("BOX_SET after the end: %v %v", score, err)
			}
			return ""
		})
		eventually(t, func() string {
			if n, err := e.state.Exists(ctx, k.Exchange(b.id)).Result(); n != 0 || err != nil {
				return fmt.Sprintf("the hash is still there: %d %v", n, err)
			}
			return ""
		})
	})
}

func TestEntranceURLsChangeAtRunTime(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, redisConfig state.Config) {
		e := start(t, redisConfig, func(cfg *Config) { cfg.OtherURLs = []string{"http://192.0.2.2:7070"} })
		b := newBox(t, 1)
		p := e.connect(b)
		own, key := e.base+"/dandelion/ws/", keys.Entrance(e.ID()).EntranceURLs()
		told := func(want ...any) {
			t.Helper()
			eventually(t, func() string {
				inExchange := p.ask(b.report(nil))["ENTRANCE_URLS"].([]any)
				inSearch := e.dialIn(t).ask(searchMessage(""))["ENTRANCE_URLS"].([]any)
				if !slices.Equal(inExchange, want) || !slices.Equal(inSearch, want) {
					return fmt.Sprintf("EXCHANGE %v, SEARCH %v, want %v", inExchange, inSearch, want)
				}
				return ""
			})
		}
		ctx := t.Context()
		told(own, "http://192.0.2.2:7070/dandelion/ws/")
		eventually(t, func() string {
			if n := e.state.SCard(ctx, key).Val(); n != 1 {
				return "not in Redis yet"
			}
			return ""
		})
		e.state.SAdd(ctx, key, "http://192.0.2.3:7070/dandelion/ws/", "nonsense", own)
		told(own, "http://192.0.2.2:7070/dandelion/ws/", "http://192.0.2.3:7070/dandelion/ws/")
		e.state.SRem(ctx, key, "http://192.0.2.2:7070/dandelion/ws/")
		told(own, "http://192.0.2.3:7070/dandelion/ws/")
	})
}

func TestTwoProcessesAreOneEntrance(t *testing.T) {
	t.Parallel()
	redisConfig := state.Config{URL: redistest.Start(t)}
	one := start(t, redisConfig, nil)
	two := start(t, redisConfig, one.sibling())
	if one.ID() != two.ID() {
		t.Fatalf("%s and %s", one.ID(), two.ID())
	}
	b := newBox(t, 1)
	p := one.connect(b)
	p.alive()
	one.offered(b, true)
	two.offered(b, true)
	if got := two.api("/api/v1/boxes/" + string(b.id)); got["other_process"] != true || got["reachable"] != "yes" || got["session"] != "persistent" {
		t.Errorf("the other process knows %v", got)
	}

	// It moves to the other process before the first one knows that the connection is dead.
	q := two.connect(b)
	q.alive()
	two.offered(b, true)
	eventually(t, func() string {
		if one.registry.Unwritten()+two.registry.Unwritten() > 0 {
			return "not written yet"
		}
		return ""
	})
	p.ws.Close()
	eventually(t, func() string {
		if got := one.api("/api/v1/boxes/" + string(b.id)); got["searchable"] != true || got["other_process"] != true {
			return fmt.Sprint(got)
		}
		return ""
	})
	if _, offered := two.search()[string(b.id)]; !offered {
		t.Error("the first process ended a lease that the second had renewed")
	}

	q.ws.UnderlyingConn().Close()
	two.offered(b, false)
	one.offered(b, false)
}

func TestOldBoxVisitsTwoProcesses(t *testing.T) {
	t.Parallel()
	redisConfig := state.Config{URL: redistest.Start(t)}
	one := start(t, redisConfig, nil)
	two := start(t, redisConfig, one.sibling())
	b := newBox(t, 1)
	for i, e := range []*running{one, two, one, two} {
		if reply := e.dialOld(upgrade11).ask(b.oldReport(func(m map[string]any) { m["LOADAVG-1"] = fmt.Sprint(i) })); reply["MESSAGE"] != "ACCEPTED" {
			t.Fatal(reply)
		}
		for _, seen := range []*running{one, two} {
			eventually(t, func() string {
				entry, _ := seen.search()[string(b.id)].(map[string]any)
				if entry["LOADAVG-1"] != fmt.Sprint(i) {
					return fmt.Sprintf("report %d: %v", i, entry)
				}
				return ""
			})
		}
	}
}

func TestBoxesAreKnownAfterARestart(t *testing.T) {
	t.Parallel()
	redisConfig := state.Config{URL: redistest.Start(t)}
	e := start(t, redisConfig, nil)
	b := newBox(t, 1)
	p := e.connect(b)
	e.offered(b, true)
	stopped := make(chan struct{})
	go func() {
		e.stop()
		close(stopped)
	}()
	if bye := p.receive(); bye["COMMAND"] != "GOODBYE" || bye["REASON"] == "" {
		t.Errorf("at the end the box is told %v", bye)
	}
	p.closed()
	<-stopped
	again := start(t, redisConfig, e.sibling())
	again.offered(b, true)
}

// redisServer is a real Redis that a test stops and starts.
type redisServer struct {
	t    *testing.T
	port string
	cmd  *exec.Cmd
}

func newRedisServer(t *testing.T) *redisServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	s := &redisServer{t: t, port: port}
	t.Cleanup(s.stop)
	s.start()
	return s
}

func (s *redisServer) config() state.Config {
	return state.Config{URL: "redis://127.0.0.1:" + s.port + "/0"}
}

func (s *redisServer) start() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", "--port", s.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.t.TempDir())
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("%v: apt-get install redis-server", err)
	}
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:" + s.port})
	defer client.Close()
	eventually(s.t, func() string {
		if err := client.Ping(context.Background()).Err(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// stop loses everything: this Redis keeps nothing on disk.
func (s *redisServer) stop() {
	if s.cmd != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		s.cmd = nil
	}
}

// TestRedisGoesAndComesBackEmpty: without Redis the entrance goes on; when it is back, everything
// is in it again with the next report.
func TestRedisGoesAndComesBackEmpty(t *testing.T) {
	t.Parallel()
	server := newRedisServer(t)
	e := start(t, server.config(), func(cfg *Config) { cfg.OtherURLs = []string{"http://192.0.2.2:7070"} })
	b, c, d := newBox(t, 1), newBox(t, 2), newBox(t, 3)
	pb := e.connect(b)
	pc := e.connect(c)
	e.offered(b, true)
	e.offered(c, true)

	server.stop()
	eventually(t, func() string {
		if got := e.api("/api/v1/entrance"); got["redis_answers"] != false {
			return "the entrance believes that Redis answers"
		}
		return ""
	})
	resp, err := http.Get(e.base + "/debug/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("ready without Redis: %s", resp.Status)
	}
	b.reportOn(pb)
	e.connect(d)
	e.offered(d, true)
	pc.ws.Close()
	e.offered(c, false)

	server.start()
	k := keys.Entrance(e.ID())
	eventually(t, func() string {
		b.reportOn(pb)
		set, err := e.state.ZRange(t.Context(), k.BoxSet(), 0, -1).Result()
		hashes := e.state.Exists(t.Context(), k.Exchange(b.id)).Val() + e.state.Exists(t.Context(), k.Exchange(d.id)).Val()
		urls := e.state.SMembers(t.Context(), k.EntranceURLs()).Val()
		if len(set) != 2 || slices.Contains(set, string(c.id)) || hashes != 2 || len(urls) != 1 {
			return fmt.Sprintf("BOX_SET %v, %d hashes, ENTRANCE_URLS %v, %v", set, hashes, urls, err)
		}
		return ""
	})
	eventually(t, func() string {
		if got := e.api("/api/v1/entrance"); got["unwritten"] != 0.0 || got["boxes"] != 2.0 || got["redis_answers"] != true {
			return fmt.Sprint(got)
		}
		return ""
	})
}
