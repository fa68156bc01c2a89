package wire

import (
	"fmt"
	"time"

	"dandelion/pkg/id"
)

// MaxPlays is the longest DURATION of a file.
const MaxPlays = time.Hour

// Terms are a grant: so many bytes per second of a box's upload for so many seconds. A publisher
// plans with no more than that; none at all is a grant too.
type Terms struct {
	Rate    int64 `json:"RATE"`
	Seconds int64 `json:"SECONDS"`
}

// Lasts is how long the terms are good for.
func (t Terms) Lasts() time.Duration {
	return time.Duration(min(max(t.Seconds, 0), 3600)) * time.Second
}

// GrantTTL is what a box grants for at a time; it says so again after a third of it, and whenever
// the rate changes.
const GrantTTL = 30 * time.Second

// Grant changes the terms, unasked.
type Grant struct {
	Peer
	Command string `json:"COMMAND"`
	Terms
}

// Demand says how many bytes per second of the box's upload the publisher could use: what its
// viewers and relays there take, and its share of what it is short of. No reply but a GRANT where
// that changes.
type Demand struct {
	Peer
	Command string `json:"COMMAND"`
	Rate    int64  `json:"RATE"`
}

// Copy asks a box to pass on a file that it holds to the boxes in Relay. They answer the publisher
// themselves; REFUSED with BOX says for which of them the sender could do nothing.
type Copy struct {
	Peer
	Command  string      `json:"COMMAND"`
	FilePath string      `json:"FILE_PATH"`
	SHA256   id.Digest   `json:"SHA256"`
	TTL      int64       `json:"TTL"` // seconds
	Duration float64     `json:"DURATION,omitzero"`
	Relay    []RelayNode `json:"RELAY"`
}

// RelayNode is a box in a tree below another one, with what it needs to be reached and to answer the
// publisher.
type RelayNode struct {
	Box       id.BoxID    `json:"BOX"`
	ConnectWS string      `json:"CONNECT_WS"` // as its EXCHANGE has it
	RequestID string      `json:"REQUEST_ID"` // with which it answers the publisher
	Old       bool        `json:"OLD,omitzero"`
	Relay     []RelayNode `json:"RELAY,omitzero"` // the boxes below it
}

// CheckRelay checks the boxes below one box: no box twice, each with a URL and a request, no more
// than MaxRelay of them in MaxRelayDepth levels, and none below an old one, which passes nothing on.
func CheckRelay(nodes []RelayNode) error {
	return checkRelay(nodes, map[id.BoxID]bool{}, 1)
}

func checkRelay(nodes []RelayNode, seen map[id.BoxID]bool, depth int) error {
	if len(nodes) > 0 && depth > MaxRelayDepth {
		return fmt.Errorf("more than %d levels", MaxRelayDepth)
	}
	for _, n := range nodes {
		if _, err := id.ParseBoxID(string(n.Box)); err != nil {
			return fmt.Errorf("BOX: %w", err)
		}
		if seen[n.Box] {
			return fmt.Errorf("%s is named twice", n.Box)
		}
		if seen[n.Box] = true; len(seen) > MaxRelay {
			return fmt.Errorf("more than %d boxes", MaxRelay)
		}
		if _, err := ParseURL(n.ConnectWS); err != nil {
			return fmt.Errorf("CONNECT_WS: %w", err)
		}
		if n.RequestID == "" || len(n.RequestID) > MaxField {
			return fmt.Errorf("REQUEST_ID of %s is missing or longer than %d bytes", n.Box, MaxField)
		}
		if n.Old && len(n.Relay) > 0 {
			return fmt.Errorf("%s is old and passes nothing on, but has boxes below it", n.Box)
		}
		if err := checkRelay(n.Relay, seen, depth+1); err != nil {
			return err
		}
	}
	return nil
}
