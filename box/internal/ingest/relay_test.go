package ingest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"dandelion/box/internal/relay"
	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/uplink"
	"dandelion/pkg/wire"
)

var parentID = id.BoxIDOf([]byte("parent"))

// parent opens a relaying session, as another box does.
func (b *box) parent() *client {
	b.t.Helper()
	c := b.dial()
	c.text(wire.Publish{
		Peer:    wire.Peer{ID: string(parentID), IP: "198.51.100.2", Port: "7072", Type: wire.TypeBox},
		Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck, wire.FeatureRelay},
	})
	if reply := c.read(); reply["MESSAGE"] != "ACCEPTED" {
		b.t.Fatalf("reply: %v", reply)
	}
	return c
}

// TestPassedOn: what another box passes on is answered to its publisher, and only taken for one that has a
// session.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	parent := b.parent()
	content := []byte("a segment")
	h := header(pubA, "/live/demo/v/"+id.Path(id.DigestOf(content).Short())+"/1.ts", content)

	parent.send(h, content)
	var refused wire.Refused
	parent.readInto(&refused)
	if refused.Command != wire.CommandRefused || refused.RequestID != h.RequestID || refused.Kind != wire.KindDenied {
		t.Errorf("without a session of the publisher: %+v", refused)
	}

	publisher := b.publish(pubA, wire.FeatureAck, wire.FeatureRelay)
	parent.send(h, content)
	var stored wire.Stored
	publisher.readInto(&stored)
	if stored.Command != wire.CommandStored || stored.RequestID != h.RequestID || stored.SHA256 != h.Digest || b.content(pubA, h.Path) == nil {
		t.Errorf("with one: %+v", stored)
	}

	other := header(pubA, "/live/demo/v/0123456789ab/2.ts", content)
	other.Digest = id.DigestOf([]byte("other bytes"))
	parent.send(other, content)
	publisher.readInto(&refused)
	if refused.Kind != wire.KindDigest || refused.Parent != parentID || refused.RequestID != other.RequestID || b.content(pubA, other.Path) != nil {
		t.Errorf("spoilt on the way: %+v", refused)
	}

	foreign := header(pubB, "/live/demo/v/0123456789ab/3.ts", content)
	parent.send(foreign, content)
	parent.readInto(&refused)
	if refused.Kind != wire.KindDenied || refused.RequestID != foreign.RequestID {
		t.Errorf("of another publisher: %+v", refused)
	}
}

// TestHostileParent: what a box that passes files on does wrong is refused where somebody can hear it, in the name
// of the one who did it, and nothing of it is stored.
func TestHostileParent(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	publisher := b.publish(pubA, wire.FeatureAck, wire.FeatureRelay)
	parent, other := b.parent(), b.parent()
	content := []byte("a segment")
	path := id.Path("/live/demo/v/" + id.DigestOf(content).Short() + "/1.ts")

	nameless := header("", path, content)
	parent.send(nameless, content)
	var refused wire.Refused
	parent.readInto(&refused) // and not the other box, whose session is younger
	if refused.Kind != wire.KindDenied || refused.RequestID != nameless.RequestID {
		t.Errorf("without a publisher: %+v", refused)
	}

	forged := []byte("other bytes")
	parent.send(header(pubA, path, forged), forged)
	publisher.readInto(&refused)
	if refused.Kind != wire.KindDigest || refused.Parent != parentID || b.content(pubA, path) != nil {
		t.Errorf("with headers that fit other bytes: %+v", refused)
	}

	long := pattern(1 << 20) // more than the buffer holds
	half := header(pubA, "/long.ts", long)
	half.RequestID = "half"
	w, err := other.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append(half.AppendTo(nil), long...)); err != nil { // the last frame stays behind
		t.Fatal(err)
	}
	other.ws.Close()
	publisher.readInto(&refused)
	if refused.Kind != wire.KindRelay || refused.Parent != parentID || refused.RequestID != "half" || b.content(pubA, half.Path) != nil {
		t.Errorf("half of it: %+v", refused)
	}
}

// relaying is a box's upload that grants nothing and passes on.
type relaying struct {
	noUplink
	*relay.Service
}

func (r relaying) Pass(f relay.File, nodes []wire.RelayNode) { r.Service.Pass(f, nodes) }

func newRelayingBox(t *testing.T) *box {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	b := newBox(t, func(c *Config, _ *segstore.Config) {
		s := relay.New(relay.Config{Own: c.Own, Uplink: uplink.New(0), Log: c.Log})
		c.Uplink, c.Trusted = relaying{Service: s}, prefixes("127.0.0.0/8")
		go func() { _ = s.Run(ctx); close(done) }()
	})
	t.Cleanup(func() { cancel(); <-done })
	return b
}

// TestHostilePublisher: a publisher cannot have a box dial addresses that it could not reach itself, nor the box
// itself; and it hears why.
func TestHostilePublisher(t *testing.T) {
	t.Parallel()
	b := newRelayingBox(t)
	var dialled atomic.Int64
	victim := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { dialled.Add(1) }))
	t.Cleanup(victim.Close)
	self := b.url + wire.BoxWSPath(boxID)
	for name, tt := range map[string]struct {
		from, url string
		box       id.BoxID
		want      string
	}{
		"loopback of a public publisher":  {"203.0.113.5", victim.URL, parentID, "loopback"},
		"loopback of a private publisher": {"192.168.1.5", victim.URL, parentID, "loopback"},
		"private of a public publisher":   {"203.0.113.5", "http://192.168.1.9:80", parentID, "private"},
		"link-local":                      {"192.168.1.5", "http://169.254.169.254", parentID, ""},
		"the box itself":                  {"", self[:len(self)-len(wire.BoxWSPath(boxID))], boxID, "this box itself"},
	} {
		c := b.dialFrom(tt.from)
		c.text(wire.Publish{Peer: wire.Peer{ID: string(pubA), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck, wire.FeatureRelay}})
		if reply := c.read(); reply["MESSAGE"] != "ACCEPTED" {
			t.Fatalf("%s: %v", name, reply)
		}
		content := []byte("a segment of " + name)
		h := header(pubA, "/a.ts", content)
		h.Relay = []wire.RelayNode{{Box: tt.box, ConnectWS: tt.url + wire.BoxWSPath(tt.box), RequestID: "below"}}
		c.send(h, content)
		var refused wire.Refused
		for range 2 { // in any order
			reply := c.read()
			if reply["COMMAND"] == wire.CommandRefused {
				refused.RequestID, refused.Kind = reply["REQUEST_ID"].(string), wire.Kind(reply["KIND"].(string))
				refused.Error, refused.Box = reply["ERROR"].(string), id.BoxID(reply["BOX"].(string))
			}
		}
		if refused.RequestID != "below" || refused.Kind != wire.KindRelay || refused.Box != tt.box || !strings.Contains(refused.Error, tt.want) {
			t.Errorf("%s: %+v", name, refused)
		}
		if !bytes.Equal(b.content(pubA, h.Path), content) {
			t.Errorf("%s: the file itself is not there", name)
		}
		c.ws.Close()
		eventually(t, func() (bool, error) {
			if n := len(b.service.Sessions()); n > 0 {
				return false, fmt.Errorf("%d sessions", n)
			}
			return true, nil
		})
	}
	if dialled.Load() > 0 {
		t.Errorf("%d requests at an address that is not the publisher's to name", dialled.Load())
	}
}

// dialFrom connects as a trusted proxy does for a client at an address; "": directly.
func (b *box) dialFrom(address string) *client {
	b.t.Helper()
	head := http.Header{}
	if address != "" {
		head.Set("X-Forwarded-For", address)
	}
	ws, resp, err := websocket.DefaultDialer.Dial("ws"+strings.TrimPrefix(b.url, "http"), head)
	if err != nil {
		b.t.Fatal(err)
	}
	resp.Body.Close()
	_ = ws.SetReadDeadline(time.Now().Add(20 * time.Second))
	b.t.Cleanup(func() { ws.Close() })
	return &client{b.t, ws}
}

// TestHostileChild: a box that reads nothing of what is passed on to it does not hold up the parent's own copy.
func TestHostileChild(t *testing.T) {
	t.Parallel()
	b := newRelayingBox(t)
	ended := make(chan struct{})
	greeted := make(chan struct{})
	child := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer ws.Close()
		_, _, _ = ws.ReadMessage()
		_ = ws.WriteMessage(websocket.TextMessage, wire.Encode(wire.PublishReply{
			Peer:    wire.Peer{ID: string(parentID), IP: "198.51.100.2", Port: "1", Type: wire.TypeBox},
			Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: wire.Features{wire.FeatureAck, wire.FeatureRelay},
		}))
		close(greeted)
		<-ended
	}))
	t.Cleanup(child.Close)
	t.Cleanup(func() { close(ended) }) // before child.Close
	publisher := b.publish(pubA, wire.FeatureAck, wire.FeatureRelay)
	content := pattern(16 << 20) // more than sockets hold
	h := header(pubA, "/a.ts", content)
	h.Relay = []wire.RelayNode{{Box: parentID, ConnectWS: child.URL + wire.BoxWSPath(parentID), RequestID: "below"}}
	publisher.send(h, content)
	var stored wire.Stored
	publisher.readInto(&stored)
	if stored.Command != wire.CommandStored || stored.RequestID != h.RequestID {
		t.Errorf("%+v", stored)
	}
	<-greeted
}

// TestRelayingSessions: a box that names no feature, and one that is none, gets no session; and a relaying
// session has no commands.
func TestRelayingSessions(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	for name, publish := range map[string]wire.Publish{
		"without features": {Peer: wire.Peer{ID: string(parentID), IP: "198.51.100.2", Port: "1", Type: wire.TypeBox}, Command: wire.CommandPublish},
		"without relay":    {Peer: wire.Peer{ID: string(parentID), IP: "198.51.100.2", Port: "1", Type: wire.TypeBox}, Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck}},
		"no box's ID":      {Peer: wire.Peer{ID: "box-../../x", IP: "198.51.100.2", Port: "1", Type: wire.TypeBox}, Command: wire.CommandPublish, Features: wire.Ours()},
	} {
		c := b.dial()
		c.text(publish)
		if reply := c.read(); reply["ERROR"] == nil || reply["MESSAGE"] != nil {
			t.Errorf("%s: %v", name, reply)
		}
	}
	parent := b.parent()
	for _, command := range []string{wire.CommandHave, wire.CommandDemand, wire.CommandCopy, wire.CommandDelete} {
		parent.text(wire.Envelope{Peer: wire.Peer{ID: string(parentID), IP: "198.51.100.2", Port: "1", Type: wire.TypeBox}, Command: command})
		if reply := parent.read(); reply["ERROR"] != "Unknown COMMAND: "+command {
			t.Errorf("%s: %v", command, reply)
		}
	}
}

// TestCopyOfWhatIsNotHeld: each box in the tree that gets nothing is named to the publisher, and what is no
// COPY gets an error.
func TestCopyOfWhatIsNotHeld(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil)
	c := b.publish(pubA, wire.FeatureAck, wire.FeatureRelay)
	own := wire.Peer{ID: string(pubA), IP: "198.51.100.1", Type: wire.TypePublisher}
	node := wire.RelayNode{Box: parentID, ConnectWS: "http://198.51.100.2:7072" + wire.BoxWSPath(parentID), RequestID: "r1"}
	c.text(wire.Copy{Peer: own, Command: wire.CommandCopy, FilePath: "/live/demo/v/0123456789ab/1.ts", TTL: 60, Relay: []wire.RelayNode{node}})
	var refused wire.Refused
	c.readInto(&refused)
	if refused.Kind != wire.KindRelay || refused.Box != parentID || refused.RequestID != "r1" {
		t.Errorf("%+v", refused)
	}
	for name, wrong := range map[string]wire.Copy{
		"a path above": {FilePath: "/../x", Relay: []wire.RelayNode{node}},
		"a box twice":  {FilePath: "/a", Relay: []wire.RelayNode{node, node}},
		"a TTL":        {FilePath: "/a", TTL: -1, Relay: []wire.RelayNode{node}},
	} {
		wrong.Peer, wrong.Command = own, wire.CommandCopy
		c.text(wrong)
		if reply := c.read(); reply["ERROR"] == nil {
			t.Errorf("%s: %v", name, reply)
		}
	}
}

// TestOwnerRefuses: an owner takes nothing of a publisher, or of one of its streams.
func TestOwnerRefuses(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(c *Config, _ *segstore.Config) {
		c.Owner.Refuses = func(pub id.PublisherID, stream id.StreamName) bool { return pub == pubB || stream == "demo" }
	})
	c := b.dial()
	c.text(wire.Publish{Peer: wire.Peer{ID: string(pubB), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandPublish})
	if reply := c.read(); reply["ERROR"] == nil {
		t.Errorf("%v", reply)
	}
	c = b.publish(pubA, wire.FeatureAck)
	content := []byte("a segment")
	for _, tt := range []struct {
		stream string
		want   string
	}{{"demo", wire.CommandRefused}, {"other", wire.CommandStored}} {
		c.send(header(pubA, id.Path("/live/"+tt.stream+"/v/"+id.DigestOf(content).Short()+"/1.ts"), content), content)
		if reply := c.read(); reply["COMMAND"] != tt.want {
			t.Errorf("%s: %v", tt.stream, reply)
		}
	}
}

// TestGrantsComeAfterTheReply: terms in the reply, and changes behind it.
func TestGrantsComeAfterTheReply(t *testing.T) {
	t.Parallel()
	terms := wire.Terms{Rate: 1000, Seconds: 30}
	b := newBox(t, func(c *Config, _ *segstore.Config) { c.Uplink = &grantor{noUplink{}, terms} })
	c := b.publish(pubA, wire.FeatureAck, wire.FeatureGrant)
	b.service.Tell(pubA)
	var grant wire.Grant
	c.readInto(&grant)
	if grant.Command != wire.CommandGrant || grant.Terms != terms || grant.Lasts() != 30*time.Second {
		t.Errorf("%+v", grant)
	}
	c.text(wire.Demand{Peer: wire.Peer{ID: string(pubA), IP: "198.51.100.1", Type: wire.TypePublisher}, Command: wire.CommandDemand, Rate: -1})
	if reply := c.read(); reply["ERROR"] == nil {
		t.Errorf("%v", reply)
	}
}

type grantor struct {
	noUplink
	terms wire.Terms
}

func (g *grantor) Open(id.PublisherID, bool) wire.Terms { return g.terms }
func (g *grantor) Terms(id.PublisherID) wire.Terms      { return g.terms }
