package relay

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	openWithin = 3 * time.Second // for a session, or its box counts as away
	oldSilence = time.Minute     // an old box may answer no ping while it writes a file
	maxExpect  = 16              // latest files of a session that may still be refused on it
)

// target is who sessions are kept with. To an old box, which knows no relaying, a session speaks for one
// publisher.
type target struct {
	box       id.BoxID
	connectWS string
	publisher id.PublisherID
}

// peer is a box with its sessions.
type peer struct {
	target
	slots chan struct{} // one for each session in use
	users int           // transfers to it; Service.mu's

	mu   sync.Mutex
	idle []*session // the one used last at the end
}

// peer returns the box of a node, for a transfer that calls leave in the end.
func (s *Service) peer(n wire.RelayNode, pub id.PublisherID) *peer {
	t := target{box: n.Box, connectWS: n.ConnectWS}
	if n.Old {
		t.publisher = pub
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[t]
	if p == nil {
		p = &peer{target: t, slots: make(chan struct{}, perPeer)}
		s.peers[t] = p
	}
	p.users++
	return p
}

func (s *Service) leave(p *peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p.users--
}

// acquire returns a session that nobody else uses: a kept one, or a new one. It waits while all are
// in use.
func (p *peer) acquire(ctx context.Context, s *Service, least netaddr.Scope) (*session, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("all sessions with it are in use: %w", context.Cause(ctx))
	}
	if c := p.kept(); c != nil {
		return c, nil
	}
	c, err := s.open(ctx, p, least)
	if err != nil {
		<-p.slots
	}
	return c, err
}

func (p *peer) kept() *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		c := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		select {
		case <-c.ended:
		default:
			return c
		}
	}
	return nil
}

func (p *peer) release(c *session, well bool) {
	p.mu.Lock()
	switch {
	case !well:
		c.Abort()
	case c.leaving:
		c.Close("the box leaves")
	default:
		c.since = time.Now()
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	<-p.slots
}

// leave closes a session whose box said goodbye, when it is not in use any more.
func (c *session) leave() {
	p := c.peer
	p.mu.Lock()
	defer p.mu.Unlock()
	c.leaving = true
	if i := slices.Index(p.idle, c); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
		c.Close("the box leaves")
	}
}

// closeIdle closes sessions that were not used since, and forgets boxes without any.
func (s *Service) closeIdle(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, p := range s.peers {
		p.mu.Lock()
		var keep []*session
		for _, c := range p.idle {
			if c.since.After(before) {
				keep = append(keep, c)
			} else {
				c.Close("no more files for now")
			}
		}
		p.idle = keep
		if len(keep) == 0 && p.users == 0 {
			delete(s.peers, t)
		}
		p.mu.Unlock()
	}
}

// session is a relaying session with a box.
type session struct {
	*wsconn.Conn
	peer    *peer
	since   time.Time // idle; this and leaving are peer.mu's
	leaving bool      // the box said goodbye
	ended   chan struct{}

	mu       sync.Mutex
	expected []expectation
}

// expectation is a file that the box may refuse on this session, because the publisher has none with
// it.
type expectation struct {
	node   wire.RelayNode
	answer func(any)
}

func (c *session) expect(n wire.RelayNode, answer func(any)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.expected) == maxExpect {
		c.expected = c.expected[1:]
	}
	c.expected = append(c.expected, expectation{n, answer})
}

// open dials the box. Only its websocket is asked, whatever else the publisher names: a box is no
// proxy.
func (s *Service) open(ctx context.Context, p *peer, least netaddr.Scope) (*session, error) {
	t := p.target
	u, err := url.Parse(t.connectWS)
	if err != nil || strings.TrimSuffix(u.Path, "/") != strings.TrimSuffix(wire.BoxWSPath(t.box), "/") || u.RawQuery != "" {
		return nil, errors.New("its CONNECT_WS is not the websocket of that box")
	}
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	conn, err := wsconn.Dial(ctx, t.connectWS, wsconn.Dialing{Least: least, Paced: true})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, conn.Abort)
	defer stop()
	c := &session{Conn: conn, peer: p, ended: make(chan struct{})}
	if err := s.greet(c, t); err != nil {
		conn.Abort()
		return nil, err
	}
	go c.read()
	return c, nil
}

func (s *Service) greet(c *session, t target) error {
	hello := wire.Publish{Peer: s.cfg.Own(c.LocalAddr()), Command: wire.CommandPublish, Features: wire.Features{wire.FeatureAck, wire.FeatureRelay}}
	if hello.ID == string(t.box) {
		return errors.New("it is this box itself")
	}
	if t.publisher != "" {
		hello.Peer, hello.Features = wire.Peer{ID: string(t.publisher), IP: hello.IP, Type: wire.TypePublisher}, nil
	}
	if err := c.WriteText(wire.Encode(hello)); err != nil {
		return err
	}
	raw, err := c.ReadText(wire.MaxMessage)
	if err != nil {
		return err
	}
	reply, err := wire.Decode[wire.PublishReply](raw)
	switch {
	case err != nil:
		return err
	case reply.Error != "":
		return fmt.Errorf("it refuses: %s", id.Quote(reply.Error))
	case reply.Message != wire.MessageAccepted:
		return errors.New("it does not accept the session")
	case reply.ID != string(t.box):
		return fmt.Errorf("another peer answers there: %s", id.Quote(reply.ID))
	case t.publisher == "" && !reply.Features.Has(wire.FeatureRelay):
		return errors.New("it does not take files from boxes")
	}
	if t.publisher == "" {
		c.KeepAlive(wire.PingInterval, wire.SilenceLimit)
	} else {
		c.KeepAlive(wire.PingInterval, oldSilence)
	}
	return nil
}

// read passes refusals on until the connection ends.
func (c *session) read() {
	defer close(c.ended)
	defer c.Abort()
	for {
		raw, err := c.ReadText(wire.MaxMessage)
		if err != nil {
			return
		}
		refusal, err := wire.Decode[wire.Refused](raw)
		if err == nil && refusal.Command == wire.CommandGoodbye {
			c.leave()
		}
		if err != nil || refusal.Command != wire.CommandRefused {
			continue
		}
		c.mu.Lock()
		for _, e := range c.expected {
			if e.node.RequestID == refusal.RequestID {
				refusal.Peer, refusal.Box = wire.Peer{}, e.node.Box
				go e.answer(refusal) // the publisher may be slow to take it
				break
			}
		}
		c.mu.Unlock()
	}
}

// confirm takes "the socket still healthy one ping later" as stored (docs/protocol.md, FEATURES).
func (c *session) confirm(ctx context.Context) error {
	alive, err := c.Ping()
	if err != nil {
		return err
	}
	select {
	case <-alive:
		return nil
	case <-c.ended:
		return errors.New("it closed the session behind the file")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
