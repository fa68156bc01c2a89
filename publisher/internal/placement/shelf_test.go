package placement

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/state/redistest"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
	"dandelion/publisher/internal/fleet"
	"dandelion/publisher/internal/push"
)

// shop is a real Redis, boxes that remember what they store, and a publisher's queue that can be
// killed and started again.
type shop struct {
	t     *testing.T
	dir   string
	redis *redis.Client // as other programs have it
	gate  *gate         // of the publisher's connections
	keys  keys.Publisher
	log   *slog.Logger

	mu      sync.Mutex
	boxes   []*shelf
	runs    atomic.Int64 // of the publisher
	changed chan struct{}

	placement *Placement
	queue     *Queue
	client    *redis.Client
	stop      context.CancelFunc
	done      chan struct{}
}

func newShop(t *testing.T) *shop {
	opts, err := redis.ParseURL(redistest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	s := &shop{
		t: t, dir: t.TempDir(), redis: redis.NewClient(opts), gate: &gate{addr: opts.Addr, conns: map[net.Conn]bool{}},
		keys: keys.Publisher(testPublisher), changed: make(chan struct{}, 1),
		log: slog.New(slog.NewTextHandler(lines{t}, nil)),
	}
	t.Cleanup(func() { s.redis.Close() })
	t.Cleanup(func() {
		if s.placement != nil {
			s.kill()
		}
	})
	return s
}

// lines is where the publisher's log goes: into the test's, for those who look for a failure.
type lines struct{ t *testing.T }

func (l lines) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

func (s *shop) Changed() <-chan struct{} { return s.changed }

func (s *shop) Boxes() []fleet.Box {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []fleet.Box
	for _, b := range s.boxes {
		list = append(list, fleet.Box{
			ID: b.id, Exchange: wire.Exchange{ConnectWS: b.url + wire.BoxWSPath(b.id)}, EdgeBase: b.url, EdgeAddr: netip.MustParseAddr("127.0.0.1"),
		})
	}
	return list
}

// start starts the publisher: a new process, as far as its memory goes.
func (s *shop) start() {
	s.t.Helper()
	s.log.Info("publisher starts", "run", s.runs.Add(1))
	s.gate.set(true)
	s.client = redis.NewClient(&redis.Options{Dialer: s.gate.dial, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, Protocol: 2})
	s.placement = New(Config{
		Own: push.Own{ID: testPublisher}, MinBoxes: 10, Fleet: s, Redis: s.client, Log: s.log, Window: func() []Live { return nil },
	})
	s.queue = &Queue{
		Placement: s.placement, Redis: s.client, Sync: func(context.Context) error { return nil }, Replicas: 2, Workers: 4,
		LocalFile: func(id.Path) string { return "" }, Log: s.log,
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.t.Context()))
	s.stop, s.done = cancel, make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() { _ = s.placement.Run(ctx) })
	group.Go(func() { _ = s.queue.Run(ctx) })
	go func() { defer close(s.done); group.Wait() }()
}

// kill ends the publisher as kill -9 does for Redis: nothing is written any more. Its memory is
// lost with it.
func (s *shop) kill() {
	s.gate.set(false)
	s.stop()
	<-s.done
	s.client.Close()
	s.placement = nil
}

func (s *shop) await(what string, condition func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !condition() {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			s.t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func (s *shop) push(task string) {
	s.t.Helper()
	if err := s.redis.RPush(s.t.Context(), s.keys.SendingQueue(), task).Err(); err != nil {
		s.t.Fatal(err)
	}
}

// left returns how many tasks are in the two lists, at one moment.
func (s *shop) left() (n int64) {
	cmds, err := s.redis.TxPipelined(s.t.Context(), func(p redis.Pipeliner) error {
		p.LLen(s.t.Context(), s.keys.SendingQueue())
		p.LLen(s.t.Context(), s.keys.Taken())
		return nil
	})
	if err != nil {
		return -1
	}
	for _, cmd := range cmds {
		n += cmd.(*redis.IntCmd).Val()
	}
	return n
}

func (s *shop) processed(path id.Path) map[string]string {
	return s.redis.HGetAll(s.t.Context(), s.keys.ProcessedFile(path)).Val()
}

func (s *shop) file(name string) id.Path { return id.Path(filepath.Join(s.dir, name)) }

// holders returns the boxes that have the file.
func (s *shop) holders(path id.Path, d id.Digest) (n int) {
	for _, b := range s.boxes {
		b.mu.Lock()
		if f, ok := b.files[path]; ok && f.SHA256 == d && (f.Expires == 0 || f.Expires > time.Now().Unix()) {
			n++
		}
		b.mu.Unlock()
	}
	return n
}

// gate is the network between the publisher and Redis.
type gate struct {
	addr string

	mu    sync.Mutex
	open  bool
	conns map[net.Conn]bool
}

func (g *gate) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.open {
		return nil, net.ErrClosed
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", g.addr)
	if err != nil {
		return nil, err
	}
	g.conns[conn] = true
	return conn, nil
}

// set opens the gate, or closes it and breaks all connections.
func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	if !open {
		g.sever()
	}
}

// flap breaks all connections; new ones are let through.
func (g *gate) flap() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sever()
}

func (g *gate) sever() {
	for conn := range g.conns {
		conn.Close()
	}
	clear(g.conns)
}

// mood is how a box takes files.
type mood int32

const (
	willing mood = iota
	full
	slow   // answers late
	absent // no session at all
)

// shelf is a box that remembers what it stores.
type shelf struct {
	shop *shop
	id   id.BoxID
	url  string

	mu     sync.Mutex
	mood   mood
	unfit  func(wire.FileHeader) bool // files that it has no room for; nil: none
	files  map[id.Path]wire.HaveFile
	stored map[id.Path]int // also what expired since
	excess map[id.Path]int // copies that the publisher could not know of, or could not see
	conns  map[*wsconn.Conn]bool

	absences int
}

// moment tells whether a session is still the one that a file came by.
type moment struct {
	run      int64
	absences int
}

func (s *shop) box(n int) *shelf {
	b := &shelf{
		shop: s, id: id.BoxID(fmt.Sprintf("box-%032x", n)),
		files: map[id.Path]wire.HaveFile{}, stored: map[id.Path]int{}, excess: map[id.Path]int{}, conns: map[*wsconn.Conn]bool{},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if b.now() == absent {
			http.Error(w, "gone", http.StatusServiceUnavailable)
			return
		}
		c, err := wsconn.Accept(w, req, netaddr.Addr(nil))
		if err != nil {
			return
		}
		b.mu.Lock()
		b.conns[c] = true
		b.mu.Unlock()
		go b.serve(c)
	}))
	s.t.Cleanup(srv.Close)
	b.url = srv.URL
	s.mu.Lock()
	defer s.mu.Unlock()
	s.boxes = append(s.boxes, b)
	return b
}

func (b *shelf) now() mood {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mood
}

func (b *shelf) set(m mood) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shop.log.Info("a box changes", "box", b.id, "mood", m)
	if b.mood = m; m != absent {
		return
	}
	b.absences++
	for path := range b.files {
		b.excess[path]++ // the publisher may replace what it cannot reach
	}
	for c := range b.conns {
		c.Abort()
	}
	clear(b.conns)
}

func (b *shelf) serve(c *wsconn.Conn) {
	defer c.Abort()
	b.mu.Lock()
	begin := moment{b.shop.runs.Load(), b.absences}
	b.mu.Unlock()
	peer := wire.Peer{ID: string(b.id), IP: "127.0.0.1", Port: "1", Type: wire.TypeBox}
	if _, err := c.ReadText(wire.MaxMessage); err != nil {
		return
	}
	_ = c.WriteText(wire.Encode(wire.PublishReply{Peer: peer, Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: wire.Ours()}))
	for {
		binary, body, err := c.Next()
		if err != nil {
			return
		}
		if !binary {
			if text, _ := io.ReadAll(body); strings.Contains(string(text), wire.CommandHave) {
				_ = c.WriteText(wire.Encode(wire.HavePageReply{Peer: peer, Command: wire.CommandHave, Files: b.have()}))
			}
			continue
		}
		br := bufio.NewReader(body)
		h, err := wire.ReadFileHeader(br)
		if err != nil {
			return
		}
		content, err := io.ReadAll(br)
		if err != nil || int64(len(content)) != h.Size || id.DigestOf(content) != h.Digest {
			return
		}
		b.take(c, peer, h, begin)
	}
}

func (b *shelf) take(c *wsconn.Conn, peer wire.Peer, h wire.FileHeader, begin moment) {
	m := b.now()
	if b.unfit != nil && b.unfit(h) {
		m = full
	}
	switch m {
	case full:
		b.mu.Lock()
		if _, ok := b.files[h.Path]; ok {
			b.excess[h.Path]++ // to be renewed, and now another box is asked
		}
		b.mu.Unlock()
		_ = c.WriteText(wire.Encode(wire.Refused{Peer: peer, Command: wire.CommandRefused, RequestID: h.RequestID, Error: "full", Kind: wire.KindFull}))
		return
	case slow:
		<-time.After(150 * time.Millisecond)
	}
	b.mu.Lock()
	f := wire.HaveFile{FilePath: h.Path, SHA256: h.Digest, Size: h.Size}
	if h.TTL > 0 {
		f.Expires = time.Now().Add(h.TTL).Unix()
	}
	b.files[h.Path] = f
	b.stored[h.Path]++
	b.shop.log.Info("stored", "box", b.id, "path", h.Path, "by", begin, "mood", b.mood)
	if begin != (moment{b.shop.runs.Load(), b.absences}) {
		b.excess[h.Path]++ // whoever sent it learns that at the next HAVE
	}
	b.mu.Unlock()
	_ = c.WriteText(wire.Encode(wire.Stored{
		Peer: peer, Command: wire.CommandStored, RequestID: h.RequestID, FilePath: h.Path, Size: h.Size, SHA256: h.Digest, Expires: f.Expires,
	}))
}

func (b *shelf) have() []wire.HaveFile {
	b.mu.Lock()
	defer b.mu.Unlock()
	files := []wire.HaveFile{}
	for _, f := range b.files {
		if f.Expires == 0 || f.Expires > time.Now().Unix() {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b wire.HaveFile) int { return strings.Compare(string(a.FilePath), string(b.FilePath)) })
	return files
}
