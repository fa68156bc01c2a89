package testfleet

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

// FakeBox speaks the protocol as a box does, and passes on what it is given as its Conduct wants: a box
// that somebody changed. It acknowledges what it gets, and serves it to viewers.
type FakeBox struct {
	ID  id.BoxID
	URL string

	ctx   context.Context
	grant int64
	srv   *httptest.Server

	mu         sync.Mutex
	conduct    Conduct
	silent     bool
	nonce      string
	publishers map[id.PublisherID]*wsconn.Conn
	files      map[string][]byte // by URL path
	asked      int
}

// Conduct passes a file on to one box, or does not.
type Conduct func(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte)

// StartFakeBox starts a box that grants each publisher so many bytes/s and passes on as it should. It
// registers with the fleet's first entrance.
func (f *Fleet) StartFakeBox(grant int64) *FakeBox {
	f.tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &FakeBox{
		ID: id.BoxIDOf([]byte(rand.Text())), ctx: ctx, grant: grant, conduct: Honest,
		publishers: map[id.PublisherID]*wsconn.Conn{}, files: map[string][]byte{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc(wire.BoxWSPath(b.ID), b.connect)
	mux.HandleFunc(wire.NoncePath(b.ID, "{short}"), func(w http.ResponseWriter, _ *http.Request) {
		b.mu.Lock()
		defer b.mu.Unlock()
		_, _ = io.WriteString(w, b.nonce)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		content, ok := b.files[r.URL.Path]
		b.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content)
	})
	b.srv = httptest.NewServer(mux)
	b.URL = b.srv.URL
	var group sync.WaitGroup
	group.Go(func() { b.report(f.tb, f.entranceWS()) })
	f.tb.Cleanup(func() {
		cancel()
		group.Wait()
		b.srv.Close()
	})
	return b
}

// Turn changes what the box does with files that it should pass on.
func (b *FakeBox) Turn(c Conduct) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conduct = c
}

// Silence makes the box read what other boxes pass on to it, and never answer for it.
func (b *FakeBox) Silence() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.silent = true
}

// Asked is how many copies it was asked to pass on.
func (b *FakeBox) Asked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

func (b *FakeBox) own() wire.Peer {
	host, port, _ := strings.Cut(strings.TrimPrefix(b.URL, "http://"), ":")
	return wire.Peer{ID: string(b.ID), IP: host, Port: wire.Text(port), Type: wire.TypeBox}
}

// report keeps the box registered.
func (b *FakeBox) report(tb testing.TB, entrance string) {
	conn, err := wsconn.Dial(b.ctx, entrance, wsconn.Dialing{Least: netaddr.Loopback})
	if err != nil {
		tb.Errorf("the fake box: %v", err)
		return
	}
	defer conn.Abort()
	defer context.AfterFunc(b.ctx, conn.Abort)()
	x := wire.Exchange{
		Peer: b.own(), ConnectWS: b.URL + wire.BoxWSPath(b.ID), EdgeURL: b.URL,
		Features: wire.Features{wire.FeatureAck, wire.FeatureGrant, wire.FeatureRelay}, System: wire.UnknownSystem(),
	}
	conn.KeepAlive(time.Second, Patience)
	for { // once in each ticker's period, and no faster than answers come
		if err := conn.WriteText(wire.Encode(&x)); err != nil {
			return
		}
		raw, err := conn.ReadText(wire.MaxMessage)
		if err != nil {
			return
		}
		reply, err := wire.Decode[wire.ExchangeReply](raw)
		if err != nil || reply.Message != wire.MessageAccepted {
			tb.Errorf("the entrance answered the fake box %s", raw)
			return
		}
		b.mu.Lock()
		if reply.Nonce != "" {
			b.nonce = reply.Nonce
		}
		b.mu.Unlock()
		select {
		case <-time.After(time.Second):
		case <-b.ctx.Done():
			return
		}
	}
}

// connect serves a session of a publisher, or of a box.
func (b *FakeBox) connect(w http.ResponseWriter, r *http.Request) {
	conn, err := wsconn.Accept(w, r, netip.MustParseAddrPort(r.RemoteAddr).Addr())
	if err != nil {
		return
	}
	go func() {
		defer conn.Abort()
		defer context.AfterFunc(b.ctx, conn.Abort)()
		_ = b.serve(conn)
	}()
}

func (b *FakeBox) serve(conn *wsconn.Conn) error {
	raw, err := conn.ReadText(wire.MaxMessage)
	if err != nil {
		return err
	}
	publish, err := wire.Decode[wire.Publish](raw)
	if err != nil {
		return err
	}
	reply := wire.PublishReply{
		Peer: b.own(), Command: wire.CommandPublish, Message: wire.MessageAccepted,
		Features: wire.Features{wire.FeatureAck, wire.FeatureRelay},
	}
	if publish.Type == wire.TypePublisher {
		reply.Features = append(reply.Features, wire.FeatureGrant)
		reply.Grant = &wire.Terms{Rate: b.grant, Seconds: 3600}
		b.mu.Lock()
		b.publishers[id.PublisherID(publish.ID)] = conn
		b.mu.Unlock()
	}
	if err := conn.WriteText(wire.Encode(reply)); err != nil {
		return err
	}
	conn.KeepAlive(time.Second, Patience)
	for {
		binary, r, err := conn.Next()
		switch {
		case err != nil:
			return err
		case binary:
			err = b.file(publish, r)
		default:
			err = b.command(conn, publish, r)
		}
		if err != nil {
			return err
		}
	}
}

// file takes a file whole, answers for it, and passes it on.
func (b *FakeBox) file(from wire.Publish, r io.Reader) error {
	br := bufio.NewReader(r)
	h, err := wire.ReadFileHeader(br)
	if err != nil {
		return err
	}
	content, err := io.ReadAll(br)
	if err != nil {
		return err
	}
	if id.DigestOf(content) != h.Digest {
		return errors.New("other bytes than the headers say")
	}
	if from.Type == wire.TypePublisher {
		h.Publisher = id.PublisherID(from.ID)
	}
	b.mu.Lock()
	b.files["/"+string(h.Publisher)+string(h.Path)] = content
	publisher, silent := b.publishers[h.Publisher], b.silent && from.Type == wire.TypeBox
	b.mu.Unlock()
	if silent || publisher == nil {
		return nil
	}
	b.pass(h, content)
	return publisher.WriteText(wire.Encode(wire.Stored{
		Peer: b.own(), Command: wire.CommandStored, RequestID: h.RequestID, FilePath: h.Path, Size: h.Size, SHA256: h.Digest,
		Expires: time.Now().Add(h.TTL).Unix(),
	}))
}

func (b *FakeBox) command(conn *wsconn.Conn, from wire.Publish, r io.Reader) error {
	raw, err := wsconn.ReadAll(r, wire.MaxMessage)
	if err != nil {
		return err
	}
	envelope, err := wire.DecodeEnvelope(raw)
	if err != nil {
		return err
	}
	switch envelope.Command {
	case wire.CommandHave:
		return conn.WriteText(wire.Encode(wire.HavePageReply{Peer: b.own(), Command: wire.CommandHave}))
	case wire.CommandCopy:
		c, err := wire.Decode[wire.Copy](raw)
		if err != nil {
			return err
		}
		b.mu.Lock()
		content := b.files["/"+from.ID+c.FilePath]
		b.mu.Unlock()
		b.pass(wire.FileHeader{
			Path: id.Path(c.FilePath), TTL: time.Duration(c.TTL) * time.Second, Publisher: id.PublisherID(from.ID), Size: int64(len(content)),
			Digest: c.SHA256, Plays: time.Duration(c.Duration * float64(time.Second)), Relay: c.Relay,
		}, content)
	}
	return nil
}

func (b *FakeBox) pass(h wire.FileHeader, content []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked += len(h.Relay)
	for _, n := range h.Relay {
		head := h
		head.RequestID, head.Relay = n.RequestID, n.Relay
		go b.conduct(b, n, head, content)
	}
}

// dial opens a relaying session.
func (b *FakeBox) dial(to wire.RelayNode) (*wsconn.Conn, error) {
	conn, err := wsconn.Dial(b.ctx, to.ConnectWS, wsconn.Dialing{Least: netaddr.Loopback, Paced: true})
	if err != nil {
		return nil, err
	}
	hello := wire.Publish{Peer: b.own(), Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck, wire.FeatureRelay}}
	err = conn.WriteText(wire.Encode(hello))
	var raw []byte
	if err == nil {
		raw, err = conn.ReadText(wire.MaxMessage)
	}
	if err == nil && !strings.Contains(string(raw), wire.MessageAccepted) {
		err = fmt.Errorf("it answered %s", raw)
	}
	if err != nil {
		conn.Abort()
		return nil, err
	}
	return conn, nil
}

// send passes what r has on as the file, and reads until the other box closes, or the test ends.
func (b *FakeBox) send(to wire.RelayNode, h wire.FileHeader, r io.Reader) {
	conn, err := b.dial(to)
	if err != nil {
		return
	}
	defer conn.Abort()
	defer context.AfterFunc(b.ctx, conn.Abort)()
	if conn.WriteFile(b.ctx, h.AppendTo(nil), r, h.Size) != nil {
		return
	}
	for {
		if _, err := conn.ReadText(wire.MaxMessage); err != nil {
			return
		}
	}
}

// Honest passes on what it was given.
func Honest(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte) {
	b.send(to, h, strings.NewReader(string(content)))
}

// Spoiling passes other bytes on.
func Spoiling(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte) {
	b.send(to, h, strings.NewReader(strings.Repeat("x", len(content))))
}

// Forging passes other bytes on, with headers that fit them.
func Forging(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte) {
	other := strings.Repeat("x", len(content))
	h.Digest = id.DigestOf([]byte(other))
	b.send(to, h, strings.NewReader(other))
}

// Withholding passes nothing on.
func Withholding(*FakeBox, wire.RelayNode, wire.FileHeader, []byte) {}

// Trickling passes on a hundred bytes at a time, as if its line were slow.
func Trickling(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte) {
	b.send(to, h, &trickle{b.ctx, content})
}

type trickle struct {
	ctx  context.Context
	rest []byte
}

func (t *trickle) Read(p []byte) (int, error) {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	}
	n := copy(p[:min(len(p), 100)], t.rest)
	t.rest = t.rest[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// BreakingOff passes half of a file on and breaks the connection.
func BreakingOff(b *FakeBox, to wire.RelayNode, h wire.FileHeader, content []byte) {
	b.send(to, h, strings.NewReader(string(content[:len(content)/2])))
}

// Accusing passes nothing on and says that the other boxes refuse it.
func Accusing(b *FakeBox, to wire.RelayNode, h wire.FileHeader, _ []byte) {
	b.mu.Lock()
	publisher := b.publishers[h.Publisher]
	b.mu.Unlock()
	_ = publisher.WriteText(wire.Encode(wire.Refused{
		Peer: b.own(), Command: wire.CommandRefused, RequestID: h.RequestID, Kind: wire.KindRelay, Box: to.Box, Error: "it refuses",
	}))
}
