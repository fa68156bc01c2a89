package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"maps"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
)

const (
	boxID       = "box-0123456789abcdef0123456789abcdef"
	leafID      = "box-fedcba9876543210fedcba9876543210"
	publisherID = "publisher-0123456789abcdef0123456789abcdef"
)

// oldExchange is an EXCHANGE as the Python box sends it (docs/protocol.md).
const oldExchange = `{"ID": "` + boxID + `", "IP": "127.0.0.1", "PORT": "7072", "TYPE": "BOX", "COMMAND": "EXCHANGE",
"CONNECT_WS": "http://127.0.0.1:7072/dandelion/` + boxID + `/ws/", "CPU-HZ": "2400.00", "CPU-NUM": "4", "CPU-USR": "1.5%",
"CPU-SYS": "0.5", "CPU-NIC": "0.0", "CPU-IDLE": "97.5", "CPU-IO": "0.5", "CPU-IRQ": "0.0", "CPU-SIRQ": "",
"LOADAVG-1": "0.10", "LOADAVG-5": "0.20", "LOADAVG-15": "0.30", "MEM-TOTAL": "990", "MEM-AVAIL": "500", "DISK-TOTAL": "29.1",
"DISK-AVAIL": "20.5", "` + boxID + `:TRAFFIC_FLOW:log-5f": {"url": "/x.ts", "status": "200", "size": "5", "datetime": "27/Sep/2017:03:20:10"}}`

func TestDecodeOldExchange(t *testing.T) {
	x, err := DecodeExchange([]byte(oldExchange))
	if err != nil {
		t.Fatal(err)
	}
	if x.System.CPUUser != 1.5 || x.System.CPUIdle != 97.5 || !math.IsNaN(x.System.CPUSoftIRQ) || !math.IsNaN(x.System.NetUp) {
		t.Errorf("system: %+v", x.System)
	}
	if d := x.Deliveries[boxID+":TRAFFIC_FLOW:log-5f"]; d.Size != "5" || d.URL != "/x.ts" {
		t.Errorf("deliveries: %+v", x.Deliveries)
	}
	if got := x.EdgeBase(); got != "http://127.0.0.1:7072" {
		t.Errorf("edge base: %s", got)
	}
	for name, value := range x.Flat() {
		if value == "" || strings.Contains(name, "TRAFFIC") {
			t.Errorf("flat %s = %q: an old publisher stops reading at it", name, value)
		}
	}
}

func TestExchangeRoundTrip(t *testing.T) {
	x := Exchange{
		Peer:      Peer{ID: boxID, IP: "192.0.2.1", Port: "7072", Type: TypeBox},
		ConnectWS: "http://192.0.2.1:7072" + BoxWSPath(boxID), EdgeURL: "http://192.0.2.1:7072",
		Features: Ours(), GeoIP: GeoIP{Country: "TW", Loc: "25.03,121.56"}, System: UnknownSystem(),
	}
	x.System.NetUp, x.System.CPUIdle = 12345.5, 99.25
	sent := Encode(&x)
	if !bytes.Contains(sent, []byte(`"NET-UP":12345.5`)) || !bytes.Contains(sent, []byte(`"CPU-IDLE":"99.25"`)) {
		t.Errorf("sent: %s", sent)
	}
	for name, decode := range map[string]func() (Exchange, error){
		"json": func() (Exchange, error) { return DecodeExchange(sent) },
		"flat": func() (Exchange, error) { return ExchangeFromFlat(x.Flat()) },
	} {
		got, err := decode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if string(Encode(&got)) != string(sent) {
			t.Errorf("%s:\n got %s\nwant %s", name, Encode(&got), sent)
		}
	}
}

// TestEachChange: what changed, put over what was, is what is.
func TestEachChange(t *testing.T) {
	base := Exchange{
		Peer:      Peer{ID: boxID, IP: "192.0.2.1", Port: "7072", Type: TypeBox},
		ConnectWS: "http://192.0.2.1:7072" + BoxWSPath(boxID), System: UnknownSystem(),
	}
	full := base
	full.EdgeURL, full.Features, full.GeoIP = "http://192.0.2.1:7072", Ours(), GeoIP{Loc: "1,2"}
	full.System.CPUIdle, full.System.NetUp = 50, 1e6
	busier := full
	busier.System.CPUIdle, busier.Features = 10, Features{"a", "b"}
	for i, pair := range [][2]*Exchange{{&base, &full}, {&full, &base}, {&full, &busier}, {&busier, &full}, {&full, &full}, {nil, &full}} {
		flat := map[string]string{}
		if pair[0] != nil {
			flat = pair[0].Flat()
		}
		changes := 0
		pair[1].EachChange(pair[0], func(name, value string, appears bool) {
			changes++
			if _, had := flat[name]; had == appears {
				t.Errorf("pair %d: %s appears: %v", i, name, appears)
			}
			if value == "" {
				delete(flat, name)
			} else {
				flat[name] = value
			}
		})
		if want := pair[1].Flat(); !maps.Equal(flat, want) {
			t.Errorf("pair %d: %v, want %v", i, flat, want)
		}
		if pair[0] == pair[1] && changes != 0 || i == 2 && changes != 2 {
			t.Errorf("pair %d: %d changes", i, changes)
		}
	}
}

// TestNamesWithEscapes: JSON has many ways to write a name.
func TestNamesWithEscapes(t *testing.T) {
	x, err := DecodeExchange([]byte(`{"\u0049D": "` + boxID + `", "CONNECT\u005fWS": "http:\/\/a\/", "CPU\u002dIDLE": "5\u0030", "FEATURES": [ "ack" ]}`))
	if err != nil || x.ID != boxID || x.ConnectWS != "http://a/" || x.System.CPUIdle != 50 || !x.Features.Has(FeatureAck) {
		t.Errorf("%+v, %v", x, err)
	}
}

func TestDecodeExchangeRefuses(t *testing.T) {
	for field, replacement := range map[string]string{
		`"CPU-IDLE": "97.5"`:   `"CPU-IDLE": "1;DROP TABLE"`,
		`"CPU-USR": "1.5%"`:    `"CPU-USR": "-1"`,
		`"CPU-NUM": "4"`:       `"CPU-NUM": ["4"]`,
		`"MEM-TOTAL": "990"`:   `"MEM-TOTAL": "1e999"`,
		`"DISK-AVAIL": "20.5"`: `"DISK-AVAIL": null`,
		`"ID": "` + boxID:      `"ID": "box-'; DROP TABLE boxes`,
		`"PORT": "7072"`:       `"PORT": "` + strings.Repeat("7", MaxField+1) + `"`,
		`"CONNECT_WS": `:       `"CONNECT": `,
	} {
		message := strings.Replace(oldExchange, field, replacement, 1)
		if message == oldExchange {
			t.Fatalf("%s is not in the exchange", field)
		}
		if _, err := DecodeExchange([]byte(message)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", replacement, err)
		}
	}
}

func TestDecodeEnvelope(t *testing.T) {
	good := `{"ID":"` + publisherID + `","IP":"127.0.0.1","TYPE":"PUBLISHER","COMMAND":"SEARCH","X":[1]}`
	if e, err := DecodeEnvelope([]byte(good)); err != nil || e.Command != CommandSearch {
		t.Errorf("%+v, %v", e, err)
	}
	numeric := `{"ID":"` + boxID + `","IP":"127.0.0.1","PORT":7072,"TYPE":"BOX","COMMAND":"EXCHANGE"}`
	if e, err := DecodeEnvelope([]byte(numeric)); err != nil || e.Port != "7072" {
		t.Errorf("%+v, %v", e, err)
	}
	for _, bad := range []string{
		``, `null`, `[]`, `"x"`, `{`, `{}`, good + `{`,
		strings.Replace(good, `"SEARCH"`, `""`, 1), strings.Replace(good, `"SEARCH"`, `7`, 1),
		strings.Replace(good, "PUBLISHER", "BOX", 1), // a box must have a PORT
	} {
		if _, err := DecodeEnvelope([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("DecodeEnvelope(%s): %v", bad, err)
		}
	}
}

func TestErrorEchoIsBounded(t *testing.T) {
	reply := NewWrongFormat(Peer{ID: "entrance-x"}, bytes.Repeat([]byte("\xff"), 1<<20))
	if len(Encode(reply)) > 4*MaxEcho {
		t.Errorf("an ERROR of %d bytes", len(Encode(reply)))
	}
}

func TestOldFileFrame(t *testing.T) {
	// The first bytes of a file as captured from the Python publisher (docs/protocol.md).
	captured, _ := hex.DecodeString("3c44616e64656c696f6e3e7b2246494c455f50415448223a20222f746d702f686c732f6f75747075742f6368312f7365672d302e7473222c202254544c223a2036307d3c2f44616e64656c696f6e3e")
	r := bufio.NewReader(io.MultiReader(bytes.NewReader(captured), strings.NewReader("bytes</Dandelion>")))
	h, err := ReadFileHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := (FileHeader{Path: "/tmp/hls/output/ch1/seg-0.ts", TTL: time.Minute, Size: -1}); !reflect.DeepEqual(h, want) {
		t.Errorf("%+v", h)
	}
	if content, _ := io.ReadAll(r); string(content) != "bytes</Dandelion>" {
		t.Errorf("content: %q", content)
	}
}

func TestFileHeaderRoundTrip(t *testing.T) {
	h := FileHeader{
		Path: "/a</Dandelion>b.ts", TTL: 30 * time.Second, RequestID: "1", Publisher: publisherID, Size: 5, Digest: id.DigestOf([]byte("hello")),
		Plays: 1500 * time.Millisecond, Relay: []RelayNode{
			{Box: boxID, ConnectWS: "http://192.0.2.1:7072/dandelion/" + boxID + "/ws/", RequestID: "r1", Relay: []RelayNode{
				{Box: leafID, ConnectWS: "http://192.0.2.2:7072/dandelion/" + leafID + "/ws/", RequestID: "r2", Old: true},
			}},
		},
	}
	got, err := ReadFileHeader(bufio.NewReaderSize(bytes.NewReader(h.AppendTo(nil)), 16))
	if err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("%+v, %v", got, err)
	}
	old := FileHeader{Path: "/a.ts", TTL: time.Minute, Size: -1}
	if got := string(old.AppendTo(nil)); got != `<Dandelion>{"FILE_PATH":"/a.ts","TTL":60}</Dandelion>` {
		t.Error(got)
	}
}

func TestFileHeaderRefusals(t *testing.T) {
	frame := func(headers string) string { return fileOpen + headers + fileClose }
	for in, kind := range map[string]Kind{
		"":                        KindMalformed,
		"<dandelion>{}":           KindMalformed,
		fileOpen + `{"FILE_PATH"`: KindMalformed,
		frame(``):                 KindMalformed,
		frame(`[]`):               KindMalformed,
		frame(`{}`):               KindMalformed,
		frame(`{"FILE_PATH":7}`):  KindMalformed,
		fileOpen + strings.Repeat(" ", MaxFileHeader+1) + `{"FILE_PATH":"/a"}` + fileClose: KindMalformed,
		frame(`{"FILE_PATH":"../a"}`):                  KindPath,
		frame(`{"FILE_PATH":"//a"}`):                   KindPath,
		frame(`{"FILE_PATH":"/a","TTL":-1}`):           KindTTL,
		frame(`{"FILE_PATH":"/a","TTL":null}`):         KindTTL,
		frame(`{"FILE_PATH":"/a","TTL":"soon"}`):       KindTTL,
		frame(`{"FILE_PATH":"/a","TTL":"NaN"}`):        KindTTL,
		frame(`{"FILE_PATH":"/a","TTL":[1]}`):          KindTTL,
		frame(`{"FILE_PATH":"/a","TTL":true}`):         KindTTL,
		frame(`{"FILE_PATH":"/a","SIZE":-1}`):          KindSize,
		frame(`{"FILE_PATH":"/a","SHA256":"x"}`):       KindDigest,
		frame(`{"FILE_PATH":"/a","PUBLISHER":"../x"}`): KindMalformed,
		frame(`{"FILE_PATH":"/a","DURATION":-1}`):      KindMalformed,
		frame(`{"FILE_PATH":"/a","DURATION":1e300}`):   KindMalformed,
		frame(`{"FILE_PATH":"/a","RELAY":[{}]}`):       KindMalformed,
	} {
		var refused *HeaderError
		if _, err := ReadFileHeader(bufio.NewReader(strings.NewReader(in))); !errors.As(err, &refused) || refused.Kind != kind {
			t.Errorf("%.60s: %v; want kind %s", in, err, kind)
		}
	}
}

func TestParseTTL(t *testing.T) {
	for in, want := range map[string]time.Duration{
		`0`: 0, `30`: 30 * time.Second, `"30"`: 30 * time.Second, `1.9`: time.Second, `0.5`: time.Second, `1e300`: MaxTTL,
	} {
		if got, err := ParseTTL([]byte(in)); err != nil || got != want {
			t.Errorf("ParseTTL(%s) = %v, %v; want %v", in, got, err, want)
		}
	}
	if got, _ := ParseTTL(nil); got != DefaultTTL {
		t.Errorf("absent: %v", got)
	}
}

func TestParseURL(t *testing.T) {
	for _, good := range []string{"http://127.0.0.1:7070/dandelion/", "https://cdn.example/x", "http://[::1]:80/"} {
		if _, err := ParseURL(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "ws://a/", "http://", "http://a:0/", "http://a:99999/", "http://u@a/", "file:///etc/passwd", "http://a/" + strings.Repeat("x", MaxURL)} {
		if _, err := ParseURL(bad); err == nil {
			t.Errorf("ParseURL(%q) took it", bad)
		}
	}
}

func TestParseEntranceURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"http://192.0.2.1:7070":                     "http://192.0.2.1:7070/dandelion/ws/",
		"http://192.0.2.1:7070/":                    "http://192.0.2.1:7070/dandelion/ws/",
		"http://192.0.2.1:7070/dandelion":           "http://192.0.2.1:7070/dandelion/ws/",
		"http://192.0.2.1:7070/dandelion/":          "http://192.0.2.1:7070/dandelion/ws/",
		"http://192.0.2.1:7070/dandelion/ws":        "http://192.0.2.1:7070/dandelion/ws/",
		" HTTP://Entrance.Example:80/ ":             "http://entrance.example/dandelion/ws/",
		"https://entrance.example:443/x/ws?k=1":     "https://entrance.example/x/ws?k=1",
		"https://entrance.example:80":               "https://entrance.example:80/dandelion/ws/",
		"http://[2001:DB8::1]:7070":                 "http://[2001:db8::1]:7070/dandelion/ws/",
		"http://[2001:db8::1]":                      "http://[2001:db8::1]/dandelion/ws/",
		"http://[::ffff:192.0.2.1]:7070":            "http://192.0.2.1:7070/dandelion/ws/",
		"http://192.0.2.1:7070/dandelion/ws_change": "http://192.0.2.1:7070/dandelion/ws_change",
	} {
		got, err := ParseEntranceURL(in)
		if err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
		if again, err := ParseEntranceURL(got); again != got || err != nil {
			t.Errorf("%s becomes %s, %v", got, again, err)
		}
	}
	for _, bad := range []string{"", "192.0.2.1:7070", "ws://192.0.2.1/", "http://", "http://u:p@192.0.2.1/", "http://192.0.2.1:0/"} {
		if got, err := ParseEntranceURL(bad); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

func FuzzReadFileHeader(f *testing.F) {
	f.Add([]byte(`<Dandelion>{"FILE_PATH": "/tmp/seg-0.ts", "TTL": 60}</Dandelion>content`))
	f.Add([]byte(`<Dandelion>{"FILE_PATH": "/a", "TTL": "1.9", "SIZE": 1, "SHA256": ""}</Dandelion>`))
	f.Add([]byte(`<Dandelion></Dandelion>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadFileHeader(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		if _, err := id.ParsePath(string(h.Path)); err != nil || h.TTL < 0 || h.TTL%time.Second != 0 {
			t.Errorf("took %+v", h)
		}
	})
}

func FuzzDecodeExchange(f *testing.F) {
	f.Add([]byte(oldExchange))
	f.Add([]byte(`{"ID":"` + boxID + `","CONNECT_WS":"http://a/","GEOIP":{"LOC":"1,2"},"FEATURES":["ack"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := DecodeExchange(b)
		if err != nil {
			return
		}
		if _, err := ExchangeFromFlat(x.Flat()); err != nil {
			t.Errorf("what was decoded does not survive its flat form: %v", err)
		}
	})
}

func FuzzDecodeEnvelope(f *testing.F) {
	f.Add([]byte(`{"ID":"x","IP":"y","PORT":"1","TYPE":"BOX","COMMAND":"EXCHANGE"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, err := DecodeEnvelope(b); err == nil && (e.ID == "" || e.Command == "") {
			t.Errorf("took %+v", e)
		}
	})
}

func BenchmarkDecodeExchange(b *testing.B) {
	for b.Loop() {
		if _, err := DecodeExchange([]byte(oldExchange)); err != nil {
			b.Fatal(err)
		}
	}
}
