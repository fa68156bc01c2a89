package watch

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// Kinds of events.
const (
	EventStart        = "start"         // Seconds: from the viewer's start until it played
	EventStall        = "stall"         // Seconds: until the buffer had something again, or the watching ended
	EventFailover     = "failover"      // Seconds: until the first byte of the attempt that succeeded
	EventMissed       = "missed"        // Seconds: of media; Cause: as below, or "gap" or "window"
	EventCorrupt      = "corrupt"       // Seconds: of media
	EventDuplicated   = "duplicated"    // Seconds: of media; Cause: "uri" played before, or "bytes" as the segment before
	EventLostPlaylist = "lost_playlist" // Seconds: until it could be loaded again; Cause: as below, or "format" or "sequence"
)

// Cause is why a load failed.
type Cause string

// Causes of failovers. The others are of events alone.
const (
	CauseReset  Cause = "reset"  // reset, refused, or ended before its end
	CauseSilent Cause = "silent" // no first or no further byte in time, or not whole in time
	CauseSlow   Cause = "slow"   // it came slower than it plays
	CauseStatus Cause = "status" // an HTTP status, or redirects without end

	causeFormat   Cause = "format"   // what came is no playlist
	causeSequence Cause = "sequence" // MEDIA-SEQUENCE fell: the stream began anew
	causeGap      Cause = "gap"      // EXT-X-GAP
	causeWindow   Cause = "window"   // it left the playlist before it was asked for
	causeURI      Cause = "uri"
	causeBytes    Cause = "bytes"
)

// Causes are those of failovers.
var Causes = []Cause{CauseReset, CauseSilent, CauseSlow, CauseStatus}

// Event is something that a viewer would notice, told when it is over. The names of its JSON
// are an interface.
type Event struct {
	Time    time.Time `json:"time"` // of the beginning
	Viewer  int       `json:"viewer"`
	Event   string    `json:"event"`
	Seconds float64   `json:"seconds"`
	Cause   Cause     `json:"cause"`
	From    string    `json:"from"` // host:port that failed, or that sent the bytes
	To      string    `json:"to"`   // host:port that took over
	URL     string    `json:"url"`
}

// eventLog writes events as JSON lines, each at once. Any goroutine.
type eventLog struct {
	mu  sync.Mutex
	out io.Writer
	err error // the first; nothing is written after it
}

func (l *eventLog) write(e Event) {
	b, err := json.Marshal(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	if err == nil {
		_, err = l.out.Write(append(b, '\n'))
	}
	if err != nil {
		l.err = fmt.Errorf("the events could not be written: %w", err)
	}
}

func (l *eventLog) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
