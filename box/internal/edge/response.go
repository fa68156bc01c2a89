package edge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"dandelion/box/internal/capacity"
	"dandelion/pkg/conns"
	"dandelion/pkg/uplink"
)

// response counts what an answer sends, lets it wait for its turn, and cuts slow viewers off. It
// forwards ReadFrom with the *os.File visible to it, and all at once that the upload allows, so
// that the kernel copies from file to socket (sendfile; a test asserts it): each call more wakes the
// viewer once more, and four per MB cost a quarter of the CPU.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	least   int64         // bytes that a viewer must take within window
	window  time.Duration // see least
	status  int
	sent    int64         // body bytes
	err     error         // the first one of writing
	due     int64         // sent must have reached it when the window ends; 0: no window yet
	left    time.Duration // of the window; only time in which the viewer could take bytes goes by

	admit      func(n int64) bool // asked before a file's n bytes are answered; nil: all are
	turnedAway bool               // admit said no: nothing was written
	ctx        context.Context    // of the request, with flow
	flow       *uplink.Flow       // nil: no limit
	transfer   *capacity.Transfer
}

func newResponse(rw http.ResponseWriter, least int64, window time.Duration) *response {
	return &response{ResponseWriter: rw, control: http.NewResponseController(rw), least: least, window: window}
}

// takePart makes the body of size bytes, which is written from now on, a transfer of the upload.
func (w *response) takePart(r *http.Request, flow *uplink.Flow, line *capacity.Line, size int64) {
	w.ctx, w.flow, w.transfer = r.Context(), flow, line.Begin(conns.Of(r), size, true)
}

// turn waits until some of want bytes may be sent, and returns how many.
func (w *response) turn(want int64) (int64, error) {
	if w.flow == nil {
		return want, nil
	}
	if n := w.transfer.Ahead(want); n > 0 {
		w.flow.Spend(n)
		return n, nil
	}
	return w.flow.Take(w.ctx, want)
}

// giveBack returns what turn allowed and the viewer did not take.
func (w *response) giveBack(n int64) {
	if w.flow != nil {
		w.flow.Return(n)
	}
}

// timed lets write send to the viewer within what is left of its window, and gives it another one
// when it took enough. A writer without deadlines (a test's) has no viewer.
func (w *response) timed(write func() (int64, error)) (int64, error) {
	if w.due == 0 || w.sent >= w.due {
		w.due, w.left = w.sent+w.least, w.window
	}
	began := time.Now()
	w.control.SetWriteDeadline(began.Add(w.left))
	n, err := write()
	w.left -= time.Since(began)
	w.sent += n
	return n, err
}

func (w *response) WriteHeader(status int) {
	if w.admit != nil && (status == http.StatusOK || status == http.StatusPartialContent) {
		size, _ := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64)
		if !w.admit(size) {
			w.turnedAway = true
			return
		}
	}
	if w.status == 0 {
		w.status = status
		if status >= 400 {
			w.Header().Set("Cache-Control", "no-store")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

var errTurnedAway = errors.New("edge: no upload is left for this answer")

func (w *response) Write(b []byte) (total int, err error) {
	if w.turnedAway {
		return 0, errTurnedAway
	}
	for total < len(b) && err == nil {
		var may int64
		if may, err = w.turn(int64(len(b) - total)); err != nil {
			break
		}
		var n int64
		n, err = w.timed(func() (int64, error) {
			n, err := w.ResponseWriter.Write(b[total : total+int(may)])
			return int64(n), err
		})
		w.giveBack(may - n)
		total += int(n)
	}
	w.wrote(err)
	return total, err
}

// ReadFrom sends all of src.
func (w *response) ReadFrom(src io.Reader) (total int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited || w.turnedAway {
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	file, ok := limited.R.(*os.File)
	if !ok { // several ranges come through a pipe
		return io.Copy(struct{ io.Writer }{w}, src)
	}
	start, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	size, may := limited.N, int64(0)
	for total < size {
		if may == 0 {
			if may, err = w.turn(size - total); err != nil {
				break
			}
		}
		limited.N = may
		var n int64
		n, err = w.timed(func() (int64, error) { return to.ReadFrom(limited) })
		total += n
		may -= n
		// At the deadline, a viewer that took enough gets another window.
		if errors.Is(err, os.ErrDeadlineExceeded) && w.sent >= w.due {
			if _, err = file.Seek(start+total, io.SeekStart); err == nil {
				continue
			}
		}
		if err != nil || may > 0 { // the file is shorter than it was
			break
		}
	}
	w.giveBack(may)
	limited.N = size - total
	w.wrote(err)
	return total, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) wrote(err error) {
	w.status = max(w.status, 200) // an implicit header
	if err != nil && w.err == nil {
		w.err = err
	}
}

// fail answers with a short text.
func (w *response) fail(status int, text string) {
	text += "\n"
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// maxBuffered is what net/http can hold back from the connection.
const maxBuffered = 8 << 10

// finish sends what is buffered, so that sent is true afterwards, and makes an aborted answer's
// sent what the viewer's side has really accepted. It ends the answer's part of the upload.
func (w *response) finish(r *http.Request) {
	if w.flow != nil {
		defer w.flow.Close()
		defer w.transfer.End()
	}
	if err := w.control.Flush(); err != nil && w.err == nil && !errors.Is(err, http.ErrNotSupported) {
		w.err = err
		if w.sent <= maxBuffered {
			w.sent = 0
		}
	}
	w.control.SetWriteDeadline(time.Time{})
	if r.Method == http.MethodHead {
		w.sent = 0 // net/http took the body and dropped it
	}
	if w.err == nil {
		return
	}
	conn, ok := conns.Of(r).(*net.TCPConn)
	if !ok {
		return
	}
	w.sent = max(0, w.sent-unacknowledged(conn))
	if errors.Is(w.err, os.ErrDeadlineExceeded) {
		conn.SetLinger(0) // what a slow viewer left in the kernel's buffer goes at once
	}
}

// unacknowledged is how many bytes the kernel took and the other end did not, also after a reset.
func unacknowledged(c *net.TCPConn) int64 {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return int64(n)
}
