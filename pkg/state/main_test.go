package state

import (
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"dandelion/pkg/state/redistest"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		writeAndAcknowledge(dir)
		return
	}
	quiet()
	goleak.VerifyTestMain(m)
}

// logs keeps what a logger was told, for tests that ask.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// open opens cfg for a test, below dir if it is embedded, and closes it at the end.
func open(tb testing.TB, cfg Config, dir string) *State {
	tb.Helper()
	s, err := Open(tb.Context(), cfg, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Errorf("Close: %v", err)
		}
	})
	return s
}

// onBoth runs f on the embedded state and on a real redis-server.
func onBoth(t *testing.T, f func(t *testing.T, s *State)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		f(t, open(t, Default(), t.TempDir()))
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		f(t, open(t, Config{URL: redistest.Start(t)}, ""))
	})
}
