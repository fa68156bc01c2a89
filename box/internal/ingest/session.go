package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
	"dandelion/pkg/wsconn"
)

const (
	// Old publishers send nothing between files and may be paused; they do answer pings.
	oldPing    = 30 * time.Second
	oldSilence = 5 * time.Minute
	// leaveGrace is how long a publisher that was told goodbye may take to close by itself. Files
	// that it had sent before it heard of it are refused meanwhile.
	leaveGrace = 1500 * time.Millisecond
)

// session is one connection of a publisher, or of a box that passes files on. Its fields below conn belong to its own goroutine
// unless they say otherwise.
type session struct {
	s     *Service
	conn  *wsconn.Conn
	since time.Time
	done  chan struct{} // closed when run returns
	// turn holds a token while no file is coming in, so that leave does not cut one.
	turn chan struct{}
	// unanswered is the file that comes in: whoever takes it from here answers for it.
	unanswered atomic.Pointer[wire.FileHeader]

	files, bytes atomic.Int64

	granting sync.Mutex // held while terms are told, so that the latest are the last

	// Set once, under Service.mu, when the session is accepted.
	peer      string         // its ID
	publisher id.PublisherID // "": it is a box's
	ip        string
	frontURL  string
	features  wire.Features
	dropped   bool // gave its place to another before it was accepted

	complaints int
}

func newSession(s *Service, conn *wsconn.Conn) *session {
	ses := &session{s: s, conn: conn, since: time.Now(), done: make(chan struct{}), turn: make(chan struct{}, 1)}
	ses.turn <- struct{}{}
	return ses
}

func (ses *session) log() *slog.Logger {
	return ses.s.cfg.Log.With("peer", ses.peer, "remote", ses.conn.Remote())
}

func (ses *session) own() wire.Peer { return ses.s.cfg.Own(ses.conn.LocalAddr()) }

func (ses *session) ack() bool { return ses.features.Has(wire.FeatureAck) }

// run serves the connection until it ends.
func (ses *session) run() {
	defer close(ses.done)
	if !ses.open() {
		return
	}
	ses.log().Info("connected", "features", ses.features)
	ses.s.cfg.Records.SessionsChanged()
	err := ses.serve()
	if err != nil && !wsconn.SaidGoodbye(err) {
		ses.log().Info("connection ended", "files", ses.files.Load(), "error", err)
		return
	}
	ses.log().Info("left", "files", ses.files.Load())
}

// open reads the first message, which must be a PUBLISH, and answers it.
func (ses *session) open() bool {
	late := time.AfterFunc(ses.s.cfg.Limits.Header, ses.conn.Abort) // however it trickles
	defer late.Stop()
	message, err := ses.conn.ReadText(wire.MaxMessage)
	switch {
	case errors.Is(err, wsconn.ErrBinary), errors.Is(err, wsconn.ErrTooLong):
		ses.refuse(wire.NewWrongFormat(ses.own(), []byte(err.Error())))
		return false
	case err != nil:
		ses.log().Debug("a connection ended before its first message", "error", err)
		return false
	}
	envelope, err := wire.DecodeEnvelope(message)
	if err != nil {
		ses.refuse(wire.NewWrongFormat(ses.own(), message))
		return false
	}
	if envelope.Command != wire.CommandPublish {
		ses.refuse(wire.NewUnknownCommand(ses.own(), envelope.Command))
		return false
	}
	return ses.publish(message)
}

// publish takes the PUBLISH that opens the session.
func (ses *session) publish(message []byte) bool {
	publish, err := wire.Decode[wire.Publish](message)
	if err != nil {
		ses.refuse(wire.NewWrongFormat(ses.own(), message))
		return false
	}
	deny := func(why string) bool {
		ses.log().Warn("a publisher was refused", "id", id.Quote(publish.ID), "reason", why)
		ses.refuse(wire.PublishReply{Peer: ses.own(), Command: wire.CommandPublish, Error: why})
		return false
	}
	features := wire.Ours().And(publish.Features)
	var pub id.PublisherID
	switch {
	case publish.Type == wire.TypePublisher:
		pub, err = id.ParsePublisherID(publish.ID)
	case publish.Type == wire.TypeBox && features.Has(wire.FeatureAck) && features.Has(wire.FeatureRelay):
		_, err = id.ParseBoxID(publish.ID)
		features = wire.Features{wire.FeatureAck, wire.FeatureRelay}
	default:
		return deny("TYPE is " + id.Quote(publish.Type) + ": want " + wire.TypePublisher + ", or " + wire.TypeBox + " with the features ack and relay")
	}
	if err != nil {
		return deny("ID: " + err.Error())
	}
	if pub != "" && ses.s.cfg.Owner.Refuses(pub, "") {
		return deny("this box's owner takes nothing of this publisher")
	}
	if publish.FrontURL != "" {
		if _, err := wire.ParseURL(publish.FrontURL); err != nil {
			return deny("FRONT_URL: " + err.Error())
		}
	}
	ses.granting.Lock() // no terms before the reply
	defer ses.granting.Unlock()
	if why := ses.s.claim(ses, pub, publish, features); why != "" {
		return deny(why)
	}
	if err := ses.accept(); err != nil {
		return false
	}
	if len(features) > 0 {
		ses.conn.KeepAlive(wire.SessionPing, wire.SilenceLimit)
	} else {
		ses.conn.KeepAlive(oldPing, oldSilence)
	}
	return true
}

func (ses *session) accept() error {
	reply := wire.PublishReply{
		Peer: ses.own(), Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: ses.features,
	}
	if ses.publisher == "" {
		return ses.send(reply)
	}
	terms := ses.s.cfg.Uplink.Open(ses.publisher, ses.features.Has(wire.FeatureGrant))
	if ses.features.Has(wire.FeatureGrant) {
		reply.Grant = &terms
		if reply.Favours = ses.s.cfg.Owner.Favours(ses.publisher); len(reply.Favours) > 0 {
			reply.Seed = ses.s.cfg.Owner.Seed
		}
	}
	return ses.send(reply)
}

// serve takes files and commands until the connection ends; the error says how, nil: by our wish.
func (ses *session) serve() error {
	for {
		binary, r, err := ses.conn.Next()
		if err != nil {
			return err
		}
		if binary {
			if err := ses.file(r); err != nil {
				return err
			}
			continue
		}
		message, err := ses.readCommand(r)
		if errors.Is(err, wsconn.ErrTooLong) {
			ses.refuse(wire.NewWrongFormat(ses.own(), []byte(err.Error())))
			return nil
		}
		if err != nil {
			return err
		}
		if goOn, err := ses.command(message); err != nil || !goOn {
			return err
		}
	}
}

func (ses *session) readCommand(r io.Reader) ([]byte, error) {
	p := ses.paced(r)
	defer p.stop()
	p.content.Store(true)
	return wsconn.ReadAll(p, wire.MaxMessage)
}

// command answers a text message. goOn is false when the connection has been closed for it.
func (ses *session) command(message []byte) (goOn bool, err error) {
	envelope, err := wire.DecodeEnvelope(message)
	if err != nil {
		ses.refuse(wire.NewWrongFormat(ses.own(), message))
		return false, nil
	}
	if envelope.ID != ses.peer {
		ses.refuse(wire.ErrorReply{Peer: ses.own(), Error: "this connection belongs to " + ses.peer + ": open another one for another ID"})
		return false, nil
	}
	if envelope.Command == wire.CommandPublish { // again: nothing changes
		return true, ses.send(wire.PublishReply{Peer: ses.own(), Command: wire.CommandPublish, Message: wire.MessageAccepted, Features: ses.features})
	}
	if ses.publisher != "" && ses.features.Has(wire.FeatureGrant) && envelope.Command == wire.CommandDemand {
		return true, ses.demand(message)
	}
	if ses.publisher != "" && ses.features.Has(wire.FeatureRelay) && envelope.Command == wire.CommandCopy {
		return true, ses.copy(message)
	}
	if ses.publisher != "" && ses.ack() {
		switch envelope.Command {
		case wire.CommandHave:
			return true, ses.have(message)
		case wire.CommandDelete:
			return true, ses.delete(message)
		case wire.CommandGoodbye:
			goodbye, _ := wire.Decode[wire.Goodbye](message)
			ses.log().Debug("publisher says goodbye", "reason", id.Quote(goodbye.Reason))
			return true, nil
		}
	}
	unknown := wire.NewUnknownCommand(ses.own(), envelope.Command)
	if len(ses.features) > 0 {
		return true, ses.send(unknown)
	}
	ses.refuse(unknown)
	return false, nil
}

// maxPage is how many bytes of FILE_PATH and the rest one HAVE page holds, below wire.MaxMessage.
const maxPage = wire.MaxMessage * 3 / 4

func (ses *session) have(message []byte) error {
	have, err := wire.Decode[wire.Have](message)
	after := id.Path("")
	if err == nil && have.After != "" {
		after, err = id.ParsePath(have.After)
	}
	if err != nil {
		return ses.send(wire.ErrorReply{Peer: ses.own(), Error: "HAVE: AFTER: " + err.Error()})
	}
	const perFile = 160 // bytes of JSON around the path
	held := ses.s.cfg.Store.Have(ses.publisher, after, wire.HavePage)
	page := wire.HavePageReply{Peer: ses.own(), Command: wire.CommandHave, Files: make([]wire.HaveFile, 0, len(held))}
	size := 0
	for _, e := range held {
		// A byte of a path is at most six in JSON.
		if size += perFile + 6*len(e.Path); size > maxPage {
			break
		}
		page.Files = append(page.Files, wire.HaveFile{FilePath: e.Path, SHA256: e.Digest, Size: e.Size, Expires: unixOrZero(e.Expires)})
	}
	if n := len(page.Files); n > 0 && (n < len(held) || n == wire.HavePage) {
		page.Next = string(page.Files[n-1].FilePath)
	}
	return ses.send(page)
}

func (ses *session) delete(message []byte) error {
	request, err := wire.Decode[wire.Delete](message)
	if err != nil {
		return ses.send(wire.ErrorReply{Peer: ses.own(), Error: "DELETE: " + err.Error()})
	}
	deleted := wire.Deleted{Peer: ses.own(), Command: wire.CommandDeleted, RequestID: request.RequestID}
	for _, raw := range request.FilePaths {
		path, err := id.ParsePath(raw)
		if err != nil {
			continue // no such file is held
		}
		if ses.s.cfg.Store.Delete(ses.publisher, path) {
			deleted.Count++
			ses.s.cfg.Records.Deleted(ses.publisher, path)
		}
	}
	return ses.send(deleted)
}

func unixOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func (ses *session) send(v any) error {
	if err := ses.conn.WriteText(wire.Encode(v)); err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

// refuse sends a last message and closes with code 1000.
func (ses *session) refuse(v any) { ses.conn.Refuse(wire.Encode(v)) }

// leave says goodbye to a peer that understands it, lets the file that is coming in
// arrive, and closes the connection.
func (ses *session) leave(ctx context.Context, goodbye wire.Goodbye) {
	ses.s.mu.Lock()
	ack := ses.ack()
	ses.s.mu.Unlock()
	if ack {
		goodbye.Peer = ses.own()
		if ses.send(goodbye) == nil {
			grace := time.NewTimer(leaveGrace)
			defer grace.Stop()
			select {
			case <-ses.done:
				return
			case <-grace.C:
			case <-ctx.Done():
			}
		}
	}
	select {
	case <-ses.turn:
		ses.conn.Close(goodbye.Reason)
		ses.turn <- struct{}{} // for what still comes until the peer has answered
	case <-ses.done:
	case <-ctx.Done():
	}
}

// cut ends a session that the drain cannot wait for: the file that is still coming in is refused, so
// that its publisher need not guess.
func (ses *session) cut(goodbye wire.Goodbye) {
	if h := ses.unanswered.Swap(nil); h != nil {
		_ = ses.answer(h, wire.Refused{
			Command: wire.CommandRefused, RequestID: h.RequestID, Kind: wire.KindDraining,
			Error: "this box is about to leave and cannot wait for the rest: " + goodbye.Reason,
		})
	}
	ses.conn.Close(goodbye.Reason)
}
