package lifecycle

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// AddHTTP adds a part that serves HTTP on ln, which it closes. It drains by taking no new
// connections and finishing the requests that are under way; what is not finished at the drain
// limit is cut off. Hijacked connections (websockets) are their owner's to close.
func (g *Group) AddHTTP(name string, srv *http.Server, ln net.Listener) {
	run := func(context.Context) error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
	drain := func(ctx context.Context) error {
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
