package traffic

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// line is what one write adds to a batch's file: the deliveries of about a second, and the position in a
// log that is behind them. It counts when its end is there, so that a write that a kill cut in two adds
// nothing.
type line struct {
	Entries  []entry `json:"d,omitzero"`
	Position string  `json:"p,omitzero"`
}

// encode returns the line with its end. Entries are as table makes them.
func (l *line) encode() ([]byte, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("traffic journal: %w", err)
	}
	return append(b, '\n'), nil
}

var errEntry = errors.New("traffic journal: not what this program writes")

// lastSecond is the last unix second of the year 9999.
const lastSecond = 253402300799

// decodeLine reads what encode made, without its end.
func decodeLine(b []byte) (l line, err error) {
	if err := json.Unmarshal(b, &l, json.RejectUnknownMembers(true)); err != nil {
		return line{}, fmt.Errorf("%w: %w", errEntry, err)
	}
	for i := range l.Entries {
		if !l.Entries[i].valid() {
			return line{}, errEntry
		}
	}
	return l, nil
}

func (e *entry) valid() bool {
	const most = 1 << 60 // sums of some stay in range
	return e.Time >= 0 && e.Time <= lastSecond && e.Status >= 0 && e.Status <= 999 &&
		e.Count > 0 && e.Count < most && e.Bytes >= 0 && e.Bytes < most &&
		len(e.URL) <= maxURL && isPrintable(e.URL) && (e.URL == "/" || publisherOf(e.URL) != "")
}

// readLines calls yield with each whole line from the beginning up to the first that is not, and returns
// how many bytes these are. It stops early when yield returns false, without counting that line.
func readLines(content []byte, yield func(line) bool) (whole int) {
	for {
		end := bytes.IndexByte(content[whole:], '\n')
		if end < 0 {
			return whole
		}
		l, err := decodeLine(content[whole : whole+end])
		if err != nil || !yield(l) {
			return whole
		}
		whole += end + 1
	}
}
