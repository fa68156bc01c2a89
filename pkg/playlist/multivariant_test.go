package playlist

import (
	"slices"
	"strings"
	"testing"
)

func TestMultivariant(t *testing.T) {
	t.Parallel()
	in := text("#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-INDEPENDENT-SEGMENTS",
		`#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="aud",NAME="a, b",DEFAULT=YES,URI="audio/index.m3u8"`,
		`#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="sub",NAME="en",URI="https://elsewhere/en.m3u8"`,
		`#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="en",INSTREAM-ID="CC1"`,
		`#EXT-X-SESSION-KEY:METHOD=AES-128,URI="local.key"`, `#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://k"`,
		`#EXT-X-CONTENT-STEERING:SERVER-URI="/steering"`, "#EXT-X-UNKNOWN:1",
		`#EXT-X-STREAM-INF:BANDWIDTH=1000,CODECS="avc1.4d001f,mp4a.40.2",AUDIO="aud",SUBTITLES="sub",CLOSED-CAPTIONS="cc"`, "720p/index.m3u8",
		`#EXT-X-STREAM-INF:BANDWIDTH=500,AUDIO="aud",CLOSED-CAPTIONS=NONE`, "360p/index.m3u8",
		`#EXT-X-STREAM-INF:BANDWIDTH=400,AUDIO="aud"`, "360p/index.m3u8",
		`#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH=100,URI="iframes.m3u8"`)
	m, err := ParseMultivariant(in)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.AppendTo(nil); string(got) != string(in) {
		t.Errorf("written as\n%s\nwant\n%s", got, in)
	}
	want := []string{"audio/index.m3u8", "https://elsewhere/en.m3u8", "720p/index.m3u8", "360p/index.m3u8"}
	if got := m.Playlists(); !slices.Equal(got, want) {
		t.Errorf("playlists %q, want %q", got, want)
	}
	rewritten := m.Rewrite(func(uri string) (string, bool) {
		return strings.ReplaceAll(uri, "/index", "_x/index"), !strings.HasPrefix(uri, "https:")
	})
	wantText := text("#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-INDEPENDENT-SEGMENTS",
		`#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="aud",NAME="a, b",DEFAULT=YES,URI="audio_x/index.m3u8"`,
		`#EXT-X-MEDIA:TYPE=CLOSED-CAPTIONS,GROUP-ID="cc",NAME="en",INSTREAM-ID="CC1"`,
		`#EXT-X-SESSION-KEY:METHOD=SAMPLE-AES,URI="skd://k"`, "#EXT-X-UNKNOWN:1",
		`#EXT-X-STREAM-INF:BANDWIDTH=1000,CODECS="avc1.4d001f,mp4a.40.2",AUDIO="aud",CLOSED-CAPTIONS="cc"`, "720p_x/index.m3u8",
		`#EXT-X-STREAM-INF:BANDWIDTH=500,AUDIO="aud",CLOSED-CAPTIONS=NONE`, "360p_x/index.m3u8",
		`#EXT-X-STREAM-INF:BANDWIDTH=400,AUDIO="aud"`, "360p_x/index.m3u8")
	if got := rewritten.AppendTo(nil); string(got) != string(wantText) {
		t.Errorf("rewritten as\n%s\nwant\n%s", got, wantText)
	}
	if got := m.AppendTo(nil); string(got) != string(in) {
		t.Error("Rewrite changed the playlist that it was called on")
	}
}
