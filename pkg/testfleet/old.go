package testfleet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// OldConn is a websocket as the Python implementation's clients have it: upgraded over HTTP/1.0,
// as it arrives behind the old nginx configuration, with single masked frames (docs/protocol.md).
type OldConn struct {
	conn net.Conn
	r    *bufio.Reader
}

// DialOld connects to an http URL.
func DialOld(tb testing.TB, rawURL string) *OldConn {
	tb.Helper()
	c, err := dialOld(tb.Context(), rawURL)
	if err != nil {
		tb.Fatalf("dialling %s as an old peer: %v", rawURL, err)
	}
	tb.Cleanup(c.Close)
	return c
}

func dialOld(ctx context.Context, rawURL string) (*OldConn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	c := &OldConn{conn, bufio.NewReader(conn)}
	fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: %s\r\nUpgrade: Websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n", u.Path, u.Host)
	resp, err := http.ReadResponse(c.r, nil)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = fmt.Errorf("the server answered %s", resp.Status)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection without a close frame, as the old client does.
func (c *OldConn) Close() { c.conn.Close() }

// Opcodes of RFC 6455 section 5.2.
const (
	opText   = 1
	opBinary = 2
	opClose  = 8
	opPing   = 9
	opPong   = 10
)

// Send writes one masked frame.
func (c *OldConn) Send(opcode byte, payload []byte) error {
	head := []byte{0x80 | opcode}
	switch n := len(payload); {
	case n < 126:
		head = append(head, 0x80|byte(n))
	case n < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 0x80|126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 0x80|127), uint64(n))
	}
	mask := make([]byte, 4)
	_, _ = rand.Read(mask)
	masked := make([]byte, len(payload))
	for i, b := range payload {
		masked[i] = b ^ mask[i%4]
	}
	_, err := c.conn.Write(append(append(head, mask...), masked...))
	return err
}

// Receive reads the next text message, answering pings as the old client does. A close is io.EOF.
func (c *OldConn) Receive() ([]byte, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(Patience))
	for {
		var head [2]byte
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return nil, err
		}
		size := int64(head[1] & 0x7f)
		switch size {
		case 126:
			var n [2]byte
			if _, err := io.ReadFull(c.r, n[:]); err != nil {
				return nil, err
			}
			size = int64(binary.BigEndian.Uint16(n[:]))
		case 127:
			var n [8]byte
			if _, err := io.ReadFull(c.r, n[:]); err != nil {
				return nil, err
			}
			size = int64(binary.BigEndian.Uint64(n[:]))
		}
		payload := make([]byte, size)
		if _, err := io.ReadFull(c.r, payload); err != nil {
			return nil, err
		}
		switch head[0] & 0xf {
		case opPing:
			if err := c.Send(opPong, payload); err != nil {
				return nil, err
			}
		case opClose:
			return nil, io.EOF
		case opText:
			return payload, nil
		}
	}
}

// Ask sends a message and reads the answer into reply.
func (c *OldConn) Ask(message string, reply any) error {
	if err := c.Send(opText, []byte(message)); err != nil {
		return err
	}
	b, err := c.Receive()
	if err != nil {
		return err
	}
	return json.Unmarshal(b, reply)
}

// OldBox behaves like the Python box: it dials for each exchange, sends a flat object of strings,
// accepts PUBLISH, stores what comes and never acknowledges.
type OldBox struct {
	ID    id.BoxID
	Addr  string // 127.0.77.x:7072: an old box has no EDGE_URL, its viewers use port 7072
	mu    sync.Mutex
	files map[string][]byte // by URL path
	errs  []error
}

// StartOldBox starts an old box that exchanges with an entrance every interval, until ctx ends.
func StartOldBox(ctx context.Context, tb testing.TB, entrance string, interval time.Duration) *OldBox {
	tb.Helper()
	var seed [17]byte
	_, _ = rand.Read(seed[:])
	b := &OldBox{ID: id.BoxID(fmt.Sprintf("box-%x", seed[:16])), files: map[string][]byte{}}
	ip := fmt.Sprintf("127.0.77.%d", 2+seed[16]%250)
	b.Addr = net.JoinHostPort(ip, "7072")
	ln, err := net.Listen("tcp", b.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc(wire.BoxWSPath(b.ID), b.session)
	mux.HandleFunc(wire.BoxIndexPath(b.ID)+"{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "HI %s", b.ID) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if content, ok := b.File(r.URL.Path); ok {
			_, _ = w.Write(content)
			return
		}
		http.NotFound(w, r)
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(ln) }()
	tb.Cleanup(func() { srv.Close() })
	go func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if err := b.exchange(ctx, entrance, ip); err != nil && ctx.Err() == nil {
				b.mu.Lock()
				b.errs = append(b.errs, err)
				b.mu.Unlock()
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}()
	return b
}

// exchange is one dial, one message, one answer.
func (b *OldBox) exchange(ctx context.Context, entrance, ip string) error {
	c, err := dialOld(ctx, entrance)
	if err != nil {
		return err
	}
	defer c.Close()
	var reply map[string]any
	message := fmt.Sprintf(`{"ID": %q, "IP": %q, "PORT": "7072", "TYPE": "BOX", "COMMAND": "EXCHANGE", "CONNECT_WS": "http://%s%s",
		"CPU-HZ": "1200.00", "CPU-NUM": "4", "CPU-USR": "1.0", "CPU-SYS": "0.5", "CPU-NIC": "0.0", "CPU-IDLE": "98.0", "CPU-IO": "0.5", "CPU-IRQ": "0.0", "CPU-SIRQ": "0.0",
		"LOADAVG-1": "0.10", "LOADAVG-5": "0.20", "LOADAVG-15": "0.30", "MEM-TOTAL": "990", "MEM-AVAIL": "500", "DISK-TOTAL": "29.1", "DISK-AVAIL": "20.5",
		"%s:TRAFFIC_FLOW:log-5f2c": {"url": "/x.ts", "status": "200", "size": "5", "datetime": "27/Sep/2017:03:20:10"}}`,
		b.ID, ip, b.Addr, wire.BoxWSPath(b.ID), b.ID)
	if err := c.Ask(message, &reply); err != nil {
		return err
	}
	if reply["MESSAGE"] != wire.MessageAccepted || reply["COMMAND"] != wire.CommandExchange {
		return fmt.Errorf("the entrance answered %v", reply)
	}
	for _, new := range []string{"FEATURES", "NONCE", "REACHABLE"} {
		if reply[new] != nil {
			return fmt.Errorf("the entrance sent %s to a box that knows it not", new)
		}
	}
	return nil
}

// session is the old box's side of PUBLISH.
func (b *OldBox) session(w http.ResponseWriter, r *http.Request) {
	ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer ws.Close()
	var publish struct{ ID, COMMAND string }
	if err := ws.ReadJSON(&publish); err != nil || publish.COMMAND != wire.CommandPublish {
		return
	}
	_ = ws.WriteJSON(map[string]string{"ID": string(b.ID), "IP": "127.0.0.1", "PORT": "7072", "TYPE": "BOX", "MESSAGE": "ACCEPTED", "COMMAND": "PUBLISH"})
	for {
		kind, message, err := ws.ReadMessage()
		if err != nil || kind != websocket.BinaryMessage {
			return // the old box closes at anything else
		}
		head, content, _ := bytes.Cut(message, []byte("</Dandelion>"))
		var h struct {
			Path string  `json:"FILE_PATH"`
			TTL  float64 `json:"TTL"`
		}
		if err := json.Unmarshal(bytes.TrimPrefix(head, []byte("<Dandelion>")), &h); err != nil {
			return
		}
		b.mu.Lock()
		b.files["/"+publish.ID+"/"+strings.TrimPrefix(h.Path, "/")] = content
		b.mu.Unlock()
	}
}

// File returns what the box stores at a URL path.
func (b *OldBox) File(path string) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	content, ok := b.files[path]
	return content, ok
}

// Errors are the exchanges that went wrong.
func (b *OldBox) Errors() []error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.errs
}
