package state

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2/server"
)

// Limits for other programs at the embedded state.
const (
	maxGuests       = 64
	maxCommandArgs  = 64 << 10
	maxCommandBytes = 16 << 20
	acceptPause     = 100 * time.Millisecond // when the process has no more file descriptors
)

// door is the loopback port on which other programs reach the embedded state.
type door struct {
	listener net.Listener
	serve    *server.Server
	writes   *atomic.Uint64
	places   chan struct{} // one value for each connection
}

func openDoor(addr string, serve *server.Server, writes *atomic.Uint64) (*door, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("redis.embedded_listen: cannot listen on %s (%s): choose a free port, or leave it empty", addr, shortCause(err))
	}
	return &door{listener: listener, serve: serve, writes: writes, places: make(chan struct{}, maxGuests)}, nil
}

func (d *door) addr() string { return d.listener.Addr().String() }

// run takes connections until close.
func (d *door) run(log *slog.Logger) {
	for {
		conn, err := d.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			log.Warn("A connection to the embedded state failed", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		select {
		case d.places <- struct{}{}:
			d.serve.ServeConn(&guest{Conn: conn, r: bufio.NewReaderSize(conn, connBuffer), door: d})
		default:
			io.WriteString(conn, "-ERR max number of clients reached\r\n")
			conn.Close()
		}
	}
}

func (d *door) close() error { return d.listener.Close() }

// guest is another program's connection. miniredis was made for tests and trusts its clients: a
// command without words, or one that announces a terabyte, ends the process. So what it reads
// is checked first, command by command.
type guest struct {
	net.Conn
	r      *bufio.Reader
	door   *door
	ready  []byte // the checked command, from at
	at     int
	closed atomic.Bool
}

func (g *guest) Read(b []byte) (int, error) {
	if g.at == len(g.ready) {
		if cap(g.ready) > keepBuffer {
			g.ready = nil
		}
		var err error
		if g.ready, err = readCommand(g.r, g.ready[:0]); err != nil {
			if errors.Is(err, errProtocol) {
				fmt.Fprintf(g.Conn, "-ERR %s\r\n", err)
			}
			return 0, err
		}
		g.at = 0
		if isBlocking(commandName(g.ready)) {
			g.door.writes.Add(1)
		}
	}
	n := copy(b, g.ready[g.at:])
	g.at += n
	return n, nil
}

func (g *guest) Close() error {
	if g.closed.CompareAndSwap(false, true) {
		<-g.door.places
	}
	return g.Conn.Close()
}

var errProtocol = errors.New("protocol error: want an array of bulk strings within the limits")

// readCommand appends one command, as a client sends it, to buf: an array of at least one bulk
// string. Memory grows with what arrives, not with what is announced.
func readCommand(r *bufio.Reader, buf []byte) ([]byte, error) {
	words, err := readLength(r, '*', maxCommandArgs)
	if err != nil {
		return buf, err
	}
	if words == 0 {
		return buf, errProtocol
	}
	buf = fmt.Appendf(buf, "*%d\r\n", words)
	for range words {
		size, err := readLength(r, '$', maxCommandBytes)
		if err != nil {
			return buf, err
		}
		if len(buf)+size > maxCommandBytes {
			return buf, errProtocol
		}
		buf = fmt.Appendf(buf, "$%d\r\n", size)
		if buf, err = appendExactly(r, buf, size+2); err != nil {
			return buf, err
		}
		if !bytes.HasSuffix(buf, []byte("\r\n")) {
			return buf, errProtocol
		}
	}
	return buf, nil
}

// readLength reads a line such as "*3\r\n".
func readLength(r *bufio.Reader, kind byte, limit int) (int, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return 0, errProtocol
	}
	if err != nil {
		return 0, err
	}
	digits, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok || len(digits) < 2 || len(digits) > 10 || digits[0] != kind {
		return 0, errProtocol
	}
	n, err := strconv.ParseUint(string(digits[1:]), 10, 31)
	if err != nil || n > uint64(limit) {
		return 0, errProtocol
	}
	return int(n), nil
}

func appendExactly(r io.Reader, buf []byte, n int) ([]byte, error) {
	const step = 64 << 10
	for n > 0 {
		chunk := min(n, step)
		at := len(buf)
		buf = append(buf, make([]byte, chunk)...)
		if _, err := io.ReadFull(r, buf[at:]); err != nil {
			return buf, err
		}
		n -= chunk
	}
	return buf, nil
}

// commandName returns the first word of a command that readCommand has checked.
func commandName(command []byte) []byte {
	_, rest, _ := bytes.Cut(command, []byte("\n"))
	_, rest, _ = bytes.Cut(rest, []byte("\n"))
	name, _, _ := bytes.Cut(rest, []byte("\r"))
	return name
}
