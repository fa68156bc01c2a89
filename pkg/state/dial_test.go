package state

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/state/redistest"
)

// answer is an error that the server sent.
type answer string

func (a answer) Error() string { return string(a) }
func (a answer) RedisError()   {}

func TestAwaitReachable(t *testing.T) {
	t.Parallel()
	refusal := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for _, test := range []struct {
		name    string
		ping    func(ctx context.Context, passed time.Duration) error
		cancel  time.Duration // of the context; 0: never
		took    [2]time.Duration
		want    string // the error; empty: none
		wantLog int    // lines
	}{
		{
			name: "at once",
			ping: func(context.Context, time.Duration) error { return nil },
		},
		{
			name: "after 12 s",
			ping: func(_ context.Context, passed time.Duration) error {
				if passed < 12*time.Second {
					return refusal
				}
				return nil
			},
			took:    [2]time.Duration{12 * time.Second, 14 * time.Second},
			wantLog: 1,
		},
		{
			name: "never",
			ping: func(context.Context, time.Duration) error { return refusal },
			took: [2]time.Duration{28 * time.Second, 30 * time.Second},
			want: "Redis at host:1 is not reachable for 30 s (connection refused): start it, or correct redis.url, " +
				"or leave redis.url empty to use the embedded state",
			wantLog: 1,
		},
		{
			name: "silent",
			ping: func(ctx context.Context, _ time.Duration) error {
				ctx, cancel := context.WithTimeout(ctx, dialTimeout)
				defer cancel()
				<-ctx.Done()
				return ctx.Err()
			},
			took: [2]time.Duration{25 * time.Second, 35 * time.Second},
			want: "Redis at host:1 is not reachable for 30 s (no answer): start it, or correct redis.url, " +
				"or leave redis.url empty to use the embedded state",
			wantLog: 1,
		},
		{
			name: "loading, then there",
			ping: func(_ context.Context, passed time.Duration) error {
				if passed < time.Second {
					return answer("LOADING Redis is loading the dataset in memory")
				}
				return nil
			},
			took:    [2]time.Duration{time.Second, 4 * time.Second},
			wantLog: 1,
		},
		{
			name: "wrong password",
			ping: func(context.Context, time.Duration) error {
				return answer("WRONGPASS invalid username-password pair or user is disabled.")
			},
			want: "Redis at host:1 refuses this client (WRONGPASS invalid username-password pair or user is disabled.): " +
				"correct the user, password or database in redis.url",
		},
		{
			name:    "interrupted",
			ping:    func(context.Context, time.Duration) error { return refusal },
			cancel:  3 * time.Second,
			took:    [2]time.Duration{3 * time.Second, 3 * time.Second},
			want:    "gave up waiting for Redis at host:1 (connection refused): context canceled",
			wantLog: 1,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if test.cancel > 0 {
					time.AfterFunc(test.cancel, cancel)
				}
				var log logs
				start := time.Now()
				ping := func(ctx context.Context) error { return test.ping(ctx, time.Since(start)) }
				err := awaitReachable(ctx, "host:1", openPatience, ping, log.logger())
				if got := fmt.Sprint(err); err != nil && got != test.want || err == nil && test.want != "" {
					t.Errorf("got  %v\nwant %v", err, test.want)
				}
				if took := time.Since(start); took < test.took[0] || took > test.took[1] {
					t.Errorf("it took %v, want %v to %v", took, test.took[0], test.took[1])
				}
				if lines := strings.Count(log.String(), "\n"); lines != test.wantLog {
					t.Errorf("%d log lines, want %d:\n%s", lines, test.wantLog, log.String())
				}
			})
		})
	}
}

func TestParseVersion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		info, version string
		ok            bool
	}{
		{"# Server\r\nredis_version:7.0.15\r\nredis_mode:standalone\r\n", "7.0.15", true},
		{"redis_version:6.2.0\r\n", "6.2.0", true},
		{"redis_version:6.0.16\r\n", "6.0.16", false},
		{"redis_version:5.0.14\r\n", "5.0.14", false},
		{"redis_version:10.1\r\n", "10.1", true},
		{"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.0.1\r\n", "valkey 8.0.1", true},
		{"redis_version:df-1.2\r\n", "df-1.2", true},
		{"", "unknown", true},
	} {
		if version, ok := parseVersion(test.info); version != test.version || ok != test.ok {
			t.Errorf("%q: got %q %v, want %q %v", test.info, version, ok, test.version, test.ok)
		}
	}
}

func TestPassword(t *testing.T) {
	t.Parallel()
	const password = "s3cret-pass"
	url := redistest.Start(t, "--requirepass", password)
	withPassword := func(p string) string { return strings.Replace(url, "redis://", "redis://:"+p+"@", 1) }

	var log logs
	s, err := Open(t.Context(), Config{URL: withPassword(password)}, "", log.logger())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Set(t.Context(), "a", 1, 0).Err(), s.Close()); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]string{"wrong": withPassword("not-the-" + password), "none": url} {
		start := time.Now()
		_, err := Open(t.Context(), Config{URL: bad}, "", log.logger())
		if err == nil || !strings.Contains(err.Error(), "refuses this client") {
			t.Errorf("%s password: got %v, want that Redis refuses this client", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s password: the error is more than a line, or has the password: %v", name, err)
		}
		if took := time.Since(start); took > openPatience/2 {
			t.Errorf("%s password: it took %v to find out", name, took)
		}
	}
	if strings.Contains(log.String(), password) {
		t.Errorf("the password is in the log:\n%s", log.String())
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	t.Run("answers", func(t *testing.T) {
		socket := t.TempDir() + "/redis.sock"
		redistest.Start(t, "--unixsocket", socket)
		s := open(t, Config{URL: "unix://" + socket}, "")
		if err := s.Ping(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("is missing", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := Open(ctx, Config{URL: "unix:///nowhere/redis.sock"}, "", slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "Redis at /nowhere/redis.sock (no such file or directory)") {
			t.Errorf("got %v, want one that names the socket and the cause", err)
		}
	})
}

// The client must give up on a server that takes connections and says nothing.
func TestSilentServer(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, where, err := newClient(Config{URL: "redis://:s3cret-pass@" + listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if where != listener.Addr().String() {
		t.Errorf("it is called %q in messages, want %q", where, listener.Addr())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := client.Ping(ctx).Err(); err == nil || cause(err) != "no answer" {
		t.Errorf("got %v, want no answer", err)
	}
	if took := time.Since(start); took > ioTimeout {
		t.Errorf("the deadline of 100 ms took %v", took)
	}
}

func TestCommandsAreNotSentTwice(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conns := make(chan struct{}, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns <- struct{}{}
			conn.Close()
		}
	}()
	client, _, err := newClient(Config{URL: "redis://" + listener.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Incr(t.Context(), "a").Err(); err == nil || errors.Is(err, redis.Nil) {
		t.Errorf("got %v, want a network error", err)
	}
	if n := len(conns); n != 1 {
		t.Errorf("%d connections for one command, want 1", n)
	}
}
