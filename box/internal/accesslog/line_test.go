package accesslog

import (
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	at := time.UnixMilli(1512345678123)
	viewer := netip.MustParseAddr("192.0.2.7")
	const json = `{"time":1512345678.123,"viewer":"192.0.2.7","method":"GET","uri":"/a","status":"200","bytes":5,"completion":"OK"}`
	for line, want := range map[string]Delivery{
		json:                                   {at, "GET", "/a", 200, 5, viewer, false},
		strings.Replace(json, `"OK"`, `""`, 1): {at, "GET", "/a", 200, 5, viewer, true},
		strings.Replace(json, "192.0.2.7", "::ffff:192.0.2.7", 1):  {at, "GET", "/a", 200, 5, viewer, false},
		strings.Replace(json, "192.0.2.7", "unix:", 1):             {at, "GET", "/a", 200, 5, netip.Addr{}, false},
		strings.Replace(json, "/a", `/a\"\\\u0001?x=%22`, 1):       {at, "GET", "/a\"\\\x01?x=%22", 200, 5, viewer, false},
		strings.Replace(json, "/a", "/\xff", 1):                    {at, "GET", "/\ufffd", 200, 5, viewer, false},
		strings.Replace(json, `"OK"`, `"OK","agent":{"x":[1]}`, 1): {at, "GET", "/a", 200, 5, viewer, false},
		strings.Replace(json, `"200"`, `"000"`, 1):                 {at, "GET", "/a", 0, 5, viewer, false},
		json[:30] + json: {at, "GET", "/a", 200, 5, viewer, false},
		strings.Replace(strings.Replace(json, "GET", "", 1), "/a", "", 1): {at, "", "", 200, 5, viewer, false},

		`"GET /a HTTP/1.1"-200-5`:              {Method: "GET", URL: "/a", Status: 200, Bytes: 5},
		`"GET /a b\x22-1-2 HTTP/1.1"-206-5`:    {Method: "GET", URL: `/a b"-1-2`, Status: 206, Bytes: 5},
		`"GET /\xC3\xA4\x HTTP/1.0"-404-0`:     {Method: "GET", URL: `/ä\x`, Status: 404},
		`"GET /a"-200-5`:                       {Method: "GET", URL: "/a", Status: 200, Bytes: 5},
		`"-"-400-0`:                            {Status: 400},
		`""-400-150`:                           {Status: 400, Bytes: 150},
		`"GET /cut HTT"GET /a HTTP/1.1"-200-5`: {Method: "GET", URL: "/a", Status: 200, Bytes: 5},
		`"GET /cut"-20"GET /a HTTP/1.1"-200-5`: {Method: "GET", URL: "/a", Status: 200, Bytes: 5},
	} {
		if got, err := Parse([]byte(line)); err != nil || got != want {
			t.Errorf("%s\n%+v, %v\nwant %+v", line, got, err, want)
		}
	}
	for _, line := range []string{
		"", "x", `"`, `""`, `"a"`, `"GET / HTTP/1.1"200-5`, `"GET / HTTP/1.1"-200`, `"GET / HTTP/1.1"-20-5`, `"GET / HTTP/1.1"-200--5`, `"GET / HTTP/1.1"-200-5x`,
		`"GET / HTTP/1.1"-200-99999999999999999999`, `"GET / HTTP/1.1"-200-9223372036854775807`, strings.Replace(json, ":5", ":9223372036854775807", 1), json[:len(json)-1], json + "x", "{}", `{"time":1}`, strings.Replace(json, ":5", ":-5", 1), strings.Replace(json, ":5", `:"5"`, 1),
		strings.Replace(json, "1512345678.123", "1e300", 1), strings.Replace(json, "1512345678.123", "0", 1), strings.Replace(json, `"200"`, `"2000"`, 1), strings.Replace(json, `"200"`, `"-20"`, 1),
	} {
		if d, err := Parse([]byte(line)); err == nil {
			t.Errorf("%s is taken: %+v", line, d)
		}
	}
}

// TestOldLog reads a log that an nginx with the old format wrote.
func TestOldLog(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/old.log")
	if err != nil {
		t.Fatal(err)
	}
	byStatus, bytes := map[int]int{}, int64(0)
	for line := range strings.Lines(string(text)) {
		d, err := Parse([]byte(strings.TrimSuffix(line, "\n")))
		if err != nil {
			t.Errorf("%s: %v", line, err)
		}
		byStatus[d.Status]++
		bytes += d.Bytes
	}
	if want := (map[int]int{200: 5, 206: 1, 400: 2, 404: 3, 405: 1, 416: 1}); !maps.Equal(byStatus, want) || bytes != 2179306 {
		t.Errorf("%v and %d bytes, want %v and 2179306", byStatus, bytes, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(line("/a")))
	f.Add([]byte(`"GET /a b\x22 HTTP/1.1"-200-5`))
	f.Add([]byte(`{"time":1,"vie{"time":1.5,"uri":"/\ud800","status":"206","bytes":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(text)
		if err != nil {
			return
		}
		if d.Bytes < 0 || d.Status < 0 || d.Status > 999 || d.Viewer.Is4In6() || len(d.URL)+len(d.Method) > 3*len(text) {
			t.Errorf("%q: %+v", text, d)
		}
		if _, err := d.Time.MarshalText(); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	})
}
