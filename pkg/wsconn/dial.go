package wsconn

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/pkg/netaddr"
)

const handshakeTimeout = 10 * time.Second

// Dialing says how Dial connects.
type Dialing struct {
	// Least is the narrowest scope of address that may be dialled. Forbidden ones never are.
	Least netaddr.Scope
	// Files gives the connection a large write buffer, for a sender of files.
	Files bool
	// Paced gives a sender of files a smaller one, so that bytes leave soon after they were written.
	Paced bool
	// InsecureTLS accepts any certificate: only for an entrance that the configuration names.
	InsecureTLS bool
}

// Dial connects to a websocket whose URL begins with http or https, as the wire has it.
func Dial(ctx context.Context, rawURL string, how Dialing) (*Conn, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", rawURL, err)
	}
	switch u.Scheme {
	case "http":
		u.Scheme = "ws"
	case "https":
		u.Scheme = "wss"
	default:
		return nil, fmt.Errorf("dialling %s: want an http or https URL", rawURL)
	}
	d := websocket.Dialer{
		NetDialContext:   netaddr.Dialer(how.Least, handshakeTimeout).DialContext,
		HandshakeTimeout: handshakeTimeout,
		ReadBufferSize:   readBuffer,
		WriteBufferSize:  writeBuffer,
		WriteBufferPool:  smallWrites,
		TLSClientConfig:  &tls.Config{InsecureSkipVerify: how.InsecureTLS},
	}
	switch {
	case how.Paced:
		d.WriteBufferSize, d.WriteBufferPool = pacedWriteBuffer, pacedWrites
	case how.Files:
		d.WriteBufferSize, d.WriteBufferPool = fileWriteBuffer, fileWrites
	}
	ws, resp, err := d.DialContext(ctx, u.String(), nil)
	if resp != nil && resp.Body != nil {
		defer resp.Body.Close()
	}
	if err != nil {
		if resp != nil {
			return nil, fmt.Errorf("dialling %s: %w: the server answered %s", rawURL, err, resp.Status)
		}
		return nil, fmt.Errorf("dialling %s: %w", rawURL, err)
	}
	return newConn(ws, netaddr.Addr(ws.RemoteAddr())), nil
}

// Backoff counts failures and says how long to wait after each: from Min doubling to Max, each
// with jitter between a half and the whole, so that a fleet does not return in step. Not for
// concurrent use.
type Backoff struct {
	Min, Max time.Duration
	failures int
}

// Next counts a failure and returns the time to wait.
func (b *Backoff) Next() time.Duration {
	wait := b.Max
	if b.failures < 32 && b.Min<<b.failures < b.Max {
		wait = b.Min << b.failures
	}
	b.failures++
	return wait/2 + rand.N(wait/2+1)
}

// Reset forgets the failures, after a success.
func (b *Backoff) Reset() { b.failures = 0 }

// Wait sleeps for Next or until ctx ends; it returns ctx's error.
func (b *Backoff) Wait(ctx context.Context) error {
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
