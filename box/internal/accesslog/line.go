package accesslog

import (
	"bytes"
	"errors"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Delivery is one line of the log: a request of a viewer and what it was answered.
type Delivery struct {
	Time    time.Time // the end of the answer, to the millisecond; zero: the line does not say (old format)
	Method  string    // "": of what was no HTTP request
	URL     string    // as it was asked for, escaped, with its query; "" likewise
	Status  int
	Bytes   int64      // of the body, handed to the kernel; of an old line: with the headers
	Viewer  netip.Addr // zero: the line does not say (old format)
	Aborted bool       // the viewer left before the end; an old line does not say
}

var errGarbage = errors.New("not a line of the access log")

// opening is how each line of the format dandelion begins. Quotes in values are escaped, so it stands
// nowhere else in a line.
const opening = `{"time":`

// Parse reads a line, without its end, of the format dandelion (docs/operations.md, "Behind a web
// server") or of the old one, `"$request"-$status-$bytes_sent`. Of a line that was cut when nginx died, and that
// the next one was appended to, it reads that next one. The result keeps nothing of line.
func Parse(line []byte) (Delivery, error) {
	if at := bytes.LastIndex(line, []byte(opening)); at >= 0 {
		return parse(line[at:])
	}
	return parseOld(line)
}

// logged is a line of the format dandelion. Operators may add fields.
type logged struct {
	Time       float64 `json:"time"` // unix seconds
	Viewer     string  `json:"viewer"`
	Method     string  `json:"method"`
	URI        string  `json:"uri"`
	Status     string  `json:"status"` // text: nginx writes 000 where nothing was answered
	Bytes      int64   `json:"bytes"`
	Completion string  `json:"completion"` // "OK", or empty
}

const (
	maxTime  = 1e11    // unix seconds: the year 5138
	maxBytes = 1 << 50 // no answer is as long; entrances refuse more
)

func parse(line []byte) (d Delivery, err error) {
	l := logged{Bytes: -1}
	if err := json.Unmarshal(line, &l, jsontext.AllowInvalidUTF8(true)); err != nil {
		return d, errGarbage
	}
	if l.Bytes < 0 || l.Bytes > maxBytes || !(l.Time > 0 && l.Time < maxTime) {
		return d, errGarbage
	}
	if d.Status, err = parseStatus(l.Status); err != nil {
		return d, err
	}
	d.Time = time.UnixMilli(int64(math.Round(l.Time * 1000)))
	d.Method, d.URL, d.Bytes = l.Method, l.URI, l.Bytes
	d.Aborted = l.Completion != "OK"
	if addr, err := netip.ParseAddr(l.Viewer); err == nil { // a Unix socket has none
		d.Viewer = addr.Unmap().WithZone("")
	}
	return d, nil
}

// parseOld reads from the end: what was cut in front of the line is no part of it.
func parseOld(line []byte) (d Delivery, err error) {
	end := bytes.LastIndexByte(line, '"')
	if end < 0 {
		return d, errGarbage
	}
	start := bytes.LastIndexByte(line[:end], '"')
	status, size, ok := strings.Cut(strings.TrimPrefix(string(line[end+1:]), "-"), "-")
	if start < 0 || !ok || line[min(end+1, len(line)-1)] != '-' {
		return d, errGarbage
	}
	if d.Status, err = parseStatus(status); err != nil {
		return d, err
	}
	if d.Bytes, err = strconv.ParseInt(size, 10, 64); err != nil || d.Bytes < 0 || d.Bytes > maxBytes {
		return d, errGarbage
	}
	method, rest, ok := strings.Cut(unescapeOld(string(line[start+1:end])), " ")
	if !ok { // "-", or empty: nginx understood no request
		return d, nil
	}
	d.Method = method
	d.URL = rest
	if at := strings.LastIndex(rest, " HTTP/"); at >= 0 {
		d.URL = rest[:at]
	}
	return d, nil
}

// unescapeOld undoes nginx's default escape: \xHH.
func unescapeOld(s string) string {
	if !strings.Contains(s, `\x`) {
		return s
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, `\x`)
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		s = after
		if c, err := strconv.ParseUint(s[:min(2, len(s))], 16, 8); err == nil && len(s) >= 2 {
			b.WriteByte(byte(c))
			s = s[2:]
		} else {
			b.WriteString(`\x`)
		}
	}
}

func parseStatus(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || len(s) != 3 {
		return 0, errGarbage
	}
	return int(n), nil
}
