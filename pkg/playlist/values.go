package playlist

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxDuration is the longest segment that is taken.
const MaxDuration = 24 * time.Hour

// Duration is the duration of a segment, as its encoder wrote it.
type Duration struct {
	Text  string        // decimal seconds, "6.006000"
	Value time.Duration // the same, exact to the nanosecond
}

// ParseDuration reads decimal seconds: digits, and perhaps a point and more digits.
func ParseDuration(s string) (Duration, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	if whole+fraction == "" || !digits(whole) || !digits(fraction) {
		return Duration{}, fmt.Errorf("%s is not a duration in seconds", quote(s))
	}
	seconds, err := strconv.ParseUint("0"+whole, 10, 64)
	if err != nil || seconds > uint64(MaxDuration/time.Second) {
		return Duration{}, fmt.Errorf("%s seconds are more than %v", quote(s), MaxDuration)
	}
	nanos, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 64)
	if err != nil {
		return Duration{}, fmt.Errorf("%s is not a duration in seconds", quote(s))
	}
	return Duration{Text: s, Value: time.Duration(seconds)*time.Second + time.Duration(nanos)}, nil
}

// NewDuration writes d in seconds with as many digits as it needs. A negative d is 0.
func NewDuration(d time.Duration) Duration {
	d = max(d, 0)
	text := strconv.FormatInt(int64(d/time.Second), 10)
	if rest := d % time.Second; rest > 0 {
		text += strings.TrimRight(fmt.Sprintf(".%09d", int64(rest)), "0")
	}
	return Duration{Text: text, Value: d}
}

// Rounded returns the duration in whole seconds, as TARGETDURATION is compared with it.
func (d Duration) Rounded() int { return int((d.Value + time.Second/2) / time.Second) }

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// Range is a part of a file: Length bytes from Offset.
type Range struct {
	Length int64 `json:"length"`
	Offset int64 `json:"offset"`
}

// parseRange reads "n[@o]"; hasOffset is false where o is absent.
func parseRange(s string) (r Range, hasOffset bool, err error) {
	length, offset, hasOffset := strings.Cut(strings.TrimSpace(s), "@")
	bad := fmt.Errorf("%s is not a byte range: want length@offset", quote(s))
	if r.Length, err = strconv.ParseInt(length, 10, 64); err != nil || r.Length <= 0 {
		return Range{}, false, bad
	}
	if hasOffset {
		if r.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil || r.Offset < 0 {
			return Range{}, false, bad
		}
	}
	if r.Offset+r.Length < 0 {
		return Range{}, false, bad
	}
	return r, hasOffset, nil
}

func (r Range) String() string {
	return strconv.FormatInt(r.Length, 10) + "@" + strconv.FormatInt(r.Offset, 10)
}
