package ledger

import (
	"strconv"
	"strings"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// maxSum is the largest number that is kept: scripts in Redis reckon with doubles, which are exact so far.
// Sums stop there. It is 9 petabytes.
const maxSum = 1<<53 - 1

// Bounds of what one line of a report may say. A line beyond them is refused.
const (
	maxLineBytes = 1 << 50
	maxLineCount = 1 << 31
	maxAhead     = 5 * time.Minute // how far a delivery's time may be ahead of the entrance's clock
)

// Other is the publisher of what did not fit into a day's account of a box (fieldsPerDay).
const Other = "other"

// Sums are what the accounts hold of one hour, publisher and stream, or of many.
type Sums struct {
	Bytes           int64 `json:"bytes"` // all that was sent, failed deliveries included
	Deliveries      int64 `json:"deliveries"`
	Failed          int64 `json:"failed"` // deliveries with status 400 or above, which are in Deliveries too
	FailedBytes     int64 `json:"failed_bytes"`
	Redirects       int64 `json:"redirects"` // viewers that publishers sent there
	RedirectedBytes int64 `json:"redirected_bytes"`
	Dropped         int64 `json:"dropped"` // deliveries that the box says it could not keep until they were counted
	DroppedBytes    int64 `json:"dropped_bytes"`
	// LateBytes came in these hours and are dated more than 24 h before: they are in Bytes of the hours
	// that they are dated.
	LateBytes int64 `json:"late_bytes"`
}

// Kinds of sums, as they stand at the end of a field's name.
const (
	kindDeliveries      = "n"
	kindBytes           = "b"
	kindFailed          = "fn"
	kindFailedBytes     = "fb"
	kindRedirects       = "rn"
	kindRedirectedBytes = "rb"
	kindDropped         = "dn"
	kindDroppedBytes    = "db"
	kindLateBytes       = "lb"
)

// of returns the sum of a kind; nil for one that this version does not know.
func (s *Sums) of(kind string) *int64 {
	switch kind {
	case kindDeliveries:
		return &s.Deliveries
	case kindBytes:
		return &s.Bytes
	case kindFailed:
		return &s.Failed
	case kindFailedBytes:
		return &s.FailedBytes
	case kindRedirects:
		return &s.Redirects
	case kindRedirectedBytes:
		return &s.RedirectedBytes
	case kindDropped:
		return &s.Dropped
	case kindDroppedBytes:
		return &s.DroppedBytes
	case kindLateBytes:
		return &s.LateBytes
	}
	return nil
}

// kinds in the order in which they are written.
var kinds = [...]string{
	kindDeliveries, kindBytes, kindFailed, kindFailedBytes, kindRedirects, kindRedirectedBytes, kindDropped, kindDroppedBytes, kindLateBytes,
}

// add adds other; no sum grows beyond maxSum in one batch, nor beyond an int64 in many.
func (s *Sums) add(other *Sums) {
	for _, kind := range kinds {
		sum := s.of(kind)
		*sum = plus(*sum, *other.of(kind))
	}
}

// plus adds b, which is not negative, up to the largest number. a may be negative.
func plus(a, b int64) int64 {
	if sum := a + b; sum >= a {
		return sum
	}
	return 1<<63 - 1
}

// cell is what sums are kept for.
type cell struct {
	hour      int64  // hours since 1970, UTC
	publisher string // an ID; "": not the path of a publisher's file; or Other
	stream    string // "": not live
}

// fields calls yield with each sum that is not 0 and its field in the hash of the day.
func (c *cell) fields(s *Sums, yield func(field string, sum int64)) {
	prefix := c.prefix()
	for _, kind := range kinds {
		if sum := min(*s.of(kind), maxSum); sum > 0 {
			yield(prefix+kind, sum)
		}
	}
}

// prefix is a field of the day's hash without its kind: 13|publisher-…|stream|
func (c *cell) prefix() string {
	hour := c.hour % 24
	return string([]byte{byte('0' + hour/10), byte('0' + hour%10)}) + "|" + c.publisher + "|" + c.stream + "|"
}

// parseField reads a field of the hash of a day; ok is false for what this version did not write.
func parseField(day int64, field string) (c cell, kind string, ok bool) {
	parts := strings.Split(field, "|")
	if len(parts) != 4 || len(parts[0]) != 2 {
		return c, "", false
	}
	hour, err := strconv.Atoi(parts[0])
	if err != nil || hour < 0 || hour > 23 {
		return c, "", false
	}
	return cell{hour: day*24 + int64(hour), publisher: parts[1], stream: parts[2]}, parts[3], true
}

func hourOf(t time.Time) int64 { return t.Unix() / 3600 }
func dayOf(hour int64) int64   { return hour / 24 }

// dayName is a day as it stands in a key: yyyymmdd.
func dayName(day int64) string { return time.Unix(day*86400, 0).UTC().Format("20060102") }

// refusal says why a line is not counted. It is a metric label.
type refusal string

const (
	refusedSize   refusal = "size"        // not a number of bytes, or an absurd one
	refusedStatus refusal = "status"      // not an HTTP status
	refusedCount  refusal = "count"       // negative or absurd
	refusedKey    refusal = "key"         // of an old box's delivery: too long
	refusedBox    refusal = "unknown_box" // redirects to a box that the entrance does not know
	refusedName   refusal = "name"        // redirects: not a box or not a stream
)

var refusals = []refusal{refusedSize, refusedStatus, refusedCount, refusedKey, refusedBox, refusedName}

// sumsOf reads the numbers of a delivery. numbered says that it is of a numbered batch: then it may stand
// for several.
func sumsOf(d *wire.Delivery, numbered bool) (s Sums, why refusal) {
	size, err := strconv.ParseInt(strings.TrimSpace(string(d.Size)), 10, 64)
	if string(d.Size) == "-" { // nginx and others write that for nothing
		size, err = 0, nil
	}
	if err != nil || size < 0 || size > maxLineBytes {
		return s, refusedSize
	}
	status, err := strconv.Atoi(strings.TrimSpace(string(d.Status)))
	if err != nil || status < 100 || status > 999 {
		return s, refusedStatus
	}
	s.Deliveries, s.Bytes = 1, size
	if numbered && d.Count != 0 {
		if d.Count < 0 || d.Count > maxLineCount {
			return s, refusedCount
		}
		s.Deliveries = d.Count
	}
	if status >= 400 {
		s.Failed, s.FailedBytes = s.Deliveries, s.Bytes
	}
	return s, ""
}

// placeOf tells from a delivery's URL whose file it was: /<publisher>/live/<stream>/… A path of another
// kind has no stream, and one that is not of a publisher no publisher either.
func placeOf(url string) (publisher, stream string) {
	rest, ok := strings.CutPrefix(url, "/")
	if !ok {
		return "", ""
	}
	publisher, rest, _ = strings.Cut(rest, "/")
	if _, err := id.ParsePublisherID(publisher); err != nil {
		return "", ""
	}
	if rest, ok = strings.CutPrefix(rest, "live/"); !ok {
		return publisher, ""
	}
	stream, _, ok = strings.Cut(rest, "/")
	if _, err := id.ParseStreamName(stream); err != nil || !ok {
		return publisher, ""
	}
	return publisher, stream
}

// hours tells the hour that a delivery is counted in: its own, where that is between arrived−keep and
// arrived+5 min, else that of its arrival.
type hours struct {
	arrived time.Time
	keep    time.Duration

	text string // the last one that was read: many in a row are alike
	hour int64
}

func (h *hours) of(datetime string) int64 {
	if datetime != h.text || h.text == "" {
		h.text, h.hour = datetime, hourOf(h.arrived)
		t, err := time.ParseInLocation(wire.DeliveryTime, datetime, time.UTC)
		if err == nil && t.After(h.arrived.Add(-h.keep)) && t.Before(h.arrived.Add(maxAhead)) {
			h.hour = hourOf(t)
		}
	}
	return h.hour
}
