// Package capacity learns what the household's line can send, from deliveries and relays to other
// networks. It owns the samples and decides which transfers are worth one. It must not know what is
// sent, nor what limit is made of the outcome.
package capacity

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"dandelion/pkg/netaddr"
)

const (
	// MinBytes is how much of a transfer must have arrived for a sample: less says more of the
	// start of a connection than of the line.
	MinBytes = 128 << 10
	// trial is how much of one transfer may go ahead of the limit.
	trial = 2 << 20
	// trialsEvery and laterEvery are the times between such transfers, until there is an estimate
	// and from then on.
	trialsEvery = 10 * time.Second
	laterEvery  = 10 * time.Minute
	// The kernel takes more at once than the line carries soon: a transfer that has ended is looked
	// at every settleEvery until all of it arrived, for settleWithin at most.
	settleEvery  = 50 * time.Millisecond
	settleWithin = 10 * time.Second
)

// Config is what a Line needs.
type Config struct {
	// Tells reports whether a transfer between these addresses goes through the line. nil:
	// netaddr.CrossesLine.
	Tells func(local, peer netip.Addr) bool
	// Trials lets a transfer now and then go ahead of the limit, one at a time. Under a limit that
	// is made of the estimate, no delivery could ever show that the line carries more.
	Trials bool
	// Changed is called with the estimate, in bytes/s, when it is another one. It must not block.
	Changed func(rate int64)
}

// Line learns the capacity of the line. Its methods may be called concurrently; nil is one that
// learns nothing.
type Line struct {
	cfg Config

	mu       sync.Mutex
	estimate estimate
	trying   bool      // a transfer goes ahead of the limit
	tried    time.Time // when the last one began
}

// New returns a Line without samples.
func New(cfg Config) *Line {
	if cfg.Tells == nil {
		cfg.Tells = netaddr.CrossesLine
	}
	if cfg.Changed == nil {
		cfg.Changed = func(int64) {}
	}
	return &Line{cfg: cfg}
}

// Capacity returns what the line can send in bytes/s; learned is false while that is Default, because
// too few transfers were measured.
func (l *Line) Capacity() (rate int64, learned bool) {
	if l == nil {
		return Default, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.estimate.capacity()
}

// Transfer is one delivery or relay, which may become a sample. Its methods are for one goroutine,
// which does not use it after End; nil is one that does not.
type Transfer struct {
	l      *Line
	conn   *net.TCPConn
	size   int64
	acked  uint64 // bytes that had arrived on the connection when it began
	before uint64 // delivery rate that it showed then
	ahead  int64  // bytes that may still go ahead of the limit
	trial  bool
}

// Begin notes that size bytes are about to be sent on a connection. ready: they are all here, so that
// the transfer may go ahead of the limit. nil: they would tell nothing of the line. The caller calls
// End.
func (l *Line) Begin(c net.Conn, size int64, ready bool) *Transfer {
	conn, ok := c.(*net.TCPConn)
	if l == nil || !ok || size < MinBytes || !l.cfg.Tells(netaddr.Addr(conn.LocalAddr()), netaddr.Addr(conn.RemoteAddr())) {
		return nil
	}
	info, ok := read(conn)
	if !ok {
		return nil
	}
	t := &Transfer{l: l, conn: conn, size: size, acked: info.Bytes_acked, before: info.Delivery_rate}
	if t.trial = ready && l.try(time.Now()); t.trial {
		t.ahead = trial
	}
	return t
}

// try reports whether a transfer that begins now may go ahead of the limit; then it is the only one
// until it calls tried.
func (l *Line) try(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	every := trialsEvery
	if _, learned := l.estimate.capacity(); learned {
		every = laterEvery
	}
	if !l.cfg.Trials || l.trying || !l.tried.IsZero() && now.Sub(l.tried) < every {
		return false
	}
	l.trying, l.tried = true, now
	return true
}

// Ahead returns how many of the next want bytes go ahead of the limit, 0 to want.
func (t *Transfer) Ahead(want int64) int64 {
	if t == nil {
		return 0
	}
	n := min(want, t.ahead)
	t.ahead -= n
	return n
}

// End is called once what there is to send was given to the kernel or the transfer broke off. The
// sample is taken when all of it has arrived; then Changed may be called, from another goroutine.
func (t *Transfer) End() {
	if t != nil {
		t.settle(time.Now().Add(settleWithin))
	}
}

func (t *Transfer) settle(until time.Time) {
	info, ok := read(t.conn) // not any more when it was closed
	if ok && !t.arrived(info) && time.Now().Before(until) {
		time.AfterFunc(settleEvery, func() { t.settle(until) })
		return
	}
	t.sample(info, ok)
}

func (t *Transfer) arrived(info tcpInfo) bool {
	return info.Bytes_acked-t.acked >= uint64(t.size) || info.Unacked == 0 && info.Notsent_bytes == 0
}

func (t *Transfer) sample(info tcpInfo, ok bool) {
	l := t.l
	l.mu.Lock()
	if t.trial {
		l.trying = false
	}
	was, _ := l.estimate.capacity()
	// Where the sender had nothing to send for a while, the rate is the sender's: the line carries
	// at least that. The kernel keeps a rate until it has a better one, so the same one is an old one.
	if ok && info.Bytes_acked-t.acked >= MinBytes && info.Delivery_rate != t.before &&
		(!info.appLimited || int64(info.Delivery_rate) > was) {
		l.estimate.add(int64(info.Delivery_rate))
	}
	rate, learned := l.estimate.capacity()
	l.mu.Unlock()
	if learned && rate != was {
		l.cfg.Changed(rate)
	}
}

// tcpInfo is what the kernel knows of a connection.
type tcpInfo struct {
	*unix.TCPInfo
	appLimited bool // Delivery_rate is what the sender sent, not what the path carries
}

func read(c *net.TCPConn) (info tcpInfo, ok bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return info, false
	}
	raw.Control(func(fd uintptr) { info.TCPInfo, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if info.TCPInfo == nil || err != nil {
		return info, false
	}
	// struct tcp_info has two bytes of bit fields before Rto, which unix.TCPInfo leaves out; the
	// first one of the second byte is tcpi_delivery_rate_app_limited.
	flags := *(*byte)(unsafe.Add(unsafe.Pointer(info.TCPInfo), unsafe.Offsetof(info.TCPInfo.Rto)-1))
	first := byte(1)
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		first = 1 << 7
	}
	info.appLimited = flags&first != 0
	return info, true
}
