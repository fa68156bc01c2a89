package edge

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/uplink"
)

// A child process serves what the environment names, for tests that look at a server from
// outside: until its standard input ends.
const (
	childLive = "EDGE_TEST_LIVE"
	childData = "EDGE_TEST_DATA"
	childRate = "EDGE_TEST_RATE" // bytes/s; empty: no limit
)

func TestMain(m *testing.M) {
	if os.Getenv(childData) != "" {
		if err := serveChild(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func serveChild() error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := segstore.Open(segstore.Config{
		LiveDir: os.Getenv(childLive), DataDir: os.Getenv(childData), LiveLimit: 1 << 30, StorageLimit: 1 << 30,
	}, log)
	if err != nil {
		return err
	}
	cfg := Config{Store: s, Log: log}
	if rate, err := strconv.ParseInt(os.Getenv(childRate), 10, 64); err == nil {
		cfg.Uplink = uplink.New(rate)
	}
	e := New(cfg)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go e.Server(e.Handler()).Serve(l)
	fmt.Printf("listening on %s\n", l.Addr())
	io.Copy(io.Discard, os.Stdin)
	return nil
}

// startChild starts this test binary as a server with a limit of rate bytes/s (0: none), below wrap if
// given, and returns its process, its base URL and what ends it and waits for it.
func startChild(t testing.TB, live, data string, rate int64, wrap ...string) (*os.Process, string, func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(wrap, self)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childLive+"="+live, childData+"="+data)
	if rate > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", childRate, rate))
	}
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() {
		stdin.Close()
		cmd.Wait()
	})
	t.Cleanup(stop)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	return cmd.Process, "http://" + strings.TrimPrefix(strings.TrimSpace(line), "listening on "), stop
}

var sendfileCall = regexp.MustCompile(`sendfile(?:64)?(?:\(| resumed>).*\) += (\d+)`)

// The kernel must copy from file to socket, also what a limit lets through piece by piece: a wrapper
// that hides ReadFrom costs 1.4 to 2.5 times the CPU and no other test would notice (docs/performance.md,
// Serving).
func TestSendfileIsUsed(t *testing.T) {
	t.Parallel()
	for _, rate := range []int64{0, 8 << 20} {
		t.Run(fmt.Sprint(rate), func(t *testing.T) {
			t.Parallel()
			testSendfile(t, rate)
		})
	}
}

func testSendfile(t *testing.T, rate int64) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing: apt-get install strace")
	}
	dir := t.TempDir()
	live, data, trace := filepath.Join(dir, "live"), filepath.Join(dir, "data"), filepath.Join(dir, "trace")
	const size = 6 << 20
	b := content(size)
	func() {
		s, err := segstore.Open(segstore.Config{LiveDir: live, DataDir: data, LiveLimit: 1 << 30, StorageLimit: 1 << 30}, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		put(t, s, "/seg.ts", time.Minute, b)
	}()

	_, base, stop := startChild(t, live, data, rate, "strace", "-f", "-e", "trace=sendfile,sendfile64", "-e", "signal=none", "-o", trace)
	url := base + "/" + string(pub) + "/seg.ts"
	if _, got := do(t, "GET", url); !bytes.Equal(got, b) {
		t.Error("other bytes than were stored")
	}
	if _, got := do(t, "GET", url, "Range", "bytes=1000000-2999999"); !bytes.Equal(got, b[1_000_000:3_000_000]) {
		t.Error("other bytes in the range than were stored")
	}
	stop()
	calls, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	var sent int64
	for _, m := range sendfileCall.FindAllSubmatch(calls, -1) {
		n, _ := strconv.ParseInt(string(m[1]), 10, 64)
		sent += n
	}
	// net/http writes the first 512 bytes of an answer itself.
	if want := int64(size + 2_000_000 - 2*512); sent != want {
		t.Errorf("sendfile sent %d bytes of %d; calls:\n%.2000s", sent, want, calls)
	}
}
