package config

import (
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

func TestDuration(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		d      time.Duration
		string string // empty: text
	}{
		"20s":      {d: 20 * time.Second},
		"5m":       {d: 5 * time.Minute},
		"10m":      {d: 10 * time.Minute},
		"1h30m":    {d: 90 * time.Minute},
		"20h":      {d: 20 * time.Hour},
		"1h0m1s":   {d: time.Hour + time.Second},
		"250ms":    {d: 250 * time.Millisecond},
		"1.5s":     {d: 1500 * time.Millisecond},
		"0s":       {},
		"0h":       {string: "0s"},
		"90s":      {d: 90 * time.Second, string: "1m30s"},
		"2562047h": {d: 2562047 * time.Hour},
	} {
		wantUnit(t, text, Duration(want.d), want.string)
	}
	for text, problem := range map[string]string{
		"20": "without a unit: seconds would be 20s", "0": "without a unit", "1.5": "without a unit", "": `""`, "s": `"s"`, "-5s": "below zero",
		"20 s": `"20 s"`, "NaN": "NaN", "1e3s": "1e3s", "2562048h": "2562048h", "99999999999999999999s": "99999", "1d": "1d", "auto": "auto",
		strings.Repeat("9", 200): "without a unit", strings.Repeat("x", 200): "…",
	} {
		wantNoUnit[Duration](t, text, problem)
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		n      ByteSize
		string string
	}{
		"8GB":                   {n: 8e9},
		"512MB":                 {n: 512e6},
		"1.5GiB":                {n: 3 << 29},
		"64KB":                  {n: 64e3},
		"64KiB":                 {n: 65536},
		"1TB":                   {n: 1e12},
		"1PiB":                  {n: 1 << 50},
		"0":                     {n: 0, string: "0B"},
		"0B":                    {n: 0},
		"1":                     {n: 1, string: "1B"},
		"8000000000":            {n: 8e9, string: "8GB"},
		"123456789":             {n: 123456789, string: "123456789B"},
		"8 gb":                  {n: 8e9, string: "8GB"},
		"1.25kb":                {n: 1250, string: "1250B"},
		"0.3KB":                 {n: 300, string: "300B"},
		"0.0006KB":              {n: 1, string: "1B"},
		"0.0004KB":              {n: 0, string: "0B"},
		"1024KB":                {n: 1024e3},
		"9223372036854775807":   {n: math.MaxInt64, string: "9223372036854775807B"},
		"8191.99PiB":            {n: 9223360777855707382, string: "9223360777855707382B"},
		"0000000000000000001GB": {n: 1e9, string: "1GB"},
	} {
		wantUnit(t, text, want.n, want.string)
	}
	for text, problem := range map[string]string{
		"": `""`, "GB": `"GB"`, "-1GB": "below zero", "-1": "below zero", "1.5": "without a unit", "8G": "unknown unit", "8Gbit": "unknown unit", "8GB ": "unknown unit",
		"8  GB": "unknown unit", "9223372036854775808": "more than", "9300PB": "more than", "NaN": "NaN", "NaNGB": "NaNGB", "Inf": "Inf", "1e3MB": "1e3", "0x10": "0x10",
		"1_000": "1_000", "1.2.3GB": "1.2.3", ".5GB": ".5", "1/2GB": "1/2", "+1GB": "+1", "٣GB": "٣", "auto": "auto", strings.Repeat("9", 33) + "B": "9",
		strings.Repeat("9", 1<<16): "…",
	} {
		wantNoUnit[ByteSize](t, text, problem)
	}
}

func TestBitRate(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		n      BitRate
		string string
	}{
		"2Mbit/s":    {n: 2e6},
		"300kbit/s":  {n: 300e3},
		"1.5Gbit/s":  {n: 1.5e9},
		"1Tbit/s":    {n: 1e12},
		"0bit/s":     {},
		"2 MBIT/S":   {n: 2e6, string: "2Mbit/s"},
		"999bit/s":   {n: 999},
		"1500kbit/s": {n: 1.5e6, string: "1.5Mbit/s"},
	} {
		wantUnit(t, text, want.n, want.string)
	}
	for text, problem := range map[string]string{
		"2000000": "without a unit", "0": "without a unit", "2MB/s": "unknown unit", "2Mb/s": "unknown unit", "2Mibit/s": "unknown unit", "-2Mbit/s": "below zero",
		"": `""`, "NaNbit/s": "NaN", "10000000000Gbit/s": "more than",
	} {
		wantNoUnit[BitRate](t, text, problem)
	}
	if got := (10 * Mbit).BytesPerSecond(); got != 1_250_000 {
		t.Errorf("10 Mbit/s are %d bytes/s", got)
	}
}

func TestAuto(t *testing.T) {
	t.Parallel()
	var zero AutoDuration
	if _, fixed := zero.Get(); fixed || zero.String() != "auto" || zero.Or(Second) != Second {
		t.Errorf("the zero value is %v", zero)
	}
	if v, fixed := Fixed(Minute).Get(); !fixed || v != Minute || Fixed(Minute).Or(Second) != Minute {
		t.Error("a fixed value is not kept")
	}
	wantUnit(t, "auto", AutoDuration{}, "")
	wantUnit(t, "20s", Fixed(20*Second), "")
	wantUnit(t, "0s", Fixed(Duration(0)), "")
	wantUnit(t, "8GB", Fixed(8*GB), "")
	wantUnit(t, "2Mbit/s", Fixed(2*Mbit), "")
	wantNoUnit[AutoDuration](t, "20", "without a unit")
	wantNoUnit[AutoDuration](t, "Auto", "Auto")
	wantNoUnit[AutoByteSize](t, "", `""`)
	var number Auto[int]
	if err := number.UnmarshalText([]byte("1")); err == nil {
		t.Error("an int was read from text")
	}
}

// wantUnit reads text in every way, and writes it again.
func wantUnit[T any](t *testing.T, text string, want T, written string) {
	t.Helper()
	if written == "" {
		written = text
	}
	var direct, fromYAML, fromJSON T
	asJSON, err := json.Marshal(text)
	err = errors.Join(err,
		any(&direct).(encoding.TextUnmarshaler).UnmarshalText([]byte(text)),
		yaml.Unmarshal([]byte(text), &fromYAML),
		json.Unmarshal(asJSON, &fromJSON))
	for _, got := range []T{direct, fromYAML, fromJSON} {
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
	}
	if got := fmt.Sprint(want); got != written {
		t.Errorf("%q is written as %q, want %q", text, got, written)
	}
	if got, err := any(want).(encoding.TextMarshaler).MarshalText(); err != nil || string(got) != written {
		t.Errorf("%q is marshalled as %q, %v; want %q", text, got, err, written)
	}
	var again T
	if err := any(&again).(encoding.TextUnmarshaler).UnmarshalText([]byte(written)); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("%q read again is %v, %v; want %v", written, again, err, want)
	}
}

// wantNoUnit wants a FieldError with the problem in it, of bounded length, and the value untouched.
func wantNoUnit[T any](t *testing.T, text, problem string) {
	t.Helper()
	var v, zero T
	err := any(&v).(encoding.TextUnmarshaler).UnmarshalText([]byte(text))
	var fe *FieldError
	if !errors.As(err, &fe) || !strings.Contains(fe.Problem, problem) || fe.Want == "" || len(err.Error()) > 300 {
		t.Errorf("%.100q: %v; want %q in it", text, err, problem)
	}
	if !reflect.DeepEqual(v, zero) {
		t.Errorf("%.100q set %v", text, v)
	}
}

func FuzzUnits(f *testing.F) {
	for _, seed := range []string{"20s", "1h30m", "8GB", "1.5GiB", "300kbit/s", "auto", "-1", "1e999", "9223372036854775807", "0.0000001PB", "NaN"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		roundTrip[Duration](t, text)
		roundTrip[ByteSize](t, text)
		roundTrip[BitRate](t, text)
		roundTrip[AutoDuration](t, text)
		roundTrip[AutoByteSize](t, text)
	})
}

func roundTrip[T comparable](t *testing.T, text string) {
	var v, again T
	if any(&v).(encoding.TextUnmarshaler).UnmarshalText([]byte(text)) != nil {
		return
	}
	written := fmt.Sprint(v)
	if err := any(&again).(encoding.TextUnmarshaler).UnmarshalText([]byte(written)); err != nil || again != v {
		t.Errorf("%q is %v, written as %q, read again as %v, %v", text, v, written, again, err)
	}
	if strings.HasPrefix(written, "-") {
		t.Errorf("%q is below zero: %s", text, written)
	}
}
