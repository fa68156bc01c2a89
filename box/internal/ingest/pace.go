package ingest

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// pace ends a connection whose message comes too slowly. The connection's own deadlines cannot:
// they move with each sign of life, and a hostile peer may send one byte, or a ping between two parts
// of a message, for ever. So a timer looks, and closes the connection under the reader.
type pace struct {
	r      io.Reader
	began  time.Time
	limits *Limits
	abort  func()

	n       atomic.Int64
	content atomic.Bool // the headers are there; from then on Grace and MinRate hold
	late    atomic.Bool
	ended   atomic.Bool
	timer   *time.Timer
}

var errTooSlow = errors.New("it comes too slowly")

// paced watches a message that begins now. The caller calls stop when it is done with it.
func (ses *session) paced(r io.Reader) *pace {
	p := &pace{r: r, began: time.Now(), limits: &ses.s.cfg.Limits, abort: ses.conn.Abort}
	p.timer = time.AfterFunc(time.Hour, p.look)
	p.timer.Reset(p.limits.Header) // look uses the field
	return p
}

func (p *pace) stop() {
	p.ended.Store(true)
	p.timer.Stop()
}

// look is called when something is due.
func (p *pace) look() {
	if p.ended.Load() {
		return
	}
	if p.tooSlow(time.Since(p.began)) {
		p.late.Store(true)
		p.abort()
		return
	}
	p.timer.Reset(max(p.limits.Grace/16, time.Millisecond))
}

// tooSlow reports whether what has come in that time is too little.
func (p *pace) tooSlow(elapsed time.Duration) bool {
	if !p.content.Load() {
		return elapsed >= p.limits.Header
	}
	over := elapsed - p.limits.Grace
	return over > 0 && float64(p.n.Load()) < over.Seconds()*float64(p.limits.MinRate)
}

func (p *pace) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.n.Add(int64(n))
	if err != nil && err != io.EOF && p.late.Load() {
		err = errTooSlow
	}
	return n, err
}
