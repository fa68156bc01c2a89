package lifecycle

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"
)

// AddHTTP adds a part that serves HTTP on ln, which it closes. It drains by taking no new
// connections and finishing the requests that are under way; what is not finished within that time,
// or at the drain limit, is cut off. Within 0 is the whole drain. Hijacked connections (websockets) are their owner's to close.
func (g *Group) AddHTTP(name string, srv *http.Server, ln net.Listener, within time.Duration) {
	run := func(context.Context) error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
	drain := func(ctx context.Context) error {
		if within > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, within)
			defer cancel()
		}
		err := srv.Shutdown(ctx)
		// Shutdown knows the listener only once Serve has begun.
		ln.Close()
		if err == nil {
			return nil
		}
		srv.Close()
		return errors.New("requests under way at the drain limit were cut off")
	}
	g.Add(name, run, drain)
}
