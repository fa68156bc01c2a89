package edge

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
)

// BenchmarkServeBesideNginx serves segments from this package and from nginx, in turns, and
// reports the CPU of both server processes per GB, and their ratio (docs/performance.md: at most 1.1 at
// 50 connections, 1.3 at 500). Both use sendfile and both account for each delivery: nginx in its
// access log; without tcp_nopush, which cost it more. Connections are kept, as players keep them.
// One iteration is about 0.5 to 1 GB from each. A third server has a limit of upload far above what it
// can send: what the limit itself costs.
func BenchmarkServeBesideNginx(b *testing.B) {
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Fatal("nginx is missing: apt-get install nginx-light")
	}
	dir := shortDir(b)
	live, data := filepath.Join(dir, "live"), filepath.Join(dir, "data")
	live2, data2 := filepath.Join(dir, "live2"), filepath.Join(dir, "data2")
	paths := make(map[int]string)
	fill := func(live, data string) {
		s, err := segstore.Open(segstore.Config{LiveDir: live, DataDir: data, LiveLimit: 1 << 30, StorageLimit: 1 << 30}, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		for _, mb := range []int{1, 6} {
			body := content(mb << 20)
			p := "/live/demo/720p/" + id.DigestOf(body).Short() + "/seg-0.ts"
			put(b, s, p, segstore.LiveTTL, body)
			paths[mb] = "/" + string(pub) + p
		}
	}
	fill(live, data)
	fill(live2, data2)
	ours, oursURL, _ := startChild(b, live, data, 0)
	limited, limitedURL, _ := startChild(b, live2, data2, 10<<30)
	worker, nginxURL := startNginx(b, nginx, dir, live)

	for _, bb := range []struct{ mb, conns, requests int }{{1, 50, 500}, {6, 50, 100}, {1, 500, 1000}} {
		b.Run(fmt.Sprintf("size=%dMB/conns=%d", bb.mb, bb.conns), func(b *testing.B) {
			size := bb.mb << 20
			toOurs, toLimited, toNginx := dial(b, oursURL, bb.conns), dial(b, limitedURL, bb.conns), dial(b, nginxURL, bb.conns)
			load := func(conns []net.Conn) { fetch(b, conns, paths[bb.mb], bb.requests, size) }
			load(toOurs)
			load(toLimited)
			load(toNginx)
			var oursCPU, limitedCPU, nginxCPU time.Duration
			var gb float64
			for b.Loop() {
				ours0, limited0, nginx0 := cpuOf(b, ours.Pid), cpuOf(b, limited.Pid), cpuOf(b, worker)
				load(toOurs)
				load(toLimited)
				load(toNginx)
				limitedCPU += cpuOf(b, limited.Pid) - limited0
				oursCPU += cpuOf(b, ours.Pid) - ours0
				nginxCPU += cpuOf(b, worker) - nginx0
				gb += float64(bb.requests) * float64(size) / 1e9
			}
			b.ReportMetric(oursCPU.Seconds()/gb, "cpu-s/GB")
			b.ReportMetric(nginxCPU.Seconds()/gb, "nginx-cpu-s/GB")
			b.ReportMetric(limitedCPU.Seconds()/gb, "limited-cpu-s/GB")
			b.ReportMetric(oursCPU.Seconds()/nginxCPU.Seconds(), "cpu/nginx")
		})
	}
}

// shortDir is a directory whose contents every user may read, as nginx's worker does.
func shortDir(b *testing.B) string {
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		b.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startNginx starts nginx with one worker on a free port and returns the worker's pid.
func startNginx(b *testing.B, nginx, dir, root string) (worker int, base string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	conf := filepath.Join(dir, "nginx.conf")
	os.WriteFile(conf, fmt.Appendf(nil, `
daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/error.log;
events { worker_connections 2048; }
http {
  access_log %[1]s/access.log; sendfile on; keepalive_requests 1000000;
  client_body_temp_path %[1]s/t1; proxy_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
  server { listen %[2]s; root %[3]s; }
}`, dir, addr, root), 0o644)
	cmd := exec.Command(nginx, "-p", dir, "-c", conf, "-e", filepath.Join(dir, "error.log"))
	cmd.Stderr = b.Output()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	for range 2000 {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if pids := strings.Fields(string(children)); len(pids) > 0 {
			if c, err := net.Dial("tcp", addr); err == nil {
				c.Close()
				worker, _ = strconv.Atoi(pids[0])
				return worker, "http://" + addr
			}
		}
		time.Sleep(5 * time.Millisecond) // another program gives nothing to wait on
	}
	log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
	b.Fatalf("nginx did not start: %s", log)
	return 0, ""
}

func dial(b *testing.B, base string, n int) []net.Conn {
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		conns[i] = c
	}
	return conns
}

// fetch asks n times over all connections at once, and only reads and drops what comes.
func fetch(b *testing.B, conns []net.Conn, path string, n, size int) {
	request := []byte("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n")
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() {
			buf := make([]byte, 64<<10)
			for left.Add(-1) >= 0 {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if err := drain(c, buf, size); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// drain reads one answer with a body of size bytes.
func drain(c net.Conn, buf []byte, size int) error {
	n := 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return err
		}
		n += m
		if head := strings.Index(string(buf[:n]), "\r\n\r\n"); head >= 0 {
			if !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200 ") {
				return fmt.Errorf("answer %.100q", buf[:n])
			}
			_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{io.LimitReader(c, int64(size-(n-head-4)))}, buf)
			return err
		}
	}
}

// cpuOf is the user and system time of a process so far.
func cpuOf(b *testing.B, pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	user, _ := strconv.ParseInt(fields[11], 10, 64)
	system, _ := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on every Linux port
}
