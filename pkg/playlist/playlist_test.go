package playlist

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// text makes a playlist out of lines.
func text(lines ...string) []byte { return []byte(strings.Join(lines, "\n") + "\n") }

func mustMedia(t *testing.T, b []byte) *Media {
	t.Helper()
	m, err := ParseMedia(b)
	if err != nil {
		t.Fatalf("%v in\n%s", err, b)
	}
	return m
}

func TestMediaIsWrittenAsItCame(t *testing.T) {
	t.Parallel()
	for name, in := range map[string][]byte{
		"ffmpeg ts": text("#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-TARGETDURATION:2", "#EXT-X-MEDIA-SEQUENCE:7",
			"#EXT-X-INDEPENDENT-SEGMENTS", "#EXTINF:2.000000,", "seg-7.ts", "#EXT-X-DISCONTINUITY", "#EXTINF:1.9,a title, with a comma", "seg-8.ts"),
		"fmp4 with dates and an end": text("#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-TARGETDURATION:6", "#EXT-X-MEDIA-SEQUENCE:0",
			"#EXT-X-DISCONTINUITY-SEQUENCE:3", "#EXT-X-PLAYLIST-TYPE:EVENT", `#EXT-X-MAP:URI="init.mp4"`, "#EXT-X-PROGRAM-DATE-TIME:2026-01-02T03:04:05.678+0000",
			"#EXTINF:6.0060061,", "a.m4s", "#EXT-X-ENDLIST"),
		"keys that rotate, a clear part, a gap": text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0",
			`#EXT-X-KEY:METHOD=AES-128,URI="k1,a.key",IV=0x01`, "#EXTINF:4,", "0.ts", `#EXT-X-KEY:METHOD=AES-128,URI="k2.key"`, "#EXT-X-GAP", "#EXTINF:4,", "1.ts",
			"#EXT-X-KEY:METHOD=NONE", "#EXTINF:4,", "2.ts"),
		"tags of advertisements": text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0", "#EXT-X-START:TIME-OFFSET=-8",
			`#EXT-X-DATERANGE:ID="a",START-DATE="2026-01-02T03:04:05Z"`, "#EXT-X-CUE-OUT:30", "#EXTINF:4,", "0.ts", "#EXT-X-CUE-IN", "#EXTINF:4,", "1.ts"),
		"a clear init segment, its segments encrypted": text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0",
			`#EXT-X-MAP:URI="init.mp4",BYTERANGE="100@0"`, `#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://k",KEYFORMAT="com.apple.streamingkeydelivery"`,
			"#EXTINF:4,", "#EXT-X-BYTERANGE:10@100", "v.mp4"),
	} {
		m := mustMedia(t, in)
		if got := m.AppendTo(nil); string(got) != string(in) {
			t.Errorf("%s: written as\n%s\nwant\n%s", name, got, in)
		}
	}
}

func TestEntryHasAllThatAppliesToIt(t *testing.T) {
	t.Parallel()
	m := mustMedia(t, []byte("\xef\xbb\xbf#EXTM3U\r\n#EXT-X-TARGETDURATION:4\r\n#EXT-X-MEDIA-SEQUENCE:5\r\n# a comment\r\n\r\n"+
		"#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"a\",KEYFORMAT=\"one\"\r\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"b\",KEYFORMAT=\"two\"\r\n"+
		"#EXT-X-MAP:URI=\"i\"\r\n#EXTINF:4,\r\n#EXT-X-BYTERANGE:10@5\r\nv.mp4\r\n#EXTINF:3.5\r\n#EXT-X-BYTERANGE:20\r\nv.mp4\r\n"+
		"#EXT-X-KEY:METHOD=SAMPLE-AES,URI=\"c\",KEYFORMAT=\"two\"\r\n#EXTINF:4,\r\nw.mp4"))
	if len(m.Entries) != 3 || m.Sequence != 5 || m.TargetDuration != 4 {
		t.Fatalf("%+v", m)
	}
	second, third := m.Entries[1], m.Entries[2]
	if want := (Range{Length: 20, Offset: 15}); second.Range == nil || *second.Range != want {
		t.Errorf("range %v, want %v", second.Range, want)
	}
	if second.Duration != (Duration{Text: "3.5", Value: 3500 * time.Millisecond}) {
		t.Errorf("duration %+v", second.Duration)
	}
	if second.Map == nil || second.Map.URI != "i" || len(second.Map.Keys) != 2 || len(second.Keys) != 2 {
		t.Errorf("map %+v, keys %v", second.Map, second.Keys)
	}
	if third.Range != nil || len(third.Keys) != 2 || third.Keys[1].String() != `METHOD=SAMPLE-AES,URI="c",KEYFORMAT="two"` {
		t.Errorf("third: range %v, keys %v", third.Range, third.Keys)
	}
	if got, _ := second.Keys[1].Get("URI"); got != "b" {
		t.Errorf("a later key changed an earlier entry: %q", got)
	}
}

// An entry that is taken out of its playlist still says what it needs.
func TestEntriesStandAlone(t *testing.T) {
	t.Parallel()
	m := mustMedia(t, text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0", `#EXT-X-KEY:METHOD=AES-128,URI="k"`,
		`#EXT-X-MAP:URI="i"`, "#EXTINF:4,", "0.m4s", "#EXTINF:4,", "1.m4s", "#EXT-X-KEY:METHOD=NONE", "#EXTINF:4,", "2.m4s"))
	m.Entries = m.Entries[1:]
	want := text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0", `#EXT-X-KEY:METHOD=AES-128,URI="k"`,
		`#EXT-X-MAP:URI="i"`, "#EXTINF:4,", "1.m4s", "#EXT-X-KEY:METHOD=NONE", "#EXTINF:4,", "2.m4s")
	if got := m.AppendTo(nil); string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	m.Entries = m.Entries[1:] // clear, with an encrypted init segment
	want = text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:0", `#EXT-X-KEY:METHOD=AES-128,URI="k"`,
		`#EXT-X-MAP:URI="i"`, "#EXT-X-KEY:METHOD=NONE", "#EXTINF:4,", "2.m4s")
	if got := m.AppendTo(nil); string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestLowLatencyTagsAreNotKept(t *testing.T) {
	t.Parallel()
	m := mustMedia(t, text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,PART-HOLD-BACK=1.0",
		"#EXT-X-PART-INF:PART-TARGET=0.33", "#EXT-X-MEDIA-SEQUENCE:10", "#EXT-X-SKIP:SKIPPED-SEGMENTS=3", `#EXT-X-PART:DURATION=0.33,URI="p"`,
		"#EXTINF:4,", "13.ts", `#EXT-X-PART:DURATION=0.33,URI="q"`, `#EXT-X-PRELOAD-HINT:TYPE=PART,URI="r"`, `#EXT-X-RENDITION-REPORT:URI="x"`))
	want := text("#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:13", "#EXTINF:4,", "13.ts")
	if got := m.AppendTo(nil); string(got) != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestBadPlaylists(t *testing.T) {
	t.Parallel()
	head := "#EXTM3U\n#EXT-X-TARGETDURATION:4\n"
	var manyKeys strings.Builder
	for i := range 17 {
		fmt.Fprintf(&manyKeys, "#EXT-X-KEY:METHOD=AES-128,KEYFORMAT=\"%d\"\n", i)
	}
	for in, want := range map[string]string{
		"":                                 "empty",
		"<html>":                           `line 1: not a playlist: begins with "<html>"`,
		"#EXTM3U\n":                        "neither a media playlist nor",
		"#EXTM3U\n#EXTINF:4,\n0.ts\n":      "EXT-X-TARGETDURATION is missing",
		head + "0.ts\n":                    `line 3: "0.ts" has no EXTINF`,
		head + "#EXTINF:4,\n":              "line 3: ends behind an EXTINF",
		head + "#EXTINF:-1,\n0.ts\n":       `line 3: EXTINF: "-1" is not a duration`,
		head + "#EXTINF:1e3,\n0.ts\n":      "not a duration",
		head + "#EXTINF:86401,\n0.ts\n":    "more than 24h0m0s",
		head + "#EXTINF:4,\n\x00\n":        "control character",
		head + "#EXTINF:4,\n\xff\n":        "not UTF-8",
		head + "#EXT-X-MEDIA-SEQUENCE:x\n": "line 3: EXT-X-MEDIA-SEQUENCE: \"x\" is not a whole number",
		head + "#EXT-X-MEDIA-SEQUENCE:18446744073709551615\n":                        "is more than",
		head + "#EXT-X-BYTERANGE:5\n#EXTINF:4,\na\n":                                 "without an offset",
		head + "#EXT-X-BYTERANGE:5@-1\n#EXTINF:4,\na\n":                              "not a byte range",
		head + "#EXT-X-BYTERANGE:9223372036854775807@1\n#EXTINF:4,\na\n":             "not a byte range",
		head + "#EXT-X-KEY:URI=\"a\"\n":                                              "METHOD is missing",
		head + "#EXT-X-KEY:METHOD=AES-128,URI=\"a\n":                                 "no closing quote",
		head + "#EXT-X-KEY:METHOD=AES-128,URI=\"a\"b\n":                              "behind a closing quote",
		head + "#EXT-X-MAP:BYTERANGE=\"1@0\"\n":                                      "URI is missing",
		head + "#EXT-X-STREAM-INF:BANDWIDTH=1\na\n":                                  "in one",
		"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n":                                   "without its URI",
		"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n#EXT-X-STREAM-INF:BANDWIDTH=2\na\n": "where the URI of",
		"#EXTM3U\n#EXT-X-STREAM-INF:\na\n":                                           "attributes are missing",
		head + "#EXT-X-KEY:METHOD=A" + strings.Repeat(",A=1", 100) + "\n":            "more than 100 attributes",
		head + manyKeys.String():                                                     "more than 16 keys",
		"#EXTM3U\n" + strings.Repeat("#", MaxLine+1):                                 "longer than 65536 bytes",
		head + strings.Repeat("#EXTINF:4,\na\n", MaxEntries+1):                       "more than 50000 segments",
		strings.Repeat("x", MaxBytes+1):                                              "larger than 4194304 bytes",
	} {
		if _, _, err := Parse([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.120q: %v, want %q", in, err, want)
		}
	}
	if _, err := ParseMedia(text("#EXTM3U", "#EXT-X-STREAM-INF:BANDWIDTH=1", "a")); err == nil {
		t.Error("a multivariant playlist was taken as a media playlist")
	}
	if _, err := ParseMultivariant([]byte(head)); err == nil {
		t.Error("a media playlist was taken as a multivariant playlist")
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	list, err := ParseAttributes(`METHOD=AES-128, URI="a,b=c" ,IV=0x1,X-EMPTY=""`)
	if err != nil {
		t.Fatal(err)
	}
	want := Attributes{{"METHOD", "AES-128"}, {"URI", `"a,b=c"`}, {"IV", "0x1"}, {"X-EMPTY", `""`}}
	if !reflect.DeepEqual(list, want) {
		t.Errorf("%v, want %v", list, want)
	}
	changed := list.With("URI", Quoted("n\"\n")).With("NEW", "1").Without("IV")
	if got := changed.String(); got != `METHOD=AES-128,URI="n",X-EMPTY="",NEW=1` {
		t.Error(got)
	}
	if got, ok := list.Get("URI"); got != "a,b=c" || !ok {
		t.Errorf("With changed the list that it was called on: %q", got)
	}
	if _, ok := list.Get("NONE"); ok {
		t.Error("an attribute that is not there was found")
	}
	for _, bad := range []string{"A", "=1", "A=1,B", `A=x"y`, "A B=1", ",A=1"} {
		if got, err := ParseAttributes(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"6": 6 * time.Second, "6.": 6 * time.Second, ".5": time.Second / 2, "0.000000001": 1, "6.0060061239": 6006006123, "86400": MaxDuration,
	} {
		got, err := ParseDuration(in)
		if err != nil || got.Value != want || got.Text != in {
			t.Errorf("%q: %+v, %v; want %v", in, got, err, want)
		}
	}
	for _, bad := range []string{"", ".", "-1", "+1", "1.2.3", "NaN", " 1", "99999999999999999999"} {
		if got, err := ParseDuration(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
	for in, want := range map[time.Duration]string{0: "0", -1: "0", time.Second: "1", 1500 * time.Millisecond: "1.5", 1: "0.000000001"} {
		if got := NewDuration(in); got.Text != want {
			t.Errorf("%d: %q, want %q", in, got.Text, want)
		}
	}
	if d := NewDuration(2499 * time.Millisecond); d.Rounded() != 2 {
		t.Errorf("2.499 s rounds to %d", d.Rounded())
	}
	if d := NewDuration(2500 * time.Millisecond); d.Rounded() != 3 {
		t.Errorf("2.5 s rounds to %d", d.Rounded())
	}
	if m := mustMedia(t, text("#EXTM3U", "#EXT-X-TARGETDURATION:4.2")); m.TargetDuration != 5 {
		t.Errorf("a target duration of 4.2 was taken as %d", m.TargetDuration)
	}
}
