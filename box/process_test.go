package box

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// program builds run_box once for all tests.
var program = sync.OnceValues(func() (string, error) {
	name := filepath.Join(buildDir, "run_box")
	out, err := exec.Command("go", "build", "-o", name, "dandelion/box/cmd/run_box").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building run_box: %w\n%s", err, out)
	}
	return name, err
})

// buildDir is removed by TestMain.
var buildDir = filepath.Join(os.TempDir(), fmt.Sprint("dandelion-box-test-", os.Getpid()))

// process is a run_box of its own.
type process struct {
	t     *testing.T
	dir   string // its live and data directories, which survive it
	shell string // what runs before it, such as "ulimit -n 256"
	args  []string

	cmd   *exec.Cmd
	id    id.BoxID
	base  string        // http://127.0.0.1:port
	ended chan struct{} // closed when all that it logs is read
	log   bytes.Buffer  // of the latest start; read it when ended
}

func newProcess(t *testing.T) *process {
	p := &process{t: t, dir: t.TempDir(), shell: "true"}
	t.Cleanup(func() {
		if p.cmd != nil && p.cmd.ProcessState == nil {
			p.kill()
		}
	})
	return p
}

var startLine = regexp.MustCompile(`msg="box starts" id=(box-[0-9a-f]+) .*listen=(\S+)`)

// start starts it and returns when it listens.
func (p *process) start() {
	p.t.Helper()
	binary, err := program()
	if err != nil {
		p.t.Fatal(err)
	}
	p.log.Reset()
	args := append([]string{
		"-c", p.shell + ` && exec "$0" "$@"`, binary, "--listen", "127.0.0.1:0",
		"--data-dir", filepath.Join(p.dir, "data"), "--live-dir", filepath.Join(p.dir, "live"), "--live-limit", "1GB", "--storage-limit", "1GB",
		"--upload-capacity", "1Gbit/s", "--upload-limit", "1Gbit/s",
	}, p.args...)
	p.cmd = exec.Command("sh", args...)
	p.cmd.Dir = p.dir
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	listens := make(chan []string, 1)
	p.ended = make(chan struct{})
	go func() {
		defer close(p.ended)
		for in := bufio.NewScanner(stderr); in.Scan(); {
			p.log.Write(append(in.Bytes(), '\n'))
			if m := startLine.FindStringSubmatch(in.Text()); m != nil {
				listens <- m
			}
		}
	}()
	select {
	case m := <-listens:
		p.id, p.base = id.BoxID(m[1]), "http://"+m[2]
	case <-p.ended:
		p.t.Fatalf("run_box does not start: %s", p.log.String())
	}
}

// wait waits for its end and returns its status; -1: by a signal.
func (p *process) wait() int {
	<-p.ended
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	p.wait()
}

// terminate asks it to stop.
func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
}

// publisher opens a session of a publisher; unlike running.publisher it may fail.
func (p *process) publisher(ctx context.Context) (*wsconn.Conn, error) {
	conn, err := wsconn.Dial(ctx, p.base+wire.BoxWSPath(p.id), wsconn.Dialing{Files: true})
	if err != nil {
		return nil, err
	}
	conn.SetSilence(20 * time.Second)
	err = conn.WriteText(wire.Encode(wire.Publish{
		Peer: wire.Peer{ID: string(pub), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: wire.Ours(),
	}))
	if err == nil {
		_, err = conn.ReadText(wire.MaxMessage)
	}
	if err != nil {
		conn.Abort()
		return nil, err
	}
	return conn, nil
}

func (p *process) mustPublisher() *wsconn.Conn {
	p.t.Helper()
	conn, err := p.publisher(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(conn.Abort)
	return conn
}

func (p *process) url(path id.Path) string { return p.base + "/" + string(pub) + string(path) }

// fetch gets a whole file over a connection of its own.
func (p *process) fetch(ctx context.Context, path id.Path) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url(path), nil)
	if err != nil {
		return nil, nil, err
	}
	req.Close = true
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, body, err
}

func random(seed uint64, size int) []byte {
	b := make([]byte, size)
	var key [32]byte
	key[0], key[1], key[2], key[3] = byte(seed), byte(seed>>8), byte(seed>>16), byte(seed>>24)
	rand.NewChaCha8(key).Read(b)
	return b
}

// slowGet asks for a file over a connection whose buffers hold little of it.
func (p *process) slowGet(path id.Path) (net.Conn, *http.Response) {
	p.t.Helper()
	c, err := dialTCP(p.base)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	c.(*net.TCPConn).SetReadBuffer(64 << 10)
	fmt.Fprintf(c, "GET /%s%s HTTP/1.1\r\nHost: x\r\n\r\n", pub, path)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return c, resp
}

// readFor reads a body of that size evenly for about that time.
func readFor(body io.Reader, size int64, d time.Duration) ([]byte, error) {
	const steps = 100
	began := time.Now()
	var got bytes.Buffer
	for step := time.Duration(1); ; step++ {
		_, err := io.CopyN(&got, body, size/steps+1)
		if err == io.EOF {
			return got.Bytes(), nil
		}
		if err != nil {
			return got.Bytes(), err
		}
		<-time.After(time.Until(began.Add(step * d / steps))) // who was late on a busy machine catches up
	}
}

func dialTCP(base string) (net.Conn, error) {
	return net.Dial("tcp", strings.TrimPrefix(base, "http://"))
}
