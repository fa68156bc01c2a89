package ingest

import (
	"testing"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
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
