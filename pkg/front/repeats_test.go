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

	"dandelion/pkg/id"
)

// held is one file that two boxes hold and the origin has.
type held struct{ file string }

func (held) Playlist(id.StreamName, string) (Playlist, bool) { return Playlist{}, false }
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

// asker asks a front for one segment and returns where it was sent: "a", "b", or "origin".
func asker(t *testing.T, trusted ...netip.Prefix) func(remote, forwarded string) string {
	file := filepath.Join(t.TempDir(), "0.ts")
	if err := os.WriteFile(file, []byte("segment"), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	New(Config{Content: held{file}, Publisher: "publisher-0", TrustedProxies: trusted, Log: slog.New(slog.DiscardHandler)}).Register(mux)
	const path = "/live/demo/index/0123456789ab/0.ts"
	return func(remote, forwarded string) string {
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

func TestWhoAsksAgainIsSentElsewhere(t *testing.T) {
	t.Parallel()
	ask := asker(t)
	for i, want := range []string{"a", "b", "origin", "origin"} {
		if got := ask("192.0.2.1:1000", ""); got != want {
			t.Errorf("request %d went to %s, want %s", i+1, got, want)
		}
	}
	if got := ask("192.0.2.2:1000", ""); got != "a" {
		t.Errorf("another viewer was sent to %s", got)
	}
}

// Viewers with one address and the same player must not look like one who fails.
func TestAHouseholdIsSpreadOverTheHolders(t *testing.T) {
	t.Parallel()
	ask := asker(t)
	count := map[string]int{}
	for port := range 40 {
		count[ask(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+port)).String(), "")]++
	}
	if count["origin"] > 0 || count["a"] < 15 || count["b"] < 15 {
		t.Errorf("40 viewers of a household were sent to %v", count)
	}
	// One of them who fails still reaches the origin.
	first, second := ask("192.0.2.1:1", ""), ask("192.0.2.1:1", "")
	if first == second || first == "origin" || second == "origin" {
		t.Errorf("one who asks twice was sent to %s and %s", first, second)
	}
	if got := ask("192.0.2.1:1", ""); got != "origin" {
		t.Errorf("one who asks three times was sent to %s", got)
	}
}

// Behind a proxy connections say nothing, so that the address has to do.
func TestWhoAsksAgainThroughAProxy(t *testing.T) {
	t.Parallel()
	ask := asker(t, netip.MustParsePrefix("127.0.0.1/32"))
	for i, want := range []string{"a", "b", "origin"} {
		remote := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(1000+i)).String()
		if got := ask(remote, "192.0.2.1"); got != want {
			t.Errorf("request %d went to %s, want %s", i+1, got, want)
		}
	}
}
