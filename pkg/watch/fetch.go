package watch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	maxSegment   = 256 << 20 // bytes of a body; larger ones are no segments
	maxRedirects = 10
	maxRefusal   = 4 << 10 // bytes of a refusal that are read so that its connection stays
)

var (
	errLate      = errors.New("too late")
	errSilent    = errors.New("silent")
	errSlow      = errors.New("too slow")
	errRedirects = fmt.Errorf("more than %d redirects", maxRedirects)
)

// load is one attempt at one URL and what came of it.
type load struct {
	url, span string        // span: of bytes, "0-99"; "" all
	firstByte time.Duration // limits
	whole     time.Duration
	silence   time.Duration // 0: none
	plays     time.Duration // that the body may take at its mean rate, judged
	judged    time.Duration // from so long after its first byte on; 0: never
	most      int64         // bytes
	to        io.Writer     // the body

	began, first time.Time // first: when the headers came
	last         time.Time // when the last part of the body came, or the headers
	from         *url.URL  // who answered, or should have
	hops         int
	n            int64
}

// failure is why a load failed.
type failure struct {
	cause    Cause
	timeout  bool
	refused  bool      // with 4xx, or broken off
	since    time.Time // when it began to hurt
	host     string
	hopeless bool // another attempt would bring the same
	err      error
}

func (f *failure) Error() string { return f.err.Error() }

// loadKey finds the load of a request that is redirected.
type loadKey struct{}

// newTransport has a viewer's connections, which it shares with no other viewer.
func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{}).DialContext,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 4,
		MaxIdleConns:        64,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // segments do not shrink, and their length must be known
	}
}

func follow(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return errRedirects
	}
	if l, ok := req.Context().Value(loadKey{}).(*load); ok {
		l.from = req.URL
		l.hops++
	}
	return nil
}

// buffers for bodies: a viewer holds one only while it reads.
var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// do makes the attempt. It returns within l.whole, or with ctx.
func (l *load) do(ctx context.Context, client *http.Client, agent string) *failure {
	l.began = time.Now()
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, loadKey{}, l))
	defer cancel(nil)
	timer := time.AfterFunc(min(l.firstByte, l.whole), func() { cancel(errLate) })
	defer timer.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url, nil)
	if err != nil {
		return &failure{cause: CauseStatus, since: l.began, err: err, hopeless: true}
	}
	l.from = req.URL
	if agent != "" {
		req.Header.Set("User-Agent", agent)
	}
	if l.span != "" {
		req.Header.Set("Range", "bytes="+l.span)
	}
	resp, err := client.Do(req)
	if err != nil {
		return l.failed(ctx, l.began, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		_, _ = io.CopyN(io.Discard, resp.Body, maxRefusal)
		return &failure{
			cause: CauseStatus, since: l.began, host: hostPort(l.from), refused: resp.StatusCode >= 400 && resp.StatusCode < 500,
			err: fmt.Errorf("%s answered %s", hostPort(l.from), resp.Status),
		}
	}
	l.first = time.Now()
	l.last = l.first
	if timer.Stop() {
		timer.Reset(max(l.whole-l.first.Sub(l.began), 0))
	}
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	body := &body{Reader: resp.Body, load: l, total: resp.ContentLength}
	if l.silence > 0 {
		body.silence = time.AfterFunc(l.silence, func() { cancel(errSilent) })
		defer body.silence.Stop()
	}
	l.n, err = io.CopyBuffer(l.to, io.LimitReader(body, l.most+1), buf[:])
	switch {
	case errors.Is(err, errSlow), err != nil && errors.Is(context.Cause(ctx), errLate):
		return l.failed(ctx, l.began, err)
	case err != nil && errors.Is(context.Cause(ctx), errSilent):
		return l.failed(ctx, l.last, err)
	case err != nil:
		return l.failed(ctx, time.Now(), err)
	case l.n > l.most:
		return &failure{
			cause: CauseStatus, since: l.began, host: hostPort(l.from), hopeless: true,
			err: fmt.Errorf("%s sent more than %d bytes", hostPort(l.from), l.most),
		}
	}
	return nil
}

func (l *load) failed(ctx context.Context, since time.Time, err error) *failure {
	f := &failure{cause: CauseReset, since: since, host: hostPort(l.from), refused: true, err: err}
	switch {
	case errors.Is(err, errSlow):
		f.cause, f.timeout, f.refused = CauseSlow, true, false
		f.err = fmt.Errorf("%s sends a segment of %v too slowly: %d bytes in %v", f.host, l.plays, l.n, time.Since(l.first))
	case errors.Is(context.Cause(ctx), errSilent):
		f.cause, f.timeout, f.refused = CauseSilent, true, false
		f.err = fmt.Errorf("%s sent no further byte within %v", f.host, l.silence)
	case errors.Is(context.Cause(ctx), errLate):
		f.cause, f.timeout, f.refused = CauseSilent, true, false
		f.err = fmt.Errorf("%s sent nothing within %v", f.host, l.firstByte)
		if !l.first.IsZero() {
			f.err = fmt.Errorf("%s did not send all within %v", f.host, l.whole)
		}
	case errors.Is(err, errRedirects):
		f.cause, f.refused = CauseStatus, false
	}
	return f
}

// body watches how the bytes of a load come.
type body struct {
	io.Reader
	load    *load
	total   int64       // as announced; 0 or less: not known
	n       int64       // so far
	silence *time.Timer // nil: no limit
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if n == 0 {
		return n, err
	}
	b.n += int64(n)
	b.load.last = time.Now()
	if b.silence != nil {
		b.silence.Reset(b.load.silence)
	}
	if err == nil && b.load.slow(b.n, b.total, b.load.last.Sub(b.load.first)) {
		return n, errSlow
	}
	return n, err
}

// slow says whether a body of which n bytes came in the time since its first should be had from
// somebody else. What has nearly come is waited for, whatever it took.
func (l *load) slow(n, total int64, took time.Duration) bool {
	if l.judged == 0 || took < l.judged || total <= 0 {
		return false
	}
	left := time.Duration(float64(took) * float64(total-n) / float64(n))
	return took+left > l.plays && left > l.plays/2
}

// hostPort names a host, always with a port.
func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "https":
		port = "443"
	default:
		port = "80"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func resolve(base *url.URL, ref string) (*url.URL, error) {
	u, err := base.Parse(ref)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s is no http or https URL", u.Redacted())
	}
	return u, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
