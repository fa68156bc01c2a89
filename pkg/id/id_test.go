package id

import (
	"errors"
	"strings"
	"testing"
)

func TestParsePath(t *testing.T) {
	good := map[string]Path{
		"/tmp/hls/output/ch1/seg-0.ts": "/tmp/hls/output/ch1/seg-0.ts",
		"a":                            "/a",
		"/home/u/.cache/a b.ts":        "/home/u/.cache/a b.ts",
		"/ü/☃.ts":                      "/ü/☃.ts",
		"/..a/b..":                     "/..a/b..",
	}
	for in, want := range good {
		if got, err := ParsePath(in); err != nil || got != want {
			t.Errorf("ParsePath(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	bad := []string{
		"", "/", "//etc/passwd", "/a//b", "/a/", "../a", "/a/../../b", "/./a", "/a/.", `/a\b`,
		"/a\x00b", "/a\nb", "/\xff", "/" + strings.Repeat("a", 256), strings.Repeat("/a", 600),
	}
	for _, in := range bad {
		if got, err := ParsePath(in); !errors.Is(err, ErrPath) {
			t.Errorf("ParsePath(%q) = %q, %v; want ErrPath", in, got, err)
		}
	}
}

func TestSegmentPathRoundTrip(t *testing.T) {
	p, err := NewSegmentPath("demo", "720p", DigestOf([]byte("x")), "seg-0.ts")
	if err != nil {
		t.Fatal(err)
	}
	back, ok := ParseSegmentPath(p.Path())
	if !ok || back != p {
		t.Fatalf("ParseSegmentPath(%q) = %+v, %v", p.Path(), back, ok)
	}
	for _, not := range []Path{"/live/demo/720p/seg-0.ts", "/live/demo/720p/0123456789aX/seg-0.ts", "/vod/demo/720p/0123456789ab/seg-0.ts"} {
		if _, ok := ParseSegmentPath(not); ok {
			t.Errorf("ParseSegmentPath(%q) took it", not)
		}
	}
	if _, err := NewSegmentPath("demo", "720p", Digest{}, "../seg"); err == nil {
		t.Error("a name with a slash was taken")
	}
}

func TestParseIDs(t *testing.T) {
	hash := KeyHash([]byte("key"))
	if got, err := ParseBoxID("box-" + hash); err != nil || got != BoxIDOf([]byte("key")) {
		t.Errorf("ParseBoxID: %q, %v", got, err)
	}
	for _, bad := range []string{"", "box-", "box-" + hash[1:], "box-" + strings.ToUpper(hash), "box-../../../../../../etc/passwd0000", "publisher-" + hash, "box-" + hash + "\n"} {
		if _, err := ParseBoxID(bad); err == nil {
			t.Errorf("ParseBoxID(%q) took it", bad)
		}
	}
}

func TestParseNames(t *testing.T) {
	for _, good := range []string{"demo", "720p", "a.b_c-d", strings.Repeat("a", 64)} {
		if _, err := ParseStreamName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "a/b", ".a", "-a", "a b", strings.Repeat("a", 65), "ü"} {
		if _, err := ParseStreamName(bad); err == nil {
			t.Errorf("ParseStreamName(%q) took it", bad)
		}
	}
}
