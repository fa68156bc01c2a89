// Package wsconn is Dandelion's way with websockets: dialling and accepting them, deadlines
// that move with progress, pings, and files streamed as one message. It carries bytes; what
// they mean is pkg/wire's.
package wsconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/netaddr"
)

// Times that hold for every connection.
const (
	firstMessage  = 10 * time.Second // from the upgrade to the first message
	writeTimeout  = 10 * time.Second // for a message, a ping, or a chunk of a file
	closeTimeout  = time.Second      // for the peer to answer a close
	deadlineGrain = 250 * time.Millisecond
)

// Small buffers for the many idle connections of an entrance; a large pooled write buffer for
// senders of files, because the library cuts messages into frames of its size.
const (
	readBuffer      = 512
	writeBuffer     = 4 << 10
	fileWriteBuffer = 256 << 10
	// pacedWriteBuffer is for files that are passed on while they come, or sent below a limit: what
	// waits in the buffer waits for its frame to be full.
	pacedWriteBuffer = 16 << 10
)

var (
	smallWrites = &sync.Pool{}
	fileWrites  = &sync.Pool{}
	pacedWrites = &sync.Pool{}
)

// Conn is one websocket. Reading belongs to one goroutine, which must call Abort when it is
// done; everything else may be called from any.
type Conn struct {
	ws     *websocket.Conn
	remote netip.Addr
	writes sync.Mutex

	silence     atomic.Int64 // time.Duration; how long the peer may say nothing
	heard       atomic.Int64 // time.Duration since start of its latest sign of life
	closing     atomic.Bool
	gaveUp      atomic.Bool
	lastExtend  time.Time // the reader's
	pingEvery   time.Duration
	pinger      *time.Timer
	pingerMutex sync.Mutex
	ended       bool // under pingerMutex

	pongMutex sync.Mutex
	pongs     map[string]chan struct{} // by what the ping carried
	pingCount uint64
}

var upgrader = websocket.Upgrader{
	HandshakeTimeout: writeTimeout,
	ReadBufferSize:   readBuffer,
	WriteBufferSize:  writeBuffer,
	WriteBufferPool:  smallWrites,
}

// Accept upgrades a request; HTTP/1.0 is taken, as an old proxy makes it. It has answered the
// request when it fails. The handler should return after it and leave the reading to a
// goroutine of its own, so that net/http's buffers are given back. remote is the peer's
// address, which behind a trusted proxy is not the socket's. The first message must come
// within 10 s; see SetSilence and KeepAlive for what follows.
func Accept(w http.ResponseWriter, r *http.Request, remote netip.Addr) (*Conn, error) {
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil, fmt.Errorf("websocket from %s: %w", r.RemoteAddr, err)
	}
	return newConn(ws, remote), nil
}

func newConn(ws *websocket.Conn, remote netip.Addr) *Conn {
	c := &Conn{ws: ws, remote: remote}
	c.SetSilence(firstMessage)
	c.sign()
	ws.SetPongHandler(func(data string) error { c.sign(); c.pong(data); return nil })
	ws.SetPingHandler(func(data string) error {
		c.sign()
		// A pong that cannot be written now is not worth the connection; a dead one shows itself.
		_ = ws.WriteControl(websocket.PongMessage, []byte(data), time.Now().Add(writeTimeout))
		return nil
	})
	return c
}

// Remote returns the peer's address.
func (c *Conn) Remote() netip.Addr { return c.remote }

// LocalAddr returns the address of this end, unmapped.
func (c *Conn) LocalAddr() netip.Addr { return netaddr.Addr(c.ws.LocalAddr()) }

// NetConn returns the connection below, to look at and not to read or write.
func (c *Conn) NetConn() net.Conn { return c.ws.NetConn() }

// SetSilence sets for how long the peer may say nothing, pongs included, before reading fails.
func (c *Conn) SetSilence(limit time.Duration) { c.silence.Store(int64(limit)) }

// KeepAlive pings the peer every interval and makes reading fail after silence without a sign
// of life.
func (c *Conn) KeepAlive(interval, silence time.Duration) {
	c.SetSilence(silence)
	c.pingerMutex.Lock()
	defer c.pingerMutex.Unlock()
	if c.ended || c.pinger != nil {
		return
	}
	c.pingEvery = interval
	// A timer and not a goroutine: an entrance has thousands of connections.
	c.pinger = time.AfterFunc(interval, c.ping)
}

func (c *Conn) ping() {
	if err := c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(writeTimeout)); err != nil {
		return // the reader sees the connection end
	}
	c.pingerMutex.Lock()
	defer c.pingerMutex.Unlock()
	if !c.ended {
		c.pinger.Reset(c.pingEvery)
	}
}

// Ping sends a ping and returns a channel that is closed when the peer has answered it. It is
// closed only while some goroutine reads; pings that are never answered cost a map entry each
// until the connection ends.
func (c *Conn) Ping() (answered <-chan struct{}, err error) {
	ch := make(chan struct{})
	c.pongMutex.Lock()
	if c.pongs == nil {
		c.pongs = map[string]chan struct{}{}
	}
	c.pingCount++
	name := strconv.FormatUint(c.pingCount, 10)
	c.pongs[name] = ch
	c.pongMutex.Unlock()
	// Behind the files that are being written, because it stands for their arrival.
	c.writes.Lock()
	defer c.writes.Unlock()
	return ch, c.ws.WriteControl(websocket.PingMessage, []byte(name), time.Now().Add(writeTimeout))
}

func (c *Conn) pong(name string) {
	c.pongMutex.Lock()
	defer c.pongMutex.Unlock()
	if ch := c.pongs[name]; ch != nil {
		close(ch)
		delete(c.pongs, name)
	}
}

// start is what times of heard are counted from: they are monotonic.
var start = time.Now()

// sign notes a sign of life of the peer.
func (c *Conn) sign() {
	c.heard.Store(int64(time.Since(start)))
	c.extend()
}

// Unheard returns how long ago the peer gave its latest sign of life: a message, a part of one, a
// ping or a pong. It is right only while some goroutine reads.
func (c *Conn) Unheard() time.Duration { return time.Since(start) - time.Duration(c.heard.Load()) }

// extend moves the read deadline, at most once in deadlineGrain.
func (c *Conn) extend() {
	now := time.Now()
	if now.Sub(c.lastExtend) < deadlineGrain || c.closing.Load() {
		return
	}
	c.lastExtend = now
	_ = c.ws.SetReadDeadline(now.Add(time.Duration(c.silence.Load())))
	if c.closing.Load() { // meanwhile: Close's deadline may have come first
		_ = c.ws.SetReadDeadline(now.Add(closeTimeout))
	}
}

// Next returns the next message: whether it is binary, and a reader of its bytes that is good
// until the following call. Each read moves the deadline: a message may take any time as long
// as bytes come. The rest of a message that was not read to its end is read past.
func (c *Conn) Next() (binary bool, r io.Reader, err error) {
	c.lastExtend = time.Time{}
	c.extend()
	kind, r, err := c.ws.NextReader()
	if err != nil {
		return false, nil, err
	}
	c.sign()
	return kind == websocket.BinaryMessage, progressReader{c, r}, nil
}

type progressReader struct {
	c *Conn
	r io.Reader
}

func (p progressReader) Read(b []byte) (int, error) {
	// Also before: what the reader did with the last bytes, on a slow disk say, is not the
	// peer's silence.
	p.c.extend()
	n, err := p.r.Read(b)
	if n > 0 {
		p.c.sign()
	}
	return n, err
}

// ErrTooLong is returned for a text message longer than the reader takes.
var ErrTooLong = errors.New("message too long")

// ErrBinary is returned where a text message was expected.
var ErrBinary = errors.New("a binary message where a text message was expected")

// ReadText returns the next message, which must be text of at most limit bytes.
func (c *Conn) ReadText(limit int64) ([]byte, error) {
	binary, r, err := c.Next()
	if err != nil {
		return nil, err
	}
	if binary {
		return nil, ErrBinary
	}
	return ReadAll(r, limit)
}

// ReadAll reads a message of at most limit bytes; ErrTooLong where it is longer.
func ReadAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLong, limit)
	}
	return b, err
}

// WriteText sends one text message.
func (c *Conn) WriteText(message []byte) error {
	c.writes.Lock()
	defer c.writes.Unlock()
	_ = c.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	return c.ws.WriteMessage(websocket.TextMessage, message)
}

// WriteFile sends head and size bytes of content as one binary message. When it cannot send
// all of it (the content ends early or fails, ctx ends, the peer takes nothing for 10 s) it
// breaks the connection off without finishing the message, so that no peer can take the part
// for the whole. When ctx ends while the last frame is being sent, that has one second more.
func (c *Conn) WriteFile(ctx context.Context, head []byte, content io.Reader, size int64) error {
	c.writes.Lock()
	defer c.writes.Unlock()
	if ctx.Err() != nil { // its turn came too late: nothing is broken off
		return fmt.Errorf("given up: %w", context.Cause(ctx))
	}
	var finishing atomic.Bool // all was read, and only the last frame is still to be sent
	stop := context.AfterFunc(ctx, func() {
		if finishing.Load() {
			_ = c.ws.NetConn().SetWriteDeadline(time.Now().Add(closeTimeout))
			return
		}
		c.gaveUp.Store(true)
		c.Abort()
	})
	defer stop()
	if err := c.writeFile(head, content, size, &finishing); err != nil {
		if ctx.Err() != nil {
			c.gaveUp.Store(true)
			err = fmt.Errorf("given up: %w", context.Cause(ctx))
		}
		c.Abort()
		return err
	}
	return nil
}

// GaveUp reports whether the connection was broken off because a WriteFile's ctx ended. It is right
// when reading has failed.
func (c *Conn) GaveUp() bool { return c.gaveUp.Load() }

func (c *Conn) writeFile(head []byte, content io.Reader, size int64, finishing *atomic.Bool) error {
	_ = c.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	w, err := c.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	// Each read is followed by a write; its deadline moves on with it.
	n, err := io.Copy(w, writeProgress{c, io.LimitReader(content, size)})
	if err != nil {
		return err
	}
	if n < size {
		return fmt.Errorf("the file ended after %d of %d bytes", n, size)
	}
	finishing.Store(true)
	return w.Close()
}

type writeProgress struct {
	c *Conn
	r io.Reader
}

func (p writeProgress) Read(b []byte) (int, error) {
	_ = p.c.ws.SetWriteDeadline(time.Now().Add(writeTimeout))
	return p.r.Read(b)
}

// Close tells the peer that the connection ends, with close code 1000, and lets the reader run
// on for a second at most, so that the peer's answer, and what is under way to it, is not cut.
func (c *Conn) Close(reason string) {
	if c.closing.Swap(true) {
		return
	}
	message := websocket.FormatCloseMessage(websocket.CloseNormalClosure, reason)
	_ = c.ws.WriteControl(websocket.CloseMessage, message, time.Now().Add(closeTimeout))
	_ = c.ws.SetReadDeadline(time.Now().Add(closeTimeout))
}

// Refuse sends a last message, closes and reads past what the peer still sends. It is the
// reader's to call.
func (c *Conn) Refuse(message []byte) {
	_ = c.WriteText(message)
	c.Close("")
	for {
		_, r, err := c.ws.NextReader()
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return
		}
	}
}

// Abort ends the connection at once.
func (c *Conn) Abort() {
	c.pingerMutex.Lock()
	c.ended = true
	if c.pinger != nil {
		c.pinger.Stop()
	}
	c.pingerMutex.Unlock()
	_ = c.ws.Close()
}

// SaidGoodbye reports whether a read error is the peer's orderly close.
func SaidGoodbye(err error) bool {
	return websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway)
}
