//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// internet joins places, each a network namespace of its own with one line to all others. It is
// the router in between: packets come from one namespace's tunnel, wait as long as both lines
// delay them, and leave by the other's. Many small kernels know namespaces and tunnels, and not
// the qdisc netem that would delay and lose packets otherwise; and lines that live in the test
// leave nothing behind when it is killed: a namespace goes with the last process and descriptor
// that know it.
type internet struct {
	mu     sync.Mutex
	lines  map[[3]byte]*line // by the first three bytes of its addresses
	pipes  map[[2]*line]chan packet
	closed chan struct{}
	group  sync.WaitGroup
}

// place is a host: where processes run and from where connections are dialled. The zero namespace
// is the test's own, and the place then only an address of the loopback interface.
type place struct {
	ip        string
	namespace *os.File
	line      *line // nil without a namespace
}

// line is what a household has. Its fields may be changed while packets travel.
type line struct {
	tun   *os.File
	delay time.Duration // each way

	mu       sync.Mutex
	random   *rand.Rand
	loss     float64 // share of packets, each way
	rate     float64 // bits/s each way; 0: no limit
	cut      bool    // nothing passes, and nobody is told
	up, down time.Time
	passed   [2]int64 // bytes up and down
}

type packet struct {
	due  time.Time
	data []byte
}

const (
	packetSize = 1500
	lineQueue  = 400 * time.Millisecond // packets that would wait longer for a slow line are dropped
	pipeQueue  = 4096                   // packets under way from one line to another
)

// newInternet returns an error where this machine, or this user, has no namespaces.
func newInternet(t *testing.T) (*internet, error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("ip is not installed: sudo apt-get install iproute2")
	}
	n := &internet{lines: map[[3]byte]*line{}, pipes: map[[2]*line]chan packet{}, closed: make(chan struct{})}
	t.Cleanup(n.close)
	return n, nil
}

// join adds the host 10.77.<third>.2. delay, loss and rate (bits/s, 0: no limit) are of each way;
// the line's luck follows from seed.
func (n *internet) join(third byte, delay time.Duration, loss, rate float64, seed uint64) (*place, error) {
	return n.joinAt([3]byte{10, 77, third}, delay, loss, rate, seed)
}

// joinAt is join for a host whose address begins so.
func (n *internet) joinAt(key [3]byte, delay time.Duration, loss, rate float64, seed uint64) (*place, error) {
	p := &place{ip: fmt.Sprintf("%d.%d.%d.2", key[0], key[1], key[2])}
	p.line = &line{delay: delay, loss: loss, rate: rate, random: rand.New(rand.NewPCG(seed, uint64(key[2])))}
	var err error
	returningHome(func() { err = p.unshare() })
	if err != nil {
		return nil, fmt.Errorf("a network namespace: %w", err)
	}
	n.mu.Lock()
	n.lines[key] = p.line
	n.mu.Unlock()
	n.group.Go(func() { n.route(p.line) })
	return p, nil
}

// unshare makes the namespace with its tunnel, and leaves the calling thread in it.
func (p *place) unshare() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if p.namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq("line")
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("a tunnel: %w", err)
	}
	p.line.tun = os.NewFile(uintptr(fd), "tun")
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(fmt.Sprintf("link set lo up\naddr add %s/24 dev line\n"+
		"link set line mtu %d txqueuelen 2000 up\nroute add default dev line\n", p.ip, packetSize))
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, out)
	}
	return nil
}

func (n *internet) close() {
	close(n.closed)
	n.mu.Lock()
	for _, l := range n.lines {
		l.tun.Close()
	}
	n.mu.Unlock()
	n.group.Wait()
}

// route takes what a place sends and hands each packet to the pipe that leads to its destination.
func (n *internet) route(from *line) {
	buffer := make([]byte, 1<<16)
	for {
		size, err := from.tun.Read(buffer)
		if err != nil {
			return // closed
		}
		if size < 20 || buffer[0]>>4 != 4 {
			continue // IPv6 asks for its routers; nobody here answers
		}
		to, pipe := n.pipe(from, [3]byte(buffer[16:19]))
		if to == nil {
			continue
		}
		due, ok := from.pass(time.Now(), 0, size)
		if !ok {
			continue
		}
		select {
		case pipe <- packet{due.Add(from.delay + to.delay), append([]byte(nil), buffer[:size]...)}:
		default:
		}
	}
}

// pipe returns the line that an address is at, and what carries packets there in order.
func (n *internet) pipe(from *line, key [3]byte) (*line, chan packet) {
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.lines[key]
	if to == nil || to == from {
		return nil, nil
	}
	pipe := n.pipes[[2]*line{from, to}]
	if pipe == nil {
		pipe = make(chan packet, pipeQueue)
		n.pipes[[2]*line{from, to}] = pipe
		n.group.Go(func() { n.carry(pipe, to) })
	}
	return to, pipe
}

// carry takes packets to the line where they go, when they are there: one that waits for a slow line must not
// keep that line from those who come sooner.
func (n *internet) carry(pipe chan packet, to *line) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var p packet
		select {
		case p = <-pipe:
		case <-n.closed:
			return
		}
		if !n.await(timer, time.Until(p.due)) {
			return
		}
		through, ok := to.pass(time.Now(), 1, len(p.data))
		if !ok {
			continue
		}
		if wait := time.Until(through); wait > time.Millisecond { // for less no timer is set: the line keeps its rate
			if !n.await(timer, wait) {
				return
			}
		}
		if !to.isCut() {
			_, _ = to.tun.Write(p.data)
		}
	}
}

// await waits, and returns false when the internet is closed meanwhile.
func (n *internet) await(timer *time.Timer, wait time.Duration) bool {
	if wait <= 0 {
		return true
	}
	timer.Reset(wait)
	select {
	case <-timer.C:
		return true
	case <-n.closed:
		return false
	}
}

// pass is one packet's way through the line, up (0) or down (1): when it is through, or false
// when it is lost.
func (l *line) pass(now time.Time, way, size int) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut || l.random.Float64() < l.loss {
		return now, false
	}
	free := &l.up
	if way == 1 {
		free = &l.down
	}
	if l.rate > 0 {
		if free.Before(now) {
			*free = now
		}
		if free.Sub(now) > lineQueue {
			return now, false
		}
		*free = free.Add(time.Duration(float64(size*8) / l.rate * float64(time.Second)))
		now = *free
	}
	l.passed[way] += int64(size)
	return now, true
}

func (l *line) isCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

func (l *line) setCut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
}

// setRate returns how many bytes had passed when the rate changed.
func (l *line) setRate(rate float64) (passed [2]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.up, l.down = rate, time.Time{}, time.Time{}
	return l.passed
}

// anyPort is what a daemon listens on at first. In a namespace that includes the place's own
// loopback interface, where it answers what only its own machine may ask.
func (p *place) anyPort() string {
	switch {
	case p == nil:
		return "127.0.0.1:0"
	case p.namespace == nil:
		return p.ip + ":0"
	}
	return "0.0.0.0:0"
}

// reachedAt is where others reach what listens there.
func (p *place) reachedAt(listen string) string {
	if p == nil {
		return listen
	}
	_, port, _ := net.SplitHostPort(listen)
	return net.JoinHostPort(p.ip, port)
}

// ownURL is where programs of the same machine reach what others reach at addr.
func (p *place) ownURL(addr string) string {
	if p.namespace == nil {
		return "http://" + addr
	}
	_, port, _ := net.SplitHostPort(addr)
	return "http://127.0.0.1:" + port
}

// enter calls f in the place: processes that it starts and sockets that it opens belong there.
func (p *place) enter(f func()) {
	if p == nil || p.namespace == nil {
		f()
		return
	}
	returningHome(func() {
		if err := unix.Setns(int(p.namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("entering a namespace: %v", err))
		}
		f()
	})
}

// returningHome calls f, which may leave the network namespace, and returns there. The thread must live on: with
// one that ends, the kernel kills all processes that were ever started from it (Pdeathsig in begin).
func returningHome(f func()) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		panic(err) // no /proc: nothing of this would have worked
	}
	defer home.Close()
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(fmt.Sprintf("returning from a namespace: %v", err))
		}
		runtime.UnlockOSThread()
	}()
	f()
}

func (p *place) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	p.enter(func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
	return conn, err
}

// client asks from the place, with a connection for each request, and follows no redirect.
func (p *place) client(limit time.Duration) *http.Client {
	return &http.Client{
		Timeout:       limit,
		Transport:     &http.Transport{DialContext: p.dial, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
