// Package access is the one place that decides who may do what: every HTTP handler and websocket
// command names its Action and asks here. It knows addresses only, and must not know what the
// actions do; roles will be added here without touching handlers.
package access

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"dandelion/pkg/httperr"
)

// Action is something that somebody wants to do.
type Action uint8

// The actions, and who may do them now.
const (
	ViewStream  Action = iota + 1 // playlists, segments, where they are, the player: everybody
	PeerSession                   // a peer's websocket session and index page: everybody
	ReadAPI                       // the JSON API and pages that name boxes and people: this machine
	Upload                        // handing in files to be placed: this machine
	Debug                         // metrics, profiles, health: this machine
	actionCount = iota + 1
)

// rules is what Allow decides by. An action without a rule is refused.
var rules = [actionCount]struct {
	name     string
	everyone bool
}{
	ViewStream:  {name: "viewing streams", everyone: true},
	PeerSession: {name: "a peer's session", everyone: true},
	ReadAPI:     {name: "the API"},
	Upload:      {name: "uploading"},
	Debug:       {name: "debugging"},
}

// String names the action as errors do: "uploading".
func (a Action) String() string {
	if a == 0 || int(a) >= len(rules) {
		return fmt.Sprintf("action %d", uint8(a))
	}
	return rules[a].name
}

// Denied is the error of a refused action. Its text may be shown to whoever asked.
type Denied struct {
	Action Action
	Reason string
}

func (d *Denied) Error() string { return d.Action.String() + " is not allowed: " + d.Reason }

const onlyLoopback = "only programs on this machine may, through its loopback address"

// Allow decides whether who speaks from remote may do it: nil, or a *Denied. The zero Addr is
// somebody unknown, who may do what everybody may.
func Allow(action Action, remote netip.Addr) error {
	if action == 0 || int(action) >= len(rules) {
		return &Denied{action, "nobody is"}
	}
	if rules[action].everyone || remote.Unmap().IsLoopback() {
		return nil
	}
	return &Denied{action, onlyLoopback}
}

// Check decides whether a request may do it: nil, or an *httperr.Error with status 403 whose
// cause is a *Denied. trusted are the proxies whose word about the client counts (ClientAddr).
//
// What only this machine may do, a browser on it must not do for a page from elsewhere: the
// request must name this machine by an address or as localhost (or else a name that an attacker
// points here would do), and must not be a write that another site caused.
func Check(r *http.Request, action Action, trusted []netip.Prefix) error {
	err := Allow(action, ClientAddr(r, trusted))
	if err == nil && !everyoneMay(action) {
		err = fromThisMachine(r, action)
	}
	if err != nil {
		return httperr.New(http.StatusForbidden, err.Error(), err)
	}
	return nil
}

func everyoneMay(action Action) bool { return Allow(action, netip.Addr{}) == nil }

func fromThisMachine(r *http.Request, action Action) error {
	if !namesThisMachine(r.Host) {
		return &Denied{action, "the request names a host other than this machine's address or localhost"}
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return &Denied{action, "another site's page asked for it"}
	}
	return nil
}

func namesThisMachine(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	host = strings.ToLower(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}
