// Package redistest starts real Redis servers for tests. It must not know what is kept in them.
package redistest

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
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
	return StartServer(tb, args...).URL()
}

// Server is a redis-server of a test.
type Server struct {
	Port int

	args []string // behind the port's
	dir  string
	kill func()
}

// StartServer is Start for a test that kills its server and starts it again.
func StartServer(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return startServer(tb, nil, args)
}

// startServer starts a server; front goes before all other arguments.
func startServer(tb testing.TB, front, args []string) *Server {
	tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		tb.Fatal("redis-server is not installed: apt-get install redis-server")
	}
	s := &Server{dir: tb.TempDir()}
	tb.Cleanup(func() { s.Kill() })
	var output string
	for range startAttempts {
		s.Port = freePort(tb)
		s.args = slices.Concat(front, []string{
			"--port", fmt.Sprint(s.Port), "--bind", "127.0.0.1", "--daemonize", "no",
			"--save", "", "--appendonly", "no", "--dir", s.dir, "--loglevel", "notice", "--logfile", "",
		}, args)
		if output, err = s.start(path); err == nil {
			return s
		}
	}
	tb.Fatalf("redis-server does not start: %v\n%s", err, output)
	return nil
}

// URL is redis://127.0.0.1:port/0.
func (s *Server) URL() string { return "redis://" + s.Addr() + "/0" }

// Addr is 127.0.0.1:port.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// Client returns a client of this server alone, until the end of the test.
func (s *Server) Client(tb testing.TB) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: s.Addr(), Protocol: 2, DisableIdentity: true})
	tb.Cleanup(func() { client.Close() })
	return client
}

// Kill ends the server as a crash would, and waits for it. A second call does nothing.
func (s *Server) Kill() {
	if s.kill != nil {
		s.kill()
		s.kill = nil
	}
}

// Restart starts a killed server again, on its port and in its directory.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	path, err := exec.LookPath("redis-server")
	if err == nil {
		var output string
		if output, err = s.start(path); err != nil {
			err = fmt.Errorf("%w\n%s", err, output)
		}
	}
	if err != nil {
		tb.Fatalf("redis-server does not start again: %v", err)
	}
}

// option returns the value of an argument that the server was started with.
func (s *Server) option(name string) string { return s.args[slices.Index(s.args, name)+1] }

// await asks the server until ready says so; it says also what there is instead.
func (s *Server) await(tb testing.TB, what string, ready func(*redis.Client) (string, bool)) {
	tb.Helper()
	client := s.Client(tb)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for begin := time.Now(); ; <-tick.C {
		said, ok := ready(client)
		if ok {
			return
		}
		if time.Since(begin) > settled {
			tb.Fatalf("%s is not there after %v: %s", what, settled, said)
		}
	}
}

// start starts the server and returns what it logged when it does not start.
func (s *Server) start(path string) (output string, err error) {
	cmd := exec.Command(path, s.args...)
	pipe, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer w.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		pipe.Close()
		return "", err
	}
	end := func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
	w.Close()
	output, err = untilReady(pipe)
	if err == nil {
		err = ping(s.Port)
	}
	if err != nil {
		end()
		pipe.Close()
		return output, err
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
	s.kill = func() {
		end()
		pipe.Close() // a child of the server's may hold the other end
		<-drained
	}
	return "", nil
}

// untilReady reads the server's log until it says that it takes connections.
func untilReady(log *os.File) (output string, err error) {
	if err := log.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		output += lines.Text() + "\n"
		if strings.Contains(lines.Text(), "Ready to accept connections") || strings.Contains(lines.Text(), "Sentinel ID is") {
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
