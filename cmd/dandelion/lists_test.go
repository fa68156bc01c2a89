package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"dandelion/publisher"
)

const someStreams = `{"id":"publisher-0","streams":[
{"name":"show","url":"http://203.0.113.7:7071/live/show/index.m3u8","problem":"","ended":false,"renditions":[{"name":"hd","bitrate":2500000},{"name":"sd","bitrate":600000}],
 "upload":[{"rendition":"show/hd","watching":120,"viewers":130,"holders":["box-a","box-b"]},{"rendition":"show/sd","watching":3,"viewers":3,"holders":["box-b","box-c"]}],
 "saving":{"minute":{"offload":0.9961,"caster_offload":0.975,"placing_overhead":0.0312},"hour":{"offload":1,"caster_offload":0.5,"placing_overhead":1.2},"start":{}}},
{"name":"a-name-of-which-only-the-first-letters-fit","url":"http://203.0.113.7:7071/live/a-name-of-which-only-the-first-letters-fit/index.m3u8","problem":"","ended":true,"renditions":[{"name":"v","bitrate":12345678}],
 "upload":[{"rendition":"a/v","watching":100000,"holders":["box-a"]}],
 "saving":{"minute":{"offload":0,"caster_offload":-12.5,"placing_overhead":13.5},"hour":{"offload":0.1,"caster_offload":-9.5,"placing_overhead":9.6},"start":{}}},
{"name":"idle","url":"http://203.0.113.7:7071/live/idle/index.m3u8","problem":"","ended":false,"renditions":[],"upload":[],"saving":{"minute":{"offload":null},"hour":{"offload":null},"start":{}}},
{"name":"lost","url":"http://203.0.113.7:7071/live/lost/index.m3u8","problem":"the directory /var/hls/lost is not there","ended":false,"renditions":[],"upload":[],"saving":{}}
],"boxes":{"up":3,"known":3}}`

func streamsOf(t *testing.T, args ...string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, someStreams) }))
	defer srv.Close()
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"streams", "--publisher", srv.URL}, args...))
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestStreams(t *testing.T) {
	t.Parallel()
	const want = `
STREAM         VIEWERS  MBIT/S BOXES       OFFLOAD        CASTER       PLACING
                                       minute  hour  minute  hour  minute  hour
show               123     3.1     3   99.6%  100%     98%   50%      3%  120%
a-name-of-whi…  100000    12.3     1      0%   10%  <-999% -950%   >999%  960%
idle                 0     0.0     0       -     -       -     -       -     -
lost                 0     0.0     0       -     -       -     -       -     -

show: live, 2 renditions
  http://203.0.113.7:7071/live/show/index.m3u8

a-name-of-which-only-the-first-letters-fit: ended
  http://203.0.113.7:7071/live/a-name-of-which-only-the-first-letters-fit/index.m3u8

idle: no segment yet
  http://203.0.113.7:7071/live/idle/index.m3u8

lost: the directory /var/hls/lost is not there
  http://203.0.113.7:7071/live/lost/index.m3u8
`
	got := streamsOf(t)
	if got != want[1:] {
		t.Errorf("\n%s\nwant%s", got, want)
	}
	for line := range strings.SplitSeq(got, "\n") {
		if len([]rune(line)) > 80 && !strings.Contains(line, "http") {
			t.Errorf("wider than 80 columns: %s", line)
		}
	}
}

// TestStreamsJSON: the publisher's whole answer, to be read by programs.
func TestStreamsJSON(t *testing.T) {
	t.Parallel()
	got, want := jsontext.Value(streamsOf(t, "--json")), jsontext.Value(someStreams)
	if err := got.Canonicalize(); err != nil {
		t.Fatal(err)
	}
	if err := want.Canonicalize(); err != nil || string(got) != string(want) {
		t.Errorf("%s, %v", got, err)
	}
}

func TestShortOf(t *testing.T) {
	t.Parallel()
	for upload, want := range map[string]string{
		`[]`:                    "",
		`[{"short": 0}]`:        "",
		`[{"short": 40012345}]`: ", upload short by 40Mbit/s",
		`[{"short": 30000000, "short_in": [{"place": "TW", "short": 30000000}]}, {"short": 10000000, "short_in": [{"place": "TW"}, {"place": "Bavaria, DE"}]}]`: ", upload short by 40Mbit/s in TW; Bavaria, DE",
	} {
		var s publisher.StreamStatus
		if err := json.Unmarshal([]byte(`{"upload": `+upload+`}`), &s); err != nil {
			t.Fatal(err)
		}
		if got := shortOf(s); got != want {
			t.Errorf("%s: %q, want %q", upload, got, want)
		}
	}
}

// TestBoxes: all pages of the entrance's answer, in a table of 80 columns, and what is wrong with a box below it.
func TestBoxes(t *testing.T) {
	t.Parallel()
	const first, second = "box-b72c229e20d7d329c48bfec62ecee2f7", "box-d012dfb8b0664143e6e7bf25744b625c"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("after") == "" {
			_, _ = io.WriteString(w, `{"boxes":[{"id":"`+first+`","edge_url":"http://198.51.100.20:17072","place":"Taipei, TW","searchable":true,"claims_reason":"it claims more"}],"next":"`+first+`"}`)
			return
		}
		_, _ = io.WriteString(w, `{"boxes":[{"id":"`+second+`","edge_url":"http://198.51.100.2:7072","searchable":false,"why_not":"it is not reachable"}]}`)
	}))
	defer srv.Close()
	var out strings.Builder
	cmd := newRoot()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"boxes", "--entrance", srv.URL})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	const want = `
BOX                                   ADDRESS                     OFFERED  PLACE
box-b72c229e20d7d329c48bfec62ecee2f7  http://198.51.100.20:17072  yes      Taipei, TW
box-d012dfb8b0664143e6e7bf25744b625c  http://198.51.100.2:7072    no       unknown

box-b72c229e20d7d329c48bfec62ecee2f7: its accounts exceed what publishers say
  it claims more

box-d012dfb8b0664143e6e7bf25744b625c: not offered
  it is not reachable
`
	if out.String() != want[1:] {
		t.Errorf("\n%s\nwant%s", out.String(), want)
	}
}

// TestUsage: what is wrong with a command line, and what would be right.
func TestUsage(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"ready":              "usage: dandelion ready URL [flags]",
		"ready daemon":       `"daemon/debug/ready" is not at the URL of a daemon, such as http://127.0.0.1:7070`,
		"ready 127.0.0.1:70": `"127.0.0.1:70/debug/ready" is not at the URL of a daemon`,
		"upload":             "usage: dandelion upload FILE… [flags]",
		"config check a b":   "usage: dandelion config check FILE [flags]",
		"traffic --bogus":    "unknown flag: --bogus\ndandelion traffic --help lists the flags",
		"traffic --csv=what": "dandelion traffic --help lists the flags",
	} {
		cmd := newRoot()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(strings.Fields(line))
		if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}
