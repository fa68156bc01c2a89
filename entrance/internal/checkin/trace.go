package checkin

import (
	"net/http"
	"net/http/httptrace"
	"net/netip"

	"dandelion/pkg/netaddr"
)

// traced returns the request in a form that tells the address it was made to, once it was made.
func traced(req *http.Request) (*netip.Addr, *http.Request) {
	addr := new(netip.Addr)
	trace := &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { *addr = netaddr.Addr(info.Conn.RemoteAddr()) },
	}
	return addr, req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
}
