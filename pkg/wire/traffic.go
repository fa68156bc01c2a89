package wire

import (
	"fmt"

	"dandelion/pkg/id"
)

// Mark identifies a batch of accounts of one sender: its Seq is the number of the batch among those of
// Boot, which names one life of the sender's process and is 16 hex digits. Batches of a boot are
// numbered from 1, and one that was sent is never sent with other contents. An entrance counts a batch
// of a boot only if its Seq is above the last one that it counted of that boot.
type Mark struct {
	Boot string `json:"BOOT"`
	Seq  int64  `json:"SEQ"`
}

// Check reports what is wrong with a mark from outside.
func (m Mark) Check() error {
	if len(m.Boot) != 16 {
		return fmt.Errorf("BOOT %s is not 16 hex digits", id.Quote(m.Boot))
	}
	for _, c := range []byte(m.Boot) {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return fmt.Errorf("BOOT %s is not 16 hex digits", id.Quote(m.Boot))
		}
	}
	if m.Seq < 1 {
		return fmt.Errorf("SEQ %d is not 1 or more", m.Seq)
	}
	return nil
}

// Traffic is the TRAFFIC of an EXCHANGE: the mark of the deliveries that are in it, all of one batch, and
// what the sender could not keep for this entrance. Boxes with FeatureTraffic send it whenever there
// are deliveries.
type Traffic struct {
	Mark
	// DroppedBytes and DroppedCount are what the batches held that the box had to drop before this
	// entrance acknowledged them; since Boot began.
	DroppedBytes int64 `json:"DROPPED_BYTES,omitzero"`
	DroppedCount int64 `json:"DROPPED_COUNT,omitzero"`
}

// Counted acknowledges a batch: it is in the entrance's accounts, or was already, and that is durable.
type Counted struct {
	Peer
	Command string `json:"COMMAND"`
	Mark
}

// Redirects says how a publisher with FeatureTraffic sent its viewers to boxes since the batch before.
// The entrance answers with Counted.
type Redirects struct {
	Peer
	Command string `json:"COMMAND"`
	Mark
	Boxes []Redirected `json:"BOXES"` // at most MaxRedirects
}

// MaxRedirects is how many entries one REDIRECTS has at most.
const MaxRedirects = 1000

// Redirected is what viewers of one stream were sent to one box for.
type Redirected struct {
	Box    id.BoxID      `json:"BOX"`
	Stream id.StreamName `json:"STREAM,omitzero"` // "": files that are not live
	Count  int64         `json:"COUNT"`
	Bytes  int64         `json:"BYTES"` // sizes of what they asked for
}
