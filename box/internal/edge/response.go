package edge

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"dandelion/pkg/conns"
)

// response counts what an answer sends and cuts slow viewers off. It forwards ReadFrom with the
// *os.File visible to it, and all of it at once, so that the kernel copies from file to socket
// (sendfile; a test asserts it): each call more wakes the viewer once more, and four per MB cost
// a quarter of the CPU.
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	least   int64         // bytes that a viewer must take within window
	window  time.Duration // see least
	status  int
	sent    int64 // body bytes
	err     error // the first one of writing
	due     int64 // sent must have reached it when the window ends; 0: no window yet
}

func newResponse(rw http.ResponseWriter, least int64, window time.Duration) *response {
	return &response{ResponseWriter: rw, control: http.NewResponseController(rw), least: least, window: window}
}

// extend gives the viewer another window. A writer without deadlines (a test's) has no viewer.
func (w *response) extend() {
	w.due = w.sent + w.least
	w.control.SetWriteDeadline(time.Now().Add(w.window))
}

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		if status >= 400 {
			w.Header().Set("Cache-Control", "no-store")
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.due == 0 || w.sent >= w.due { // many small writes share a window
		w.extend()
	}
	n, err := w.ResponseWriter.Write(b)
	w.wrote(int64(n), err)
	return n, err
}

// ReadFrom sends all of src.
func (w *response) ReadFrom(src io.Reader) (total int64, err error) {
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	limited, isLimited := src.(*io.LimitedReader)
	if !ok || !isLimited {
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
	left := limited.N
	for {
		w.extend()
		var n int64
		n, err = to.ReadFrom(limited)
		total += n
		// At the deadline, a viewer that took enough gets another window.
		if n < w.least || !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		limited.N = left - total
		if _, err = file.Seek(start+total, io.SeekStart); err != nil {
			break
		}
	}
	w.wrote(total, err)
	return total, err
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) wrote(n int64, err error) {
	w.status = max(w.status, 200) // an implicit header
	w.sent += n
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
// sent what the viewer's side has really accepted.
func (w *response) finish(r *http.Request) {
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
