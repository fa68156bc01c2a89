package entrance

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"dandelion/pkg/state"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// The benchmarks measure a server in a process of its own, so that the clients' CPU and memory are
// not its: this test binary, started again with roleVariable set.
const (
	roleVariable  = "DANDELION_TEST_SERVER" // entrance, reader or bare
	redisVariable = "DANDELION_TEST_REDIS"
	dirVariable   = "DANDELION_TEST_DIR"
	// Optional ones.
	listenVariable = "DANDELION_TEST_LISTEN"
	leaseVariable  = "DANDELION_TEST_LEASE"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := serveBenchmark(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// serveBenchmark prints its address, then answers each line on stdin: "cpu" with the nanoseconds
// that it has used, "mem" with the bytes that it holds.
func serveBenchmark(role string) error {
	var addr string
	switch role {
	case "entrance":
		cfg := DefaultConfig()
		cfg.Listen, cfg.DataDir = cmp.Or(os.Getenv(listenVariable), "127.0.0.1:0"), os.Getenv(dirVariable)
		if lease := os.Getenv(leaseVariable); lease != "" {
			if err := cfg.LeaseTTL.UnmarshalText([]byte(lease)); err != nil {
				return err
			}
		}
		e, err := New(context.Background(), cfg, state.Config{URL: os.Getenv(redisVariable)}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		go e.Run(context.Background())
		addr = e.Addr().String()
	default:
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		handler := readerHandler
		if role == "bare" {
			handler = bareHandler
		}
		go http.Serve(listener, http.HandlerFunc(handler))
		addr = listener.Addr().String()
	}
	fmt.Println(addr)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		switch lines.Text() {
		case "cpu":
			var usage syscall.Rusage
			if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
				return err
			}
			fmt.Println(usage.Utime.Nano() + usage.Stime.Nano())
		case "mem":
			for range 3 { // stacks shrink by half in each
				runtime.GC()
			}
			debug.FreeOSMemory()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			fmt.Println(m.HeapAlloc + m.StackInuse)
		}
	}
	return nil
}

// readerHandler is the limit beside reports: a websocket that reads and does nothing else.
func readerHandler(w http.ResponseWriter, r *http.Request) {
	conn, err := wsconn.Accept(w, r, netip.Addr{})
	if err != nil {
		return
	}
	go func() {
		defer conn.Abort()
		reply := []byte("{}")
		for {
			_, message, err := conn.Next()
			if err == nil {
				_, err = io.Copy(io.Discard, message)
			}
			if err == nil {
				err = conn.WriteText(reply)
			}
			if err != nil {
				return
			}
		}
	}()
}

// bareHandler is the limit beside memory: a gorilla connection with small buffers that is read
// by a goroutine of its own.
func bareHandler(w http.ResponseWriter, r *http.Request) {
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 4096, WriteBufferPool: bareWrites}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	go func() {
		defer ws.Close()
		for {
			if _, _, err := ws.ReadMessage(); err != nil {
				return
			}
			if err := ws.WriteMessage(websocket.TextMessage, []byte("{}")); err != nil {
				return
			}
		}
	}()
}

var bareWrites = &sync.Pool{}

// benchServer is such a process.
type benchServer struct {
	b     testing.TB
	addr  string
	stdin io.Writer
	out   *bufio.Scanner
	kill  func() // kill -9, and wait; a second call does nothing
}

// startBenchServer starts a process. variables are name=value, and count more than those that are
// made of role and redisURL.
func startBenchServer(b testing.TB, role, redisURL string, variables ...string) *benchServer {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role, redisVariable+"="+redisURL, dirVariable+"="+b.TempDir())
	cmd.Env = append(cmd.Env, variables...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	kill := sync.OnceFunc(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	b.Cleanup(kill)
	s := &benchServer{b: b, stdin: stdin, out: bufio.NewScanner(stdout), kill: kill}
	s.addr = s.line()
	return s
}

func (s *benchServer) line() string {
	s.b.Helper()
	if !s.out.Scan() {
		s.b.Fatal("the server ended")
	}
	return s.out.Text()
}

func (s *benchServer) ask(what string) float64 {
	s.b.Helper()
	fmt.Fprintln(s.stdin, what)
	v, err := strconv.ParseFloat(s.line(), 64)
	if err != nil {
		s.b.Fatal(err)
	}
	return v
}

// home is where all boxes of a benchmark are: a server that knows their nonces.
type home struct {
	port   string
	nonces sync.Map // by the last part of their path
}

func newHome(b testing.TB) *home {
	h := &home{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nonce, ok := h.nonces.Load(r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
		if !ok {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, nonce.(string))
	}))
	b.Cleanup(server.Close)
	_, h.port, _ = net.SplitHostPort(server.Listener.Addr().String())
	return h
}

func (h *home) learn(reply []byte) {
	var r wire.ExchangeReply
	if err := json.Unmarshal(reply, &r); err == nil && r.Nonce != "" {
		sum := sha256.Sum256([]byte(r.Nonce))
		h.nonces.Store(hex.EncodeToString(sum[:])[:16], r.Nonce)
	}
}

// report is a report of 1.3 KB, as a new box sends it.
func (h *home) report(n, round int) []byte {
	box := newBoxID(n)
	x := wire.Exchange{
		Peer:      wire.Peer{ID: string(box), IP: "0.0.0.0", Port: "7072", Type: wire.TypeBox},
		ConnectWS: "http://0.0.0.0:" + h.port + wire.BoxWSPath(box),
		EdgeURL:   "http://0.0.0.0:" + h.port, Features: wire.Ours(),
		GeoIP: wire.GeoIP{
			IP: "203.0.113.7", Hostname: "host-7.example.net", Country: "DE", City: "Cologne", Region: "North Rhine-Westphalia",
			Org: "AS64500 Example Net", Loc: "50.9333,6.9500",
		},
	}
	s := &x.System
	for i, f := range []*float64{
		&s.CPUMHz, &s.CPUCount, &s.CPUUser, &s.CPUSystem, &s.CPUNice, &s.CPUIdle, &s.CPUIOWait, &s.CPUIRQ, &s.CPUSoftIRQ, &s.Load5, &s.Load15,
		&s.MemTotal, &s.MemAvailable, &s.DiskTotal, &s.DiskAvailable, &s.NetUp, &s.NetDown, &s.NetCapacity,
		&s.StorageTotal, &s.StorageFree, &s.StorageLimit, &s.StorageUsed,
	} {
		*f = float64((n+i*7919)%97) + 0.25
	}
	for _, f := range []*float64{ // what changes from report to report
		&s.CPUUser, &s.CPUSystem, &s.CPUIOWait, &s.CPUSoftIRQ, &s.Load5, &s.MemAvailable, &s.DiskAvailable, &s.NetUp, &s.NetDown, &s.StorageUsed,
	} {
		*f += float64(round) / 7
	}
	s.Load1 = float64(round)
	s.StorageLimit, s.StorageFree, s.NetCapacity, s.CPUIdle = 8e9, 1e10, 1e7, 50 // nothing speaks against it
	report := wire.Encode(&x)
	if pad := 1300 - len(report); pad > 12 {
		report = append(report[:len(report)-1], fmt.Sprintf(`,"NOTE":%q}`, strings.Repeat("x", pad-10))...)
	}
	return report
}

// drive connects so many boxes and has each send rounds reports at the given total rate. The
// connections stay open until the benchmark ends.
func (s *benchServer) drive(h *home, conns []*websocket.Conn, rounds int, perSecond float64) {
	s.b.Helper()
	every := time.Duration(float64(len(conns)) / perSecond * float64(time.Second))
	var wg sync.WaitGroup
	errs := make(chan error, len(conns))
	begin := time.Now()
	for n, ws := range conns {
		wg.Go(func() {
			for round := range rounds {
				due := begin.Add(time.Duration(round)*every + every*time.Duration(n)/time.Duration(len(conns)))
				time.Sleep(time.Until(due))
				if err := ws.WriteMessage(websocket.TextMessage, h.report(n, round)); err != nil {
					errs <- err
					return
				}
				_, reply, err := ws.ReadMessage()
				if err != nil {
					errs <- err
					return
				}
				if round == 0 {
					h.learn(reply)
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		s.b.Fatal(err)
	default:
	}
}

// settle has all boxes report until an entrance has dialled all of them back.
func (s *benchServer) settle(h *home, conns []*websocket.Conn, role string) {
	s.b.Helper()
	for range 10 {
		s.drive(h, conns, 1, float64(len(conns)))
		if role != "entrance" || s.searchable() == len(conns) {
			return
		}
	}
	s.b.Fatalf("%d of %d boxes are searchable", s.searchable(), len(conns))
}

// searchable returns how many boxes can be offered.
func (s *benchServer) searchable() int {
	s.b.Helper()
	resp, err := http.Get("http://" + s.addr + "/api/v1/entrance")
	if err != nil {
		s.b.Fatal(err)
	}
	defer resp.Body.Close()
	var known struct{ Searchable int }
	if err := json.NewDecoder(resp.Body).Decode(&known); err != nil {
		s.b.Fatal(err)
	}
	return known.Searchable
}

func (s *benchServer) connect(n int) []*websocket.Conn {
	s.b.Helper()
	conns := make([]*websocket.Conn, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range conns {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			d := websocket.Dialer{ReadBufferSize: 1024, WriteBufferSize: 2048}
			ws, _, err := d.Dial("ws://"+s.addr+"/dandelion/ws/", nil)
			if err != nil {
				s.b.Error(err)
				return
			}
			conns[i] = ws
		})
	}
	wg.Wait()
	if s.b.Failed() {
		s.b.FailNow()
	}
	s.b.Cleanup(func() {
		for _, ws := range conns {
			ws.Close()
		}
	})
	return conns
}
