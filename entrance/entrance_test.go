package entrance

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"dandelion/pkg/wire"
)

func TestBoxIsOfferedWhileConnected(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	p := e.dial("/dandelion/ws/")
	reply := p.ask(b.report(nil))
	for key, want := range map[string]any{
		"ID": string(e.ID()), "TYPE": "ENTRANCE", "IP": "127.0.0.1", "COMMAND": "EXCHANGE", "MESSAGE": "ACCEPTED",
		"PORT": strings.TrimPrefix(e.base, "http://127.0.0.1:"), "ADDRESS": "127.0.0.1",
	} {
		if reply[key] != want {
			t.Errorf("%s is %v, want %v", key, reply[key], want)
		}
	}
	if urls := reply["ENTRANCE_URLS"].([]any); len(urls) != 1 || urls[0] != e.base+"/dandelion/ws/" {
		t.Errorf("ENTRANCE_URLS: %v", urls)
	}
	b.learn(reply["NONCE"].(string))
	e.offered(b, true)

	entry := e.search()[string(b.id)].(map[string]any)
	for key, want := range map[string]any{
		"CONNECT_WS": b.server.URL + wire.BoxWSPath(b.id), "EDGE_URL": b.server.URL, "IP": "127.0.0.1", "FEATURES": "ack,grant,relay,traffic", "NET-UP": "1000000",
	} {
		if entry[key] != want {
			t.Errorf("BOX_SET: %s is %v, want %v", key, entry[key], want)
		}
	}
	for key, value := range entry {
		if _, flat := value.(string); !flat {
			t.Errorf("BOX_SET: %s is not flat: %v", key, value)
		}
	}
	reply = p.ask(b.report(nil))
	if reply["REACHABLE"] != "yes" || reply["REASON"] != "reachable at "+b.server.URL {
		t.Errorf("the box was told %v, %v", reply["REACHABLE"], reply["REASON"])
	}

	p.ws.UnderlyingConn().Close()
	e.offered(b, false)
	if got := e.api("/api/v1/boxes/" + string(b.id)); got["session"] != "left" || !strings.Contains(got["why_not"].(string), "it left") {
		t.Errorf("API: %v", got)
	}
}

func TestUnreachableBoxIsToldWhy(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	url := b.server.URL
	report := b.report(nil)
	b.server.Close()
	p := e.dial("/dandelion/ws/")
	p.ask(report)
	want := fmt.Sprintf("not reachable at %s (connection refused): forward TCP port %s to this box", url, strings.TrimPrefix(url, "http://127.0.0.1:"))
	eventually(t, func() string {
		if reply := p.ask(report); reply["REASON"] != want || reply["REACHABLE"] != "no" {
			return fmt.Sprint(reply)
		}
		return ""
	})
	if boxes := e.search(); len(boxes) != 0 {
		t.Errorf("offered: %v", boxes)
	}
	if got := e.api("/api/v1/boxes/" + string(b.id)); got["why_not"] != want || got["reachable"] != "no" {
		t.Errorf("API: %v", got)
	}
}

func TestImpostorsNonceIsNotKnown(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1) // never learns the nonce: somebody else reports in its name
	p := e.dial("/dandelion/ws/")
	p.ask(b.report(nil))
	eventually(t, func() string {
		if reply := p.ask(b.report(nil)); reply["REACHABLE"] != "no" || !strings.Contains(reply["REASON"].(string), "HTTP status 404") {
			return fmt.Sprint(reply)
		}
		return ""
	})
}

func TestGoodbyeEndsTheLease(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	p := e.connect(b)
	e.offered(b, true)
	p.send(fmt.Appendf(nil, `{"ID": %q, "IP": "127.0.0.1", "PORT": "1", "TYPE": "BOX", "COMMAND": "GOODBYE", "REASON": "an update", "SECONDS": 5}`, b.id))
	e.offered(b, false)
	if got := e.api("/api/v1/boxes/" + string(b.id)); got["why_not"] != "it left: it said goodbye: an update" {
		t.Errorf("API: %v", got)
	}
	// It may think better of it.
	b.reportOn(p)
	e.offered(b, true)
	p.ws.Close()
	e.offered(b, false)
}

func TestIndexAndPage(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	e.connect(newBox(t, 1))
	get := func(path string) (int, string) {
		resp, err := http.Get(e.base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, path := range []string{"/dandelion/", "/dandelion"} {
		if status, body := get(path); status != 200 || body != "HI "+string(e.ID()) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	if status, body := get("/"); status != 200 || !strings.Contains(body, string(newBoxID(1))) {
		t.Errorf("page: %d %s", status, body)
	}
	if status, body := get("/api/v1/boxes/" + string(newBoxID(2))); status != 404 || !strings.HasPrefix(body, `{"error":`) {
		t.Errorf("unknown box: %d %s", status, body)
	}
	if status, body := get("/api/v1/nothing"); status != 404 || !strings.HasPrefix(body, `{"error":`) {
		t.Errorf("unknown path: %d %s", status, body)
	}
	if status, _ := get("/dandelion/ws/"); status != 400 {
		t.Errorf("a websocket path without an upgrade: %d", status)
	}
	if status, body := get("/metrics"); status != 200 || !strings.Contains(body, "dandelion_entrance_boxes 1\n") {
		t.Errorf("metrics: %d %s", status, body)
	}
	if status, _ := get("/debug/ready"); status != 200 {
		t.Errorf("ready: %d", status)
	}
}

func TestEveryPathTakesBothKindsOfPeer(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	for i, path := range []string{"/dandelion/ws/", "/dandelion/ws", "/dandelion/ws_change/", "/dandelion/ws_change"} {
		b := newBox(t, i)
		p := e.dial(path)
		b.reportOn(p)
		e.offered(b, true)
		if boxes := e.dial(path).boxes(); len(boxes) != i+1 {
			t.Errorf("%s: %v", path, boxes)
		}
	}
}
