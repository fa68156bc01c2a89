package testfleet

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/wire"
)

const oldPublisher = "publisher-00112233445566778899aabbccddeeff"

// TestOldBoxServesOurStream: our publisher finds a Python box through our entrance, places
// segments there, and viewers get them from it; when it falls silent its lease ends.
func TestOldBoxServesOurStream(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Replicas: 1, Entrance: func(c *entrance.Config) { c.LeaseTTL = 3 * config.Second }})
	ctx, silence := context.WithCancel(t.Context())
	defer silence()
	old := StartOldBox(ctx, t, f.entranceWS(), 500*time.Millisecond)
	f.AwaitBoxes(1)
	e := f.Encoder()
	e.Write(3)
	for _, s := range e.Segments {
		urls := f.holders(s, 1)
		if want := "http://" + old.Addr + "/" + string(f.Publisher.ID()) + string(s.Path()); urls[0] != want {
			t.Fatalf("sent to %s, want %s", urls[0], want)
		}
		if status, body := f.Get(urls[0]); status != http.StatusOK || !bytes.Equal(body, s.Content) {
			t.Errorf("%s: status %d, %d bytes", urls[0], status, len(body))
		}
	}
	for _, err := range old.Errors() {
		t.Error(err)
	}
	offered := func() bool { return f.searchAsOld(t).BoxSet[string(old.ID)] != nil }
	if !offered() {
		t.Error("the old box is not offered although it exchanges")
	}
	silence()
	f.Await("the silent old box is not offered any more", func() bool { return !offered() })
}

type oldSearchReply struct {
	ID           string                    `json:"ID"`
	Command      string                    `json:"COMMAND"`
	EntranceURLs []string                  `json:"ENTRANCE_URLS"`
	BoxSet       map[string]map[string]any `json:"BOX_SET"`
	Features     any                       `json:"FEATURES"`
	Error        string                    `json:"ERROR"`
}

func (f *Fleet) searchAsOld(t *testing.T) oldSearchReply {
	t.Helper()
	var reply oldSearchReply
	c := DialOld(t, f.entranceWS())
	defer c.Close()
	message := `{"ID": "` + oldPublisher + `", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "SEARCH", "GEOIP": {"COUNTRY": "TW", "LOC": "25.0,121.5"}}`
	if err := c.Ask(message, &reply); err != nil {
		t.Fatal(err)
	}
	return reply
}

// TestOldPublisherUsesOurBox: a Python publisher searches, stores each BOX_SET entry with HMSET
// (so it must be a flat map of strings and numbers), publishes to our box and pushes the bytes
// that were captured from it.
func TestOldPublisherUsesOurBox(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 1})
	reply := f.searchAsOld(t)
	box := reply.BoxSet[string(f.Boxes[0].ID())]
	if reply.Command != wire.CommandSearch || reply.Features != nil || len(box) == 0 || len(reply.EntranceURLs) == 0 {
		t.Fatalf("%+v", reply)
	}
	for name, value := range box {
		switch v := value.(type) {
		case string:
			if v == "" {
				t.Errorf("%s is empty", name)
			}
		case float64:
		default:
			t.Errorf("%s is a %T: HMSET refuses it", name, value)
		}
	}
	c := DialOld(t, box["CONNECT_WS"].(string))
	var accepted struct{ MESSAGE, COMMAND, TYPE, FEATURES string }
	if err := c.Ask(`{"ID": "`+oldPublisher+`", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "PUBLISH"}`, &accepted); err != nil {
		t.Fatal(err)
	}
	if accepted.MESSAGE != wire.MessageAccepted || accepted.TYPE != wire.TypeBox || accepted.FEATURES != "" {
		t.Errorf("%+v", accepted)
	}
	captured, err := hex.DecodeString("3c44616e64656c696f6e3e7b2246494c455f50415448223a20222f746d702f686c732f6f75747075742f6368312f7365672d302e7473222c202254544c223a2036307d3c2f44616e64656c696f6e3e")
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("segment "), 20_000)
	if err := c.Send(opBinary, append(captured, content...)); err != nil {
		t.Fatal(err)
	}
	edge := "http://" + f.Boxes[0].Link.Addr() + "/" + oldPublisher
	f.Await("the file at the box", func() bool {
		status, body := f.Get(edge + "/tmp/hls/output/ch1/seg-0.ts")
		return status == http.StatusOK && bytes.Equal(body, content)
	})
	// A bad file is refused in silence and the session goes on.
	for i, headers := range []string{`{"FILE_PATH": "../../etc/passwd", "TTL": 60}`, `{"FILE_PATH": "/x.ts", "TTL": null}`, `not JSON`, `{"FILE_PATH": "/good.ts"}`} {
		if err := c.Send(opBinary, fmt.Appendf(nil, "<Dandelion>%s</Dandelion>%d", headers, i)); err != nil {
			t.Fatal(err)
		}
	}
	f.Await("the good file behind bad ones", func() bool { status, _ := f.Get(edge + "/good.ts"); return status == http.StatusOK })
	if status, _ := f.Get(edge + "/x.ts"); status != http.StatusNotFound {
		t.Errorf("a file with TTL null is served: %d", status)
	}
}

// TestBadMessages: what is not a message of the protocol gets an ERROR and a close.
func TestBadMessages(t *testing.T) {
	t.Parallel()
	f := Start(t, Options{Boxes: 1})
	boxWS := "http://" + f.Boxes[0].Link.Addr() + wire.BoxWSPath(f.Boxes[0].ID())
	for _, target := range []string{f.entranceWS(), boxWS} {
		for _, message := range []string{
			`not JSON`, `{}`, `[]`, `{"ID": "", "IP": "x", "TYPE": "BOX", "COMMAND": "EXCHANGE", "PORT": "1"}`,
			`{"ID": "` + oldPublisher + `", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "DANCE"}`,
			`{"ID": "publisher-'; DROP TABLE boxes; --", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "PUBLISH"}`,
			`{"ID": "../../../../tmp", "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "SEARCH"}`,
			strings.Repeat("x", 100_000),
		} {
			c := DialOld(t, target)
			var reply map[string]any
			if err := c.Ask(message, &reply); err != nil {
				t.Errorf("%s, %.60s: %v", target, message, err)
				continue
			}
			text, _ := reply["ERROR"].(string)
			if text == "" || len(text) > 2*wire.MaxEcho || reply["ID"] == "" || reply["TYPE"] == "" {
				t.Errorf("%s, %.60s: answered %.200v", target, message, reply)
			}
			if _, err := c.Receive(); !errors.Is(err, io.EOF) {
				t.Errorf("%s, %.60s: not closed: %v", target, message, err)
			}
			c.Close()
		}
	}
}
