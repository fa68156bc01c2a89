package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"

	"dandelion/entrance"
	"dandelion/pkg/id"
	"dandelion/pkg/keys"
	"dandelion/pkg/state"
	"dandelion/pkg/wire"
)

// startAccounts starts an entrance and has a box and a publisher report to it. It returns its URL.
func startAccounts(t *testing.T, box id.BoxID, publisher id.PublisherID) (base string) {
	t.Helper()
	cfg := entrance.DefaultConfig()
	cfg.Listen, cfg.DataDir = "127.0.0.1:0", t.TempDir()
	e, err := entrance.New(t.Context(), cfg, state.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	line := func(path, status, size string) wire.Delivery {
		return wire.Delivery{URL: "/" + string(publisher) + path, Status: wire.Text(status), Size: wire.Text(size), Datetime: time.Now().UTC().Format(wire.DeliveryTime)}
	}
	mark := wire.Mark{Boot: "0123456789abcdef", Seq: 1}
	x := wire.Exchange{
		Peer:      wire.Peer{ID: string(box), IP: "127.0.0.1", Port: "1", Type: wire.TypeBox},
		ConnectWS: "http://127.0.0.1:1" + wire.BoxWSPath(box), Features: wire.Ours(), System: wire.UnknownSystem(),
		Traffic: &wire.Traffic{Mark: mark, DroppedBytes: 3_000_000, DroppedCount: 4},
		Deliveries: map[string]wire.Delivery{
			keys.Box(box).TrafficFlow("0"): line("/live/football-final/720p/0123456789ab/s.ts", "200", "12345678901"),
			keys.Box(box).TrafficFlow("1"): line("/live/football-final/720p/0123456789ab/t.ts", "404", "19"),
			keys.Box(box).TrafficFlow("2"): line("/films/a.mp4", "206", "4096"),
		},
	}
	own := wire.Peer{ID: string(publisher), IP: "127.0.0.1", Type: wire.TypePublisher}
	say(t, e.Addr().String(), wire.Encode(&x))
	say(t, e.Addr().String(), wire.Encode(wire.Search{Peer: own, Command: wire.CommandSearch, Features: wire.Ours()}), wire.Encode(wire.Redirects{
		Peer: own, Command: wire.CommandRedirects, Mark: mark,
		Boxes: []wire.Redirected{{Box: box, Stream: "football-final", Count: 4000, Bytes: 12e9}},
	}))
	return "http://" + e.Addr().String()
}

// say sends messages on a session and waits until the entrance has counted what they say.
func say(t *testing.T, addr string, messages ...[]byte) {
	t.Helper()
	ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+addr+wire.EntranceWSPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	for _, message := range messages {
		if err := ws.WriteMessage(websocket.TextMessage, message); err != nil {
			t.Fatal(err)
		}
	}
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		_, message, err := ws.ReadMessage()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(message), `"`+wire.CommandCounted+`"`) {
			return
		}
	}
}

func runTool(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd := newRoot()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	box, publisher := id.BoxIDOf([]byte("a box")), id.PublisherIDOf([]byte("a publisher"))
	base := startAccounts(t, box, publisher)
	short := string(publisher)[:18] + "…"
	for by, want := range map[string]string{
		"box": `
BOX                                   SENT     FILES  FAILED  REDIRECTED
` + string(box) + `  12.3 GB  3      1       12.0 GB
total                                 12.3 GB  3      1       12.0 GB

Boxes lost the accounts of 3.0 MB more, in 4 files.
`,
		"publisher": `
PUBLISHER            SENT     FILES  FAILED  REDIRECTED
` + short + `  12.3 GB  3      1       12.0 GB
-                    0 B      0      0       0 B
total                12.3 GB  3      1       12.0 GB

Boxes lost the accounts of 3.0 MB more, in 4 files.
`,
		"stream": `
PUBLISHER            STREAM          SENT     FILES  FAILED  REDIRECTED
` + short + `  football-final  12.3 GB  2      1       12.0 GB
` + short + `  -               4.1 kB   1      0       0 B
-                    -               0 B      0      0       0 B
total                                12.3 GB  3      1       12.0 GB

Boxes lost the accounts of 3.0 MB more, in 4 files.
`,
	} {
		out, err := runTool(t, "traffic", "--entrance", base, "--by", by)
		if err != nil {
			t.Fatal(err)
		}
		head, rest, _ := strings.Cut(out, "\n")
		if !strings.HasSuffix(head, "UTC, by the hour") || rest != want {
			t.Errorf("by %s:\n%s\n%s, want\n%s", by, head, rest, want)
		}
		for line := range strings.Lines(out) {
			if utf8.RuneCountInString(line) > 81 {
				t.Errorf("a line of %d characters: %s", utf8.RuneCountInString(line), line)
			}
		}
	}

	out, err := runTool(t, "traffic", "--entrance", base, "--by", "stream", "--csv")
	if err != nil {
		t.Fatal(err)
	}
	records, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(records) != 4 {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, want := range []string{
		"[publisher stream bytes deliveries failed failed_bytes redirects redirected_bytes dropped dropped_bytes late_bytes]",
		"[" + string(publisher) + " football-final 12345678920 2 1 19 4000 12000000000 0 0 0]",
	} {
		if got := fmt.Sprint(records[i]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}

	out, err = runTool(t, "traffic", "--entrance", base, "--json", "--from", "-2h", "--to", "-0s")
	var answer traffic
	if err == nil {
		err = json.Unmarshal([]byte(out), &answer)
	}
	if err != nil || len(answer.Rows) != 1 || answer.Rows[0].Box != string(box) || answer.Totals.Bytes != 12345683016 || answer.Granularity != "1h" {
		t.Errorf("%v\n%s", err, out)
	}

	if out, err := runTool(t, "traffic", "--entrance", base, "--from", "-10h", "--to", "-8h"); err != nil || !strings.HasSuffix(out, "Nothing was delivered, as far as this entrance was told.\n") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, refused := range []struct{ flags, want string }{
		{"--by country", "400 Bad Request: by must be box, publisher or stream"},
		{"--from -100d", "400 Bad Request: the range cannot be answered: accounts are kept for 90 days (entrance.accounts_keep), so from must not be before "},
		{"--csv --json", "--csv and --json: one of the two"},
	} {
		_, err := runTool(t, append([]string{"traffic", "--entrance", base}, strings.Fields(refused.flags)...)...)
		if err == nil || !strings.HasPrefix(err.Error(), refused.want) {
			t.Errorf("%s: %v", refused.flags, err)
		}
	}
}

func TestHuman(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 99_900: "99.9 kB", 99_960: "100 kB", 999_499: "999 kB", 999_500: "1.0 MB", 12_345_678_901: "12.3 GB", 1<<63 - 1: "9223 PB"} {
		if got := human(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
