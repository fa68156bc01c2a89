package ingest

import (
	"fmt"
	"io"
	"time"

	"dandelion/box/internal/relay"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

type noUplink struct{}

func (noUplink) Open(id.PublisherID, bool) wire.Terms { return wire.Terms{} }
func (noUplink) Close(id.PublisherID, bool)           {}
func (noUplink) Terms(id.PublisherID) wire.Terms      { return wire.Terms{} }
func (noUplink) Demand(id.PublisherID, int64)         {}
func (noUplink) Pass(f relay.File, nodes []wire.RelayNode) {
	for _, n := range nodes {
		go f.Answer(wire.Refused{Command: wire.CommandRefused, RequestID: n.RequestID, Kind: wire.KindRelay, Box: n.Box, Error: "this box passes nothing on"})
	}
}

// owner is the publisher whose file it is.
func (ses *session) owner(h wire.FileHeader) id.PublisherID {
	if ses.publisher != "" {
		return ses.publisher
	}
	return h.Publisher
}

// answer tells the publisher what became of a file: on this session, or where a box passed the file on
// on the publisher's own. A publisher that is slow to take it holds up no box.
func (ses *session) answer(h *wire.FileHeader, message any) error {
	if ses.publisher != "" {
		return ses.send(ses.signed(message))
	}
	own := ses.s.with(h.Publisher, wire.FeatureRelay)
	refusal, refused := message.(wire.Refused)
	switch {
	case own == nil && refused:
		return ses.send(ses.signed(refusal)) // the box that passed it on knows whom to tell
	case own == nil:
		return nil // its HAVE will tell
	case refused:
		refusal.Parent = id.BoxID(ses.peer)
		message = refusal
	}
	go func() { _ = own.send(own.signed(message)) }()
	return nil
}

// brokeOff tells the publisher that a box did not pass a file on to its end. A publisher knows of itself what it
// broke off.
func (ses *session) brokeOff(h *wire.FileHeader, err error) {
	if ses.publisher == "" && ses.unanswered.CompareAndSwap(h, nil) {
		_ = ses.answer(h, wire.Refused{
			Command: wire.CommandRefused, RequestID: h.RequestID, Kind: wire.KindRelay,
			Error: "the box that passes it on broke off: " + err.Error(),
		})
	}
}

// signed adds what the box says of itself.
func (ses *session) signed(message any) any {
	switch m := message.(type) {
	case wire.Stored:
		m.Peer = ses.own()
		return m
	case wire.Refused:
		m.Peer = ses.own()
		return m
	}
	return message
}

// pass passes a file on that comes in, or that the store has.
func (ses *session) pass(h wire.FileHeader, open func() (io.ReadCloser, error), arriving bool) {
	pub, nodes := ses.owner(h), h.Relay
	least := netaddr.ScopeOf(ses.conn.Remote())
	if own := ses.s.with(pub, wire.FeatureRelay); own != nil {
		least = netaddr.ScopeOf(own.conn.Remote())
	}
	h.Publisher, h.Relay, h.RequestID = pub, nil, ""
	ses.s.cfg.Uplink.Pass(relay.File{
		Header: h, Open: open, Least: least, Arriving: arriving,
		Answer: func(message any) {
			if own := ses.s.with(pub, wire.FeatureRelay); own != nil {
				_ = own.send(own.signed(message))
			}
		},
	}, nodes)
}

// copy passes on a file that the box holds, as COPY asks.
func (ses *session) copy(message []byte) error {
	c, err := wire.Decode[wire.Copy](message)
	var path id.Path
	if err == nil {
		path, err = id.ParsePath(c.FilePath)
	}
	if err == nil {
		err = wire.CheckRelay(c.Relay)
	}
	if err == nil && (c.TTL < 0 || c.TTL > int64(wire.MaxTTL/time.Second) || !(c.Duration >= 0 && c.Duration <= wire.MaxPlays.Seconds())) {
		err = fmt.Errorf("TTL %d or DURATION %v is out of its range", c.TTL, c.Duration)
	}
	if err != nil {
		return ses.send(wire.ErrorReply{Peer: ses.own(), Error: "COPY: " + err.Error()})
	}
	open := func() (io.ReadCloser, error) {
		file, held, err := ses.s.cfg.Store.Open(ses.publisher, path)
		if err != nil {
			return nil, fmt.Errorf("this box does not hold %s", path)
		}
		if held.Digest != c.SHA256 {
			file.Close()
			return nil, fmt.Errorf("this box holds other bytes of %s", path)
		}
		return file, nil
	}
	entry, _ := ses.s.cfg.Store.Get(ses.publisher, path)
	ses.pass(wire.FileHeader{
		Path: path, TTL: time.Duration(c.TTL) * time.Second, Size: entry.Size, Digest: c.SHA256,
		Plays: time.Duration(c.Duration * float64(time.Second)), Relay: c.Relay,
	}, open, false)
	return nil
}

func (ses *session) demand(message []byte) error {
	d, err := wire.Decode[wire.Demand](message)
	if err != nil || d.Rate < 0 {
		return ses.send(wire.ErrorReply{Peer: ses.own(), Error: "DEMAND: RATE: want bytes per second, 0 or more"})
	}
	ses.s.cfg.Uplink.Demand(ses.publisher, d.Rate)
	return nil
}

// Tell tells a publisher what it may plan with from now on. It does not block, and may be called from
// any goroutine.
func (s *Service) Tell(pub id.PublisherID) {
	ses := s.with(pub, wire.FeatureGrant)
	if ses == nil {
		return
	}
	go func() {
		ses.granting.Lock()
		defer ses.granting.Unlock()
		_ = ses.send(wire.Grant{Peer: ses.own(), Command: wire.CommandGrant, Terms: s.cfg.Uplink.Terms(pub)})
	}()
}
