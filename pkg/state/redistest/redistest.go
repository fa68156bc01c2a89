// Package redistest starts real Redis servers for tests. It must not know what is kept in them.
package redistest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// startAttempts is how often another port is tried: the one found free may be taken before
// redis-server binds it.
const startAttempts = 5

// Start starts a redis-server on a free port of 127.0.0.1 that keeps nothing on disk, waits until
// it answers PING, and returns its URL (redis://127.0.0.1:port/0). The server is killed when
// the test ends. A machine without redis-server fails the test. args go behind the command's own.
func Start(tb testing.TB, args ...string) (url string) {
	tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		tb.Fatal("redis-server is not installed: apt-get install redis-server")
	}
	var output string
	for range startAttempts {
		var port int
		port, output, err = start(tb, path, args)
		if err == nil {
			return fmt.Sprintf("redis://127.0.0.1:%d/0", port)
		}
	}
	tb.Fatalf("redis-server does not start: %v\n%s", err, output)
	return ""
}

func start(tb testing.TB, path string, args []string) (port int, output string, err error) {
	port = freePort(tb)
	args = append([]string{
		"--port", fmt.Sprint(port), "--bind", "127.0.0.1", "--daemonize", "no",
		"--save", "", "--appendonly", "no", "--dir", tb.TempDir(), "--loglevel", "notice", "--logfile", "",
	}, args...)
	cmd := exec.Command(path, args...)
	pipe, w, err := os.Pipe()
	if err != nil {
		return 0, "", err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		pipe.Close()
		return 0, "", err
	}
	kill := func() {
		cmd.Process.Kill()
		cmd.Wait()
		pipe.Close()
	}
	w.Close()
	output, err = untilReady(pipe)
	if err == nil {
		err = ping(port)
	}
	if err != nil {
		kill()
		return 0, output, err
	}
	drained := make(chan struct{})
	go func() { // a full pipe would stop the server
		defer close(drained)
		var rest [4096]byte
		for {
			if _, err := pipe.Read(rest[:]); err != nil {
				return
			}
		}
	}()
	tb.Cleanup(func() {
		kill()
		<-drained
	})
	return port, "", nil
}

// untilReady reads the server's log until it says that it takes connections.
func untilReady(log *os.File) (output string, err error) {
	if err := log.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		output += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "Ready to accept connections") {
			return output, log.SetReadDeadline(time.Time{})
		}
	}
	if err := lines.Err(); err != nil {
		return output, err
	}
	return output, fmt.Errorf("it ended")
}

func ping(port int) error {
	client := redis.NewClient(&redis.Options{Addr: fmt.Sprintf("127.0.0.1:%d", port)})
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := client.Ping(ctx).Err()
	if err != nil && strings.HasPrefix(err.Error(), "NOAUTH") {
		return nil // started with a password: it answers
	}
	return err
}

func freePort(tb testing.TB) int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
