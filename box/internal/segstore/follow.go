package segstore

import (
	"errors"
	"io"
	"os"
	"sync"
)

// arrival is how far a file has come, for those who pass it on meanwhile.
type arrival struct {
	mu      sync.Mutex
	n       int64 // bytes that can be read
	over    bool
	err     error         // why it was not committed
	changed chan struct{} // closed when any of that changed
}

var errCancelled = errors.New("the file was not stored")

func (a *arrival) reached(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n = n
	a.notify()
}

func (a *arrival) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// arrive tells who follows how the file ended, once.
func (w *Writer) arrive(err error) {
	a := w.arrival
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over {
		a.n, a.over, a.err = w.n, true, err
		a.notify()
	}
}

// Follow returns a reader of the file that yields its bytes as they arrive, for whoever passes it on. It is
// called before the first byte is written; the reader is for one goroutine, as fast or slow as it
// likes, also when the writer has ended. The last byte comes only after Commit found the
// digest right; what is not committed ends with an error, so that nobody takes it for whole. A Read that
// waits ends when the reader is closed.
func (w *Writer) Follow() (io.ReadCloser, error) {
	file, err := w.d.root.Open(w.name)
	if err != nil {
		return nil, w.asRefusal(err)
	}
	if w.arrival == nil {
		w.arrival = &arrival{changed: make(chan struct{})}
	}
	return &follower{file: file, arrival: w.arrival, closed: make(chan struct{})}, nil
}

type follower struct {
	file    *os.File
	arrival *arrival
	at      int64
	closed  chan struct{}
	once    sync.Once
}

func (f *follower) Read(b []byte) (int, error) {
	there, err := f.await()
	if err != nil {
		return 0, err
	}
	n, err := f.file.Read(b[:min(int64(len(b)), there)])
	f.at += int64(n)
	return n, err
}

// await returns how many more bytes can be read, at least one; io.EOF behind the last.
func (f *follower) await() (int64, error) {
	for {
		f.arrival.mu.Lock()
		n, over, err, changed := f.arrival.n, f.arrival.over, f.arrival.err, f.arrival.changed
		f.arrival.mu.Unlock()
		if !over {
			n-- // the last byte so far may be the last one of all
		}
		switch {
		case over && err != nil:
			return 0, err
		case n > f.at:
			return n - f.at, nil
		case over:
			return 0, io.EOF
		}
		select {
		case <-changed:
		case <-f.closed:
			return 0, os.ErrClosed
		}
	}
}

// Close may be called from any goroutine.
func (f *follower) Close() (err error) {
	f.once.Do(func() {
		close(f.closed)
		err = f.file.Close()
	})
	return err
}
