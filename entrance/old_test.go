package entrance

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// oldClient speaks as the peers of the fleet that exists do (docs/protocol.md): its own way to
// upgrade, one masked frame for each message, no features.
type oldClient struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func (r *running) dialOld(request string) *oldClient {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, request, r.Addr())
	c := &oldClient{r.t, conn, bufio.NewReader(conn)}
	status, err := c.r.ReadString('\n')
	if err != nil || !strings.Contains(status, " 101 ") {
		r.t.Fatalf("%q %v", status, err)
	}
	for line := ""; line != "\r\n"; {
		if line, err = c.r.ReadString('\n'); err != nil {
			r.t.Fatal(err)
		}
	}
	return c
}

const (
	upgrade11 = "GET /dandelion/ws/ HTTP/1.1\r\nHost: %s\r\nUser-Agent: Python/3.6 aiohttp/2.2.5\r\nAccept: */*\r\n" +
		"Upgrade: Websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
	// As an old proxy passes it on.
	upgrade10 = "GET /dandelion/ws/ HTTP/1.0\r\nHost: %s\r\nUpgrade: Websocket\r\nConnection: upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==\r\n\r\n"
)

const textFrame = 0x1

func (c *oldClient) frame(final bool, opcode byte, payload []byte) {
	c.t.Helper()
	first := opcode
	if final {
		first |= 0x80
	}
	head := []byte{first}
	switch n := len(payload); {
	case n < 126:
		head = append(head, 0x80|byte(n))
	case n < 1<<16:
		head = binary.BigEndian.AppendUint16(append(head, 0x80|126), uint16(n))
	default:
		head = binary.BigEndian.AppendUint64(append(head, 0x80|127), uint64(n))
	}
	mask := []byte{1, 2, 3, 4}
	head = append(head, mask...)
	for i, b := range payload {
		head = append(head, b^mask[i%4])
	}
	if _, err := c.conn.Write(head); err != nil {
		c.t.Fatal(err)
	}
}

func (c *oldClient) receive() map[string]any {
	c.t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(c.r, head); err != nil {
		c.t.Fatal(err)
	}
	n := int(head[1] & 0x7f)
	if n == 126 {
		var length [2]byte
		_, _ = io.ReadFull(c.r, length[:])
		n = int(binary.BigEndian.Uint16(length[:]))
	}
	if head[0] != 0x80|textFrame || head[1]&0x80 != 0 || n == 127 {
		c.t.Fatalf("not a short text message in one frame without a mask: % x", head)
	}
	payload := make([]byte, n)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		c.t.Fatal(err)
	}
	return decode(c.t, payload)
}

func (c *oldClient) ask(message []byte) map[string]any {
	c.t.Helper()
	c.frame(true, textFrame, message)
	return c.receive()
}

func TestOldBoxDialsForEachExchange(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, shortLease)
	b := newBox(t, 1)
	for _, request := range []string{upgrade11, upgrade10, upgrade11} {
		c := e.dialOld(request)
		reply := c.ask(b.oldReport(nil))
		for key, want := range map[string]any{"MESSAGE": "ACCEPTED", "COMMAND": "EXCHANGE", "TYPE": "ENTRANCE", "ID": string(e.ID())} {
			if reply[key] != want {
				t.Errorf("%s is %v, want %v", key, reply[key], want)
			}
		}
		for key := range reply {
			if !strings.Contains(" ID IP PORT TYPE COMMAND MESSAGE ENTRANCE_URLS ", " "+key+" ") {
				t.Errorf("an old box is told %s", key)
			}
		}
		c.frame(true, 0x8, nil) // close, as it does
		c.conn.Close()
		// Its close means nothing.
		e.offered(b, true)
	}
	entry := e.search()[string(b.id)].(map[string]any)
	if entry["MEM-AVAIL"] != "511" || entry["CPU-IDLE"] != "97.5" || entry["CONNECT_WS"] != b.server.URL+"/dandelion/"+string(b.id)+"/ws/" {
		t.Errorf("BOX_SET: %v", entry)
	}
	// Without a report its lease ends.
	e.offered(b, false)
}

func TestOldBoxWithoutIndexPageIsNotOffered(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b, other := newBox(t, 1), newBox(t, 2)
	report := b.oldReport(func(m map[string]any) {
		m["CONNECT_WS"] = other.server.URL + "/dandelion/" + string(b.id) + "/ws/" // another server
	})
	e.dialOld(upgrade11).ask(report)
	eventually(t, func() string {
		got := e.api("/api/v1/boxes/" + string(b.id))
		if got["reachable"] != "no" || got["searchable"] != false || got["session"] != "dialled" {
			return fmt.Sprint(got)
		}
		return ""
	})
}

// TestTrafficLogsDoNoHarm: they are accounts, and no part of what is known of a box.
func TestTrafficLogsDoNoHarm(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	report := b.oldReport(func(m map[string]any) {
		for i := range 3 {
			m[fmt.Sprintf("%s:TRAFFIC_FLOW:log-%032x", b.id, i)] = map[string]string{
				"url": "/" + publisherID + "/a.ts", "status": "200", "size": "5", "datetime": "27/Sep/2017:03:20:10",
			}
		}
	})
	if reply := e.dialOld(upgrade11).ask(report); reply["MESSAGE"] != "ACCEPTED" {
		t.Fatalf("%v", reply)
	}
	e.offered(b, true)
	for key := range e.search()[string(b.id)].(map[string]any) {
		if strings.Contains(key, "TRAFFIC_FLOW") {
			t.Errorf("BOX_SET has %s", key)
		}
	}
	eventually(t, func() string {
		hash, err := e.state.HGetAll(t.Context(), string(e.ID())+":EXCHANGE:"+string(b.id)).Result()
		if err != nil || hash["CPU-IDLE"] != "97.5" {
			return fmt.Sprintf("hash: %v, %v", hash, err)
		}
		return ""
	})
	eventually(t, func() string { return want(e.metric("dandelion_entrance_accounts_deliveries_total"), "3") })
}

func TestOldPublisherSearches(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, func(cfg *Config) { cfg.MaxSearchResults = 3 })
	for i := range 5 {
		e.connect(newBox(t, i))
		e.offeredCount(min(i+1, 3))
	}
	c := e.dialOld(upgrade10)
	search := []byte(fmt.Sprintf(`{"ID": %q, "IP": "127.0.0.1", "TYPE": "PUBLISHER", "COMMAND": "SEARCH", "GEOIP": {"LOC": "52.5,13.4"}}`, publisherID))
	for range 2 { // the session stays
		reply := c.ask(search)
		if set := reply["BOX_SET"].(map[string]any); len(set) != 3 || reply["COMMAND"] != "SEARCH" || reply["URL"] != e.base+"/dandelion/ws/" {
			t.Fatalf("%v", reply)
		}
		if _, ok := reply["FEATURES"]; ok {
			t.Error("an old publisher is told FEATURES")
		}
	}
}

func TestFragmentsAreOneMessage(t *testing.T) {
	t.Parallel()
	e := start(t, embedded, nil)
	b := newBox(t, 1)
	report := b.oldReport(nil)
	c := e.dialOld(upgrade11)
	c.frame(false, textFrame, report[:100])
	c.frame(true, 0x9, []byte("ping")) // between fragments, as RFC 6455 section 5.4 allows
	c.frame(false, 0, report[100:200])
	pong := make([]byte, 6)
	if _, err := io.ReadFull(c.r, pong); err != nil || string(pong[2:]) != "ping" {
		t.Fatalf("pong: %q %v", pong, err)
	}
	c.frame(true, 0, report[200:])
	if reply := c.receive(); reply["MESSAGE"] != "ACCEPTED" {
		t.Errorf("%v", reply)
	}
}
