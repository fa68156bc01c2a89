package config

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// Duration is a time span of a setting, written with its unit: "20s", "5m", "1h30m", "250ms".
// Its text is that of time.ParseDuration; it is never negative.
type Duration time.Duration

// Durations for defaults and limits.
const (
	Millisecond = Duration(time.Millisecond)
	Second      = Duration(time.Second)
	Minute      = Duration(time.Minute)
	Hour        = Duration(time.Hour)
)

const wantDuration = "a duration with its unit, such as 20s, 5m or 1h30m"

// Std returns the duration as the standard library's.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes the duration without parts that are zero: "1h30m", not "1h30m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a duration. A number without a unit is an error, as is one below zero or
// above 292 years.
func (d *Duration) UnmarshalText(text []byte) error {
	s := string(text)
	parsed, err := time.ParseDuration(s)
	switch {
	case isNumber(s) && len(s) > maxNumber:
		return &FieldError{Problem: "is " + quoted(s) + ", without a unit", Want: wantDuration}
	case isNumber(s):
		return &FieldError{Problem: fmt.Sprintf("is %s, without a unit: seconds would be %ss", s, s), Want: wantDuration}
	case err != nil:
		return &FieldError{Problem: "is " + quoted(s), Want: wantDuration}
	case parsed < 0:
		return &FieldError{Problem: "is " + s + ", below zero", Want: wantDuration}
	}
	*d = Duration(parsed)
	return nil
}

// ByteSize is a number of bytes, written with a decimal or a binary unit: "8GB" is 8·10⁹,
// "8GiB" is 8·2³⁰. It is never negative and at most 2⁶³−1.
type ByteSize int64

// Sizes for defaults and limits.
const (
	KB ByteSize = 1e3
	MB ByteSize = 1e6
	GB ByteSize = 1e9

	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
)

const wantByteSize = "a size such as 8GB, 512MB, 64KB or 1.5GiB"

// byteUnits are the units of a ByteSize, the largest first.
var byteUnits = []unit{
	{"PiB", 1 << 50},
	{"PB", 1e15},
	{"TiB", 1 << 40},
	{"TB", 1e12},
	{"GiB", 1 << 30},
	{"GB", 1e9},
	{"MiB", 1 << 20},
	{"MB", 1e6},
	{"KiB", 1 << 10},
	{"KB", 1e3},
	{"B", 1},
}

// String writes the size in the unit that makes it shortest while exact.
func (b ByteSize) String() string { return format(int64(b), byteUnits) }

// MarshalText writes what UnmarshalText reads.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads a size; a plain whole number is bytes. Units may be in either case;
// fractions are rounded to a byte.
func (b *ByteSize) UnmarshalText(text []byte) error {
	s := string(text)
	n, err := parse(s, byteUnits, true)
	if err != nil {
		return &FieldError{Problem: "is " + quoted(s) + err.Error(), Want: wantByteSize}
	}
	*b = ByteSize(n)
	return nil
}

// BitRate is a number of bits per second, written with its unit: "2Mbit/s", "300kbit/s".
// Units are decimal. It is never negative.
type BitRate int64

// Rates for defaults and limits.
const (
	Kbit BitRate = 1e3
	Mbit BitRate = 1e6
	Gbit BitRate = 1e9
)

const wantBitRate = "a rate in bits, such as 300kbit/s, 2Mbit/s or 1.5Gbit/s"

var bitUnits = []unit{
	{"Tbit/s", 1e12},
	{"Gbit/s", 1e9},
	{"Mbit/s", 1e6},
	{"kbit/s", 1e3},
	{"bit/s", 1},
}

// BytesPerSecond returns the rate in bytes per second, rounded down.
func (r BitRate) BytesPerSecond() int64 { return int64(r) / 8 }

// String writes the rate in the unit that makes it shortest while exact.
func (r BitRate) String() string { return format(int64(r), bitUnits) }

// MarshalText writes what UnmarshalText reads.
func (r BitRate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a rate. A number without a unit is an error, and so are bytes.
func (r *BitRate) UnmarshalText(text []byte) error {
	s := string(text)
	n, err := parse(s, bitUnits, false)
	if err != nil {
		return &FieldError{Problem: "is " + quoted(s) + err.Error(), Want: wantBitRate}
	}
	*r = BitRate(n)
	return nil
}

type unit struct {
	name string
	size int64
}

// maxNumber is how many characters a number may have, its unit not counted.
const maxNumber = 32

// parse reads a decimal number and a unit, with or without a space between. Its errors are ends
// of a sentence that already has the value.
func parse(s string, units []unit, plain bool) (int64, error) {
	end := strings.LastIndexAny(s, "0123456789.") + 1
	number, name := s[:end], strings.TrimPrefix(s[end:], " ")
	size := int64(0)
	for _, u := range units {
		if strings.EqualFold(u.name, name) {
			size = u.size
		}
	}
	switch {
	case strings.HasPrefix(number, "-") && isNumber(number[1:]):
		return 0, errors.New(", below zero")
	case !isNumber(number) || len(number) > maxNumber:
		return 0, errors.New("")
	case name == "" && plain && !strings.Contains(number, "."):
		size = 1
	case name == "":
		return 0, errors.New(", without a unit")
	case size == 0:
		return 0, errors.New(", with an unknown unit")
	}
	exact, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, errors.New("")
	}
	exact.Mul(exact, new(big.Rat).SetInt64(size))
	exact.Add(exact, big.NewRat(1, 2)) // so that rounding down below rounds to the nearest
	whole := new(big.Int).Quo(exact.Num(), exact.Denom())
	if !whole.IsInt64() {
		return 0, fmt.Errorf(", more than %d", int64(math.MaxInt64))
	}
	return whole.Int64(), nil
}

// isNumber reports whether s is digits with at most one point between or after them.
func isNumber(s string) bool {
	whole, fraction, _ := strings.Cut(s, ".")
	for _, c := range whole + fraction {
		if c < '0' || c > '9' {
			return false
		}
	}
	return whole != ""
}

// format writes n in the unit that gives the shortest exact text with at most two decimals; of
// two equally short ones in the larger unit.
func format(n int64, units []unit) string {
	best := ""
	for _, u := range units {
		hundredths := new(big.Int).Mul(big.NewInt(n), big.NewInt(100))
		remainder := new(big.Int)
		hundredths.QuoRem(hundredths, big.NewInt(u.size), remainder)
		if n < u.size || remainder.Sign() != 0 {
			continue
		}
		number := big.NewRat(0, 1).SetFrac(hundredths, big.NewInt(100)).FloatString(2)
		number = strings.TrimSuffix(strings.TrimRight(number, "0"), ".")
		if s := number + u.name; best == "" || len(s) < len(best) {
			best = s
		}
	}
	if best == "" { // zero
		best = strconv.FormatInt(n, 10) + units[len(units)-1].name
	}
	return best
}
