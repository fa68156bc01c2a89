package stream

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"dandelion/pkg/id"
)

const master = "#EXTM3U\n#EXT-X-VERSION:7\n" +
	"#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID=\"aud\",NAME=\"English, stereo\",DEFAULT=YES,URI=\"audio/index.m3u8\"\n" +
	"#EXT-X-STREAM-INF:BANDWIDTH=2000000,CODECS=\"avc1.64001f,mp4a.40.2\",AUDIO=\"aud\"\n720p/index.m3u8\n" +
	"#EXT-X-STREAM-INF:BANDWIDTH=800000,AUDIO=\"aud\"\n360p/index.m3u8\n"

func (r *rig) variant(name string) {
	r.segments(name, name+"/0.ts", name+"/1.ts", name+"/2.ts")
	r.media(name+"/index.m3u8", 0, "0.ts", "1.ts", "2.ts")
}

func TestMultivariant(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("master.m3u8", master)
	r.variant("720p")
	r.variant("audio")
	r.step(0)
	r.want("720p", "720p 720p/0.ts 720p 720p/1.ts 720p 720p/2.ts")
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Error("the index is shown while a variant may still come")
	}
	r.step(4 * time.Second)
	page, ok := r.s.Playlist("index.m3u8")
	if !ok || strings.Contains(string(page.Body), "360p") || !strings.Contains(string(page.Body), "720p/index.m3u8") {
		t.Errorf("after two target durations it is shown without what is missing; got\n%s", page.Body)
	}
	r.variant("360p")
	r.step(0)
	page, _ = r.s.Playlist("index.m3u8")
	if string(page.Body) != master {
		t.Errorf("got\n%s\nwant\n%s", page.Body, master)
	}
	r.start()
	if after, _ := r.s.Playlist("index.m3u8"); string(after.Body) != master {
		t.Errorf("after a restart\n%s", after.Body)
	}
	// It stays when the encoder has taken it away, and is what is left when nothing else is.
	r.remove("master.m3u8")
	delete(r.parsed, "master.m3u8")
	r.step(time.Minute)
	if after, _ := r.s.Playlist("index.m3u8"); string(after.Body) != master {
		t.Errorf("without its file\n%s", after.Body)
	}
}

// An encoder writes its multivariant playlist last. Until it is clear that there is none, one
// media playlist alone is not taken for the whole stream.
func TestOneMediaPlaylistMayBeOneOfMany(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "v.ts", "v1.ts", "w.ts")
	r.media("v.m3u8", 0, "v.ts")
	r.step(0)
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Fatal("one segment of one media playlist is shown as the whole stream")
	}
	r.media("w.m3u8", 0, "w.ts")
	r.write("master.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nv.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=2\nw.m3u8\n")
	r.step(0)
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Fatal("shown with one segment of each, when players could not go on")
	}
	r.segments("a", "w1.ts")
	r.media("w.m3u8", 0, "w.ts", "w1.ts")
	r.step(time.Second)
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Fatal("shown with one segment of one of them")
	}
	r.media("v.m3u8", 0, "v.ts", "v1.ts")
	r.step(0)
	if page, _ := r.s.Playlist("index.m3u8"); !strings.Contains(string(page.Body), "BANDWIDTH=2\nw/index.m3u8") {
		t.Errorf("got\n%s", page.Body)
	}

	r = newRig(t).start()
	r.boxes = 0
	r.segments("a", "v.ts", "v1.ts")
	r.media("v.m3u8", 0, "v.ts")
	r.step(0)
	r.step(2 * time.Second) // a player that began with one segment would soon have nothing to play
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Error("one segment is shown after one target duration")
	}
	r.step(2 * time.Second) // two target durations later nothing else will come
	if got := r.shown("index.m3u8"); len(got.Entries) != 1 {
		t.Errorf("%+v", got)
	}

	r = newRig(t).start()
	r.boxes = 0
	r.segments("a", "v.ts", "v1.ts")
	r.media("v.m3u8", 0, "v.ts", "v1.ts") // nor when there are two segments
	r.step(0)
	if got := r.shown("index.m3u8"); len(got.Entries) != 2 {
		t.Errorf("%+v", got)
	}
}

func TestSeveralPlaylistsWithoutMultivariant(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("a0.ts", strings.Repeat("a", 500))
	r.write("b0.ts", strings.Repeat("b", 250))
	r.media("b.m3u8", 0, "b0.ts")
	r.media("a.m3u8", 0, "a0.ts")
	r.step(0)
	if _, ok := r.s.Playlist("index.m3u8"); ok {
		t.Error("shown with one segment of each")
	}
	r.step(4 * time.Second) // two target durations are long enough to wait
	want := "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=2000\na/index.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=1000\nb/index.m3u8\n"
	if page, _ := r.s.Playlist("index.m3u8"); string(page.Body) != want {
		t.Errorf("got\n%s\nwant\n%s", page.Body, want)
	}
}

func TestInitSegmentLivesAsLongAsItIsNeeded(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("init.mp4", "init one")
	inits := func() map[string]string { // URI to content, of what the playlist names
		found := map[string]string{}
		for _, e := range r.shown("index/index.m3u8").Entries {
			found[e.Map.URI] = r.read("index", e.Map.URI)
		}
		return found
	}
	names := []string{}
	for i := range 1800 { // an hour
		name := "s" + string(rune('0'+i%5)) + ".m4s"
		names = append(names, name)
		if i >= 3 {
			names = names[1:]
		}
		r.write(name, strings.Repeat("x", i))
		r.media("index.m3u8", max(0, i-2), append([]string{`#EXT-X-MAP:URI="init.mp4"`}, names...)...)
		r.look()
		if i%10 == 0 {
			r.save()
		}
		r.now = r.now.Add(2 * time.Second)
		if i == 900 {
			r.remove("init.mp4") // and still what the encoder meant
		}
		if i == 1000 {
			r.save()
			r.start()
		}
	}
	r.save()
	if got := inits(); len(got) != 1 {
		t.Fatalf("%v", got)
	}
	for uri, content := range inits() {
		path, _ := id.ParsePath("/live/demo/index/" + uri)
		f, info, err := r.s.Open(path)
		if err != nil || content != "init one" || info.Placeable || !info.Expires.IsZero() {
			t.Fatalf("%q, %+v, %v", content, info, err)
		}
		f.Close()
	}
	for _, seg := range r.placed {
		if strings.Contains(string(seg.Path), "init") {
			t.Errorf("%s was offered to boxes", seg.Path)
		}
	}
	if n := len(r.files()); n > 20 {
		t.Errorf("%d files in the window", n)
	}

	// Another encoder writes another one to the same name: both are there while both are needed.
	var old string
	for uri := range inits() {
		old = uri
	}
	r.write("init.mp4", "init two")
	r.write("t0.m4s", "new")
	r.media("index.m3u8", 0, `#EXT-X-MAP:URI="init.mp4"`, "t0.m4s")
	r.step(2 * time.Second)
	if got := inits(); len(got) != 2 || got[old] != "init one" {
		t.Errorf("%v", got)
	}
	for i := range 4 {
		r.write("t"+string(rune('1'+i))+".m4s", "new "+string(rune('1'+i)))
	}
	r.media("index.m3u8", 2, `#EXT-X-MAP:URI="init.mp4"`, "t2.m4s", "t3.m4s", "t4.m4s")
	r.step(2 * time.Second)
	r.step(time.Minute)
	if got := inits(); len(got) != 1 || got[old] != "" {
		t.Errorf("%v", got)
	}
	path, _ := id.ParsePath("/live/demo/index/" + old)
	if _, _, err := r.s.Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old init segment is still held: %v", err)
	}
}

// An encoder that restarts writes its init segment again before its first playlist.
func TestInitSegmentNewerThanThePlaylist(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.m4s", "1.m4s")
	r.media("index.m3u8", 0, `#EXT-X-MAP:URI="init.mp4"`, "0.m4s", "1.m4s")
	r.write("init.mp4", "half")
	r.step(0)
	r.step(20 * time.Second)
	if _, ok := r.s.Playlist("index/index.m3u8"); ok {
		t.Fatal("shown")
	}
	r.write("init.mp4", "whole")
	r.segments("b", "0.m4s")
	r.media("index.m3u8", 0, `#EXT-X-MAP:URI="init.mp4"`, "0.m4s")
	r.step(time.Second)
	r.want("index", "b 0.m4s")
	if e := r.shown("index/index.m3u8").Entries[0]; r.read("index", e.Map.URI) != "whole" {
		t.Errorf("%+v", e.Map)
	}
	// A copied directory: nothing changes any more.
	r.segments("b", "1.m4s")
	r.media("index.m3u8", 0, `#EXT-X-MAP:URI="other.mp4"`, "0.m4s", "1.m4s")
	r.write("other.mp4", "other")
	r.step(time.Second)
	r.want("index", "b 0.m4s")
	r.step(30 * time.Second)
	r.want("index", "b 0.m4s b 1.m4s")
}

func TestByteRangesAreCutOut(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("v.mp4", "INITaaaabbbbb")
	lines := []string{
		`#EXT-X-MAP:URI="v.mp4",BYTERANGE="4@0"`, "#EXT-X-BYTERANGE:4@4", "v.mp4", "#EXT-X-BYTERANGE:5@8", "v.mp4",
	}
	r.media("index.m3u8", 0, lines...)
	r.write("v.mp4", "INITaaaabbbbbccc") // it grows behind what is listed
	r.step(0)
	r.want("index", "aaaa bbbbb")
	lines = append(lines, "#EXT-X-BYTERANGE:6", "v.mp4") // not all there
	r.media("index.m3u8", 0, lines...)
	r.step(0)
	r.want("index", "aaaa bbbbb")
	r.write("v.mp4", "INITaaaabbbbbcccccc")
	r.step(0)
	r.want("index", "aaaa bbbbb cccccc")
	got := r.shown("index/index.m3u8")
	for _, e := range got.Entries {
		if e.Range != nil || e.Map == nil || e.Map.Range != nil || r.read("index", e.Map.URI) != "INIT" {
			t.Errorf("%+v", e)
		}
	}
	// Another run of the encoder into the same file.
	r.write("v.mp4", "INITzzzz")
	r.media("index.m3u8", 0, `#EXT-X-MAP:URI="v.mp4",BYTERANGE="4@0"`, "#EXT-X-BYTERANGE:4@4", "v.mp4")
	r.step(time.Second)
	r.want("index", "bbbbb cccccc | zzzz")
}

func TestKeys(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.write("k.key", "0123456789abcdef")
	r.segments("a", "5.ts", "6.ts", "7.ts", "8.ts", "9.ts")
	r.media("index.m3u8", 5, `#EXT-X-KEY:METHOD=AES-128,URI="k.key"`, "5.ts", "6.ts",
		`#EXT-X-KEY:METHOD=SAMPLE-AES,URI="skd://asset",KEYFORMAT="com.apple.streamingkeydelivery"`, "7.ts")
	r.step(0)
	entries := r.shown("index/index.m3u8").Entries
	uri, _ := entries[0].Keys[0].Get("URI")
	if got := r.read("index", uri); got != "0123456789abcdef" {
		t.Errorf("key %q", got)
	}
	if _, ok := entries[0].Keys[0].Get("IV"); ok {
		t.Error("an IV where the sequence number says it")
	}
	if got, _ := entries[2].Keys[1].Get("URI"); got != "skd://asset" || len(entries[2].Keys) != 2 {
		t.Errorf("%v", entries[2].Keys)
	}
	if alone, _ := r.shown("index.m3u8").Entries[0].Keys[0].Get("URI"); alone != "index/"+uri {
		t.Errorf("from the index the key is %q", alone)
	}
	// The key changes in place, and the encoder begins anew: our numbers are not its numbers.
	r.write("k.key", "fedcba9876543210")
	r.segments("b", "0.ts", "1.ts")
	r.media("index.m3u8", 0, `#EXT-X-KEY:METHOD=AES-128,URI="k.key"`, "0.ts", "1.ts")
	r.step(time.Second)
	got := r.shown("index/index.m3u8")
	last := got.Entries[len(got.Entries)-1]
	if iv, _ := last.Keys[0].Get("IV"); iv != "0x00000000000000000000000000000001" {
		t.Errorf("IV %q of the second segment", iv)
	}
	uri, _ = last.Keys[0].Get("URI")
	if got := r.read("index", uri); got != "fedcba9876543210" {
		t.Errorf("key %q", got)
	}
	// Without its key a segment is of no use.
	r.segments("b", "2.ts")
	r.media("index.m3u8", 0, `#EXT-X-KEY:METHOD=AES-128,URI="k.key"`, "0.ts", "1.ts", `#EXT-X-KEY:METHOD=AES-128,URI="../out.key"`, "2.ts")
	r.step(time.Second)
	if got := r.contents("index"); !strings.HasSuffix(got, "b 1.ts -") {
		t.Error(got)
	}
}
