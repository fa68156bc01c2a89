package front

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/id"
)

// held is one file that two boxes hold and the origin has.
type held struct{ file string }

func (held) Playlist(id.StreamName, string) (Playlist, bool) { return Playlist{ETag: `"1"`}, true }
func (held) Redirected(id.BoxID, int64)                      {}

func (held) Locate(path id.Path, _ netip.Addr, avoid []id.BoxID) (Location, bool) {
	loc := Location{Path: string(path)}
	for _, box := range []id.BoxID{"a", "b"} {
		if !slices.Contains(avoid, box) {
			loc.Boxes = append(loc.Boxes, Holder{Box: box, Base: "http://" + string(box)})
		}
	}
	return loc, true
}

func (h held) Open(id.Path) (*os.File, error) { return os.Open(h.file) }

const segment = "/live/demo/index/0123456789ab/0.ts"

// viewersOf returns what asks a front for a path and says where it was sent: "a", "b", "origin",
// or "playlist".
func viewersOf(t *testing.T, trusted ...netip.Prefix) func(path, remote, forwarded string) string {
	file := filepath.Join(t.TempDir(), "0.ts")
	if err := os.WriteFile(file, []byte("segment"), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	New(Config{Content: held{file}, Publisher: "publisher-0", TrustedProxies: trusted, Log: slog.New(slog.DiscardHandler)}).Register(mux)
	return func(path, remote, forwarded string) string {
		t.Helper()
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.RemoteAddr = remote
		if forwarded != "" {
			r.Header.Set("X-Forwarded-For", forwarded)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		switch to := w.Header().Get("Location"); {
		case w.Code == http.StatusOK && w.Body.String() == "segment":
			return "origin"
		case w.Code == http.StatusOK && path == index:
			return "playlist"
		case to == "http://a"+path:
			return "a"
		case to == "http://b"+path:
			return "b"
		default:
			t.Fatalf("status %d, Location %q", w.Code, to)
			return ""
		}
	}
}

const index = "/live/demo/index.m3u8"

func TestWhoAsksAgainIsSentElsewhere(t *testing.T) {
	t.Parallel()
	for name, remotes := range map[string][]string{
		"over one connection": {"192.0.2.1:1000", "192.0.2.1:1000", "192.0.2.1:1000", "192.0.2.1:1000"},
		"over new ones":       {"192.0.2.1:1000", "192.0.2.1:1001", "192.0.2.1:1002", "192.0.2.1:1003"},
		"over two":            {"192.0.2.1:1000", "192.0.2.1:1001", "192.0.2.1:1000", "192.0.2.1:1000"},
	} {
		ask := viewersOf(t)
		for i, want := range []string{"a", "b", "origin", "origin"} {
			if got := ask(segment, remotes[i], ""); got != want && !(name == "over two" && i == 2 && got == "b") {
				t.Errorf("%s, request %d went to %s, want %s", name, i+1, got, want)
			}
		}
		if got := ask(segment, "192.0.2.2:1000", ""); got != "a" {
			t.Errorf("another viewer was sent to %s", got)
		}
	}
}

// Viewers with one address and the same player must not look like one who fails.
func TestAHouseholdIsSpreadOverTheHolders(t *testing.T) {
	t.Parallel()
	ask := viewersOf(t)
	const viewers = 40
	remote := func(i int) string {
		return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i)).String()
	}
	for range 2 { // as players do before they ask for segments, and again and again
		for i := range viewers {
			ask(index, remote(i), "")
		}
	}
	count := map[string]int{}
	for i := range viewers {
		count[ask(segment, remote(i), "")]++
	}
	if count["origin"] > 0 || count["a"] < viewers/3 || count["b"] < viewers/3 {
		t.Errorf("%d viewers of a household were sent to %v", viewers, count)
	}
	// One of them who fails still reaches the origin.
	count = map[string]int{}
	for range 3 {
		count[ask(segment, remote(viewers-1), "")]++
	}
	if count["origin"] != 2 {
		t.Errorf("one who asks four times was sent to %v after the first", count)
	}
}

// Behind a proxy connections say nothing, so that the address has to do.
func TestWhoAsksAgainThroughAProxy(t *testing.T) {
	t.Parallel()
	ask := viewersOf(t, netip.MustParsePrefix("127.0.0.1/32"))
	for i, want := range []string{"a", "b", "origin"} {
		remote := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1000+i)).String()
		if got := ask(segment, remote, "192.0.2.1"); got != want {
			t.Errorf("request %d went to %s, want %s", i+1, got, want)
		}
	}
}

// What is remembered is bounded, however much one household asks for.
func TestRepeatsAreBounded(t *testing.T) {
	t.Parallel()
	var all repeats
	now := time.Unix(1_800_000_000, 0)
	one := asker{household: 1, request: 1, conn: 1}
	for range 1000 {
		all.add(one, "a", now)
	}
	for i := range 2*maxRecent + 10 {
		all.add(asker{household: 1, request: uint64(i), conn: uint16(i)}, "a", now)
		all.here(asker{household: uint64(i), conn: uint16(i)}, now)
	}
	if n := len(all.given(one, now)); n > 2*maxSent {
		t.Errorf("%d answers to one request are remembered", n)
	}
	if n := len(all.sent.now) + len(all.sent.old); n > 2*maxRecent {
		t.Errorf("%d requests are remembered", n)
	}
	if n := len(all.kept.now) + len(all.kept.old); n > 2*maxRecent {
		t.Errorf("%d connections are remembered", n)
	}
	all.add(one, "b", now)
	if got := all.given(one, now.Add(2*repeatWindow)); len(got) != 0 {
		t.Errorf("still remembered after %v: %v", 2*repeatWindow, got)
	}
}
