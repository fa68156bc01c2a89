package report

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"dandelion/box/internal/traffic"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// reach is what an entrance found when it dialled back, and what is needed to say so in a
// sentence that helps.
type reach struct {
	verdict   string // wire.ReachableYes, wire.ReachableNo or ""
	reason    string // the entrance's words
	old       bool
	tls       bool
	host      string // public_address's, or ""
	port      int    // that others dial
	seen      netip.Addr
	local     netip.Addr
	localPort int
	advice    string // for this machine; "": it is the way to it that fails
}

// String says in one sentence whether the box is reachable and, if not, what to do.
func (r reach) String() string {
	host := r.host
	if host == "" && r.seen.IsValid() {
		host = r.seen.String()
	}
	url := "the box"
	if host != "" {
		url = base(r.tls, host, r.port)
	}
	switch {
	case r.verdict == wire.ReachableYes:
		return "reachable: " + url + " answers from outside"
	case r.verdict != wire.ReachableNo && r.old:
		return "not known: this entrance does not dial back"
	case r.verdict != wire.ReachableNo:
		return "not known yet: the entrance has not dialled back"
	}
	// The entrance's sentence ends with a cure that knows nothing of this side of the router.
	found, _, _ := strings.Cut(r.reason, ": forward TCP port")
	switch {
	case found == "":
		found = "not reachable: " + url + " does not answer from outside"
	case !strings.HasPrefix(found, "not reachable"):
		found = "not reachable: " + url + " does not answer from outside (" + found + ")"
	}
	return found + ": " + r.cure()
}

func (r reach) cure() string {
	to := net.JoinHostPort(r.local.String(), strconv.Itoa(r.localPort))
	switch {
	case r.advice != "":
		return r.advice
	case !r.local.IsValid():
		return fmt.Sprintf("let TCP port %d through", r.port)
	case r.seen.IsValid() && r.seen == r.local && r.port == r.localPort:
		// No router changes addresses on the way, so there is nothing to forward.
		return fmt.Sprintf("let TCP port %d through the firewall of this machine", r.localPort)
	case netaddr.ScopeOf(r.seen) == netaddr.Public && netaddr.ScopeOf(r.local) == netaddr.Public:
		return fmt.Sprintf("forward TCP port %d on %s to %s", r.port, r.seen, to)
	}
	return fmt.Sprintf("forward TCP port %d on your router to %s", r.port, to)
}

// Status is what the box knows of one entrance.
type Status struct {
	URL        string        `json:"url"`
	Entrance   id.EntranceID `json:"id,omitempty"`
	Configured bool          `json:"configured"` // else another entrance named it
	Connected  bool          `json:"connected"`
	Since      time.Time     `json:"since,omitzero"`      // of Connected
	LastReply  time.Time     `json:"last_reply,omitzero"` // zero: none yet
	Reachable  string        `json:"reachable"`           // "yes", "no" or "" for not known
	Sentence   string        `json:"sentence"`            // the same for people, or why there is no session
	Waiting    int           `json:"waiting_batches"`     // of deliveries that it has not acknowledged
}

// Entrances lists what is known of each entrance, ordered by URL.
func (s *Service) Entrances() []Status {
	list, feeds := s.statuses()
	for i, feed := range feeds {
		if feed != nil {
			list[i].Waiting = feed.Waiting()
		}
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.URL, b.URL) })
	return list
}

// statuses is Entrances but for what waits, and beside each entrance its feed.
func (s *Service) statuses() (list []Status, feeds []*traffic.Feed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list = make([]Status, 0, len(s.links)) // in JSON a list, also where it is empty
	for _, l := range s.links {
		st := Status{
			URL: l.url, Entrance: l.entrance, Configured: !l.learned, Connected: l.connected,
			LastReply: l.lastReply, Reachable: l.reach.verdict, Sentence: l.sentence,
		}
		switch {
		case l.connected:
			st.Since = l.since
		case l.parked:
			st.Sentence = "another URL leads to the same entrance: one session is enough"
		case l.lastError != "":
			st.Reachable, st.Sentence = "", "no session: "+l.lastError
		default:
			st.Reachable, st.Sentence = "", "connecting"
		}
		list, feeds = append(list, st), append(feeds, l.feed)
	}
	return list, feeds
}
