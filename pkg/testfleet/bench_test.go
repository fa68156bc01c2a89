package testfleet

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// BenchmarkSegmentVisible measures, with three boxes and replicas 2, the time from a segment's
// playlist being renamed into place to the segment being in a viewer's playlist, and beside it
// an acknowledged push of as many bytes alone. Reported: p50 and p99 of what comes on top.
func BenchmarkSegmentVisible(b *testing.B) {
	f := Start(b, Options{Boxes: 3})
	e := f.Encoder()
	e.Size = 1 << 20
	push := newPusher(b, f)
	e.Write(2)
	f.shown(e.Segments[1])
	var beyond, alone []time.Duration
	for b.Loop() {
		took := push(e.content())
		e.Write(1)
		start := time.Now()
		last := e.Segments[len(e.Segments)-1]
		mark := []byte(last.Digest().Short())
		for {
			if _, body := f.Get(f.Publisher.URL() + "/live/demo/index.m3u8"); bytes.Contains(body, mark) {
				break
			}
		}
		beyond = append(beyond, time.Since(start)-took)
		alone = append(alone, took)
	}
	report := func(name string, d []time.Duration) {
		slices.Sort(d)
		b.ReportMetric(d[len(d)/2].Seconds()*1e3, "ms-p50-"+name)
		b.ReportMetric(d[len(d)*99/100].Seconds()*1e3, "ms-p99-"+name)
	}
	report("beyond-push", beyond)
	report("push", alone)
}

// newPusher returns a function that pushes bytes to a box and waits for STORED.
func newPusher(b *testing.B, f *Fleet) func(content []byte) time.Duration {
	b.Helper()
	box := f.Boxes[0]
	conn, err := wsconn.Dial(b.Context(), "http://"+box.Link.Addr()+wire.BoxWSPath(box.ID()), wsconn.Dialing{Least: netaddr.Loopback, Files: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(conn.Abort)
	own := wire.Peer{ID: oldPublisher, IP: "127.0.0.1", Type: wire.TypePublisher}
	if err := conn.WriteText(wire.Encode(wire.Publish{Peer: own, Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck}})); err != nil {
		b.Fatal(err)
	}
	if _, err := conn.ReadText(wire.MaxMessage); err != nil {
		b.Fatal(err)
	}
	conn.SetSilence(time.Minute)
	n := 0
	return func(content []byte) time.Duration {
		n++
		h := wire.FileHeader{
			Path: id.Path(fmt.Sprintf("/bench/%d.ts", n)), TTL: time.Minute, RequestID: strconv.Itoa(n),
			Publisher: oldPublisher, Size: int64(len(content)), Digest: id.DigestOf(content),
		}
		start := time.Now()
		if err := conn.WriteFile(b.Context(), h.AppendTo(nil), bytes.NewReader(content), h.Size); err != nil {
			b.Fatal(err)
		}
		if reply, err := conn.ReadText(wire.MaxMessage); err != nil || !bytes.Contains(reply, []byte(wire.CommandStored)) {
			b.Fatalf("%s, %v", reply, err)
		}
		return time.Since(start)
	}
}

const redirectChild = "DANDELION_TEST_REDIRECT_CHILD"

// TestRedirectChild is the server of BenchmarkRedirectBesideNginx, in a process of its own so that
// its CPU can be told from the load's. Without the variable it does nothing.
func TestRedirectChild(t *testing.T) {
	if os.Getenv(redirectChild) == "" {
		return
	}
	debug.SetGCPercent(400) // as run_publisher does
	f := Start(t, Options{Boxes: 3})
	e := f.Encoder()
	e.Seconds, e.Size = 60, 1000 // lives longer than the benchmark
	e.Write(1)
	f.holders(e.Segments[0], 2)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = http.Serve(ln, http.HandlerFunc(bareRedirect)) }()
	fmt.Printf("\nSERVING %s %s %s\n", f.Publisher.Addr(), ln.Addr(), e.Segments[0].Path())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the benchmark ends
}

// bareRedirect is the least that net/http can do: no routing, nothing decided.
func bareRedirect(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h["Location"], h["Content-Length"] = []string{"http://box.example.org/x.ts"}, []string{"0"}
	w.WriteHeader(http.StatusFound)
}

// BenchmarkRedirectBesideNginx sends viewers' requests for a segment to a publisher with three
// boxes, to a bare net/http handler in the same process, and to nginx, which returns 302. It
// reports the CPU per redirect of each, requests per CPU second against both, and the latency.
func BenchmarkRedirectBesideNginx(b *testing.B) {
	child := exec.Command(os.Args[0], "-test.run", "^TestRedirectChild$", "-test.v")
	child.Env = append(os.Environ(), redirectChild+"=1")
	stdin, _ := child.StdinPipe()
	stdout, _ := child.StdoutPipe()
	if err := child.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { stdin.Close(); _ = child.Wait() }()
	var addr, bareAddr, path string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if n, _ := fmt.Sscanf(lines.Text(), "SERVING %s %s %s", &addr, &bareAddr, &path); n == 3 {
			break
		}
	}
	if addr == "" {
		b.Fatal("the child did not start")
	}
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	worker, nginxAddr := startRedirectingNginx(b)

	const conns, each = 50, 400
	request := func(n int) []byte {
		return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: live.example.org\r\nUser-Agent: viewer-%d\r\n\r\n", path, n)
	}
	var ours, bare, theirs time.Duration
	var latency []time.Duration
	total, n := 0, 0
	for b.Loop() {
		before := cpuOf(b, child.Process.Pid)
		latency = append(latency, load(b, addr, conns, each, n, request)...)
		ours += cpuOf(b, child.Process.Pid) - before
		before = cpuOf(b, child.Process.Pid)
		load(b, bareAddr, conns, each, n, request)
		bare += cpuOf(b, child.Process.Pid) - before
		before = cpuOf(b, worker)
		load(b, nginxAddr, conns, each, n, request)
		theirs += cpuOf(b, worker) - before
		total += conns * each
		n += conns * each
	}
	slices.Sort(latency)
	b.ReportMetric(float64(ours.Microseconds())/float64(total), "cpu-µs/redirect")
	b.ReportMetric(float64(theirs.Microseconds())/float64(total), "nginx-cpu-µs/redirect")
	b.ReportMetric(float64(bare.Microseconds())/float64(total), "bare-cpu-µs/redirect")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "redirects-per-cpu/bare")
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "redirects-per-cpu/nginx")
	b.ReportMetric(latency[len(latency)*99/100].Seconds()*1e3, "ms-p99")
}

// load sends each requests on each of conns connections, one after another, and returns how long
// each took.
func load(b *testing.B, addr string, conns, each, first int, request func(int) []byte) []time.Duration {
	b.Helper()
	all := make([][]time.Duration, conns)
	var group sync.WaitGroup
	for i := range conns {
		group.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			r := bufio.NewReader(c)
			for k := range each {
				start := time.Now()
				if _, err := c.Write(request(first + i*each + k)); err != nil {
					b.Error(err)
					return
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != http.StatusFound {
					b.Errorf("%v, %v", resp, err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				all[i] = append(all[i], time.Since(start))
			}
		})
	}
	group.Wait()
	return slices.Concat(all...)
}

func startRedirectingNginx(b *testing.B) (worker int, addr string) {
	b.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Fatal("nginx is not installed: apt-get install nginx")
	}
	dir := b.TempDir()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = ln.Addr().String()
	ln.Close()
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr; events { worker_connections 1024; }
http { access_log off; keepalive_requests 1000000; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
server { listen %[2]s; location / { return 302 http://box.example.org$request_uri; } } }`, dir, addr)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, nginx, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir)
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cancel(); _ = cmd.Wait() })
	deadline := time.Now().Add(Patience)
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return cmd.Process.Pid, addr
		}
		if time.Now().After(deadline) {
			b.Fatalf("nginx does not answer: %s", words.String())
		}
	}
}

// cpuOf returns the CPU time that a process used (proc(5), stat fields 14 and 15 in ticks of 10 ms).
func cpuOf(b *testing.B, pid int) time.Duration {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	fields := strings.Fields(rest)
	var ticks int
	for _, f := range fields[11:13] {
		n, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
