package ingest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"dandelion/box/internal/segstore"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

const (
	// headerBuffer is small: the store reads the content past it with a large buffer of its own.
	headerBuffer = 4 << 10
	// oldFileSilence is how long an old publisher may pause in the middle of a file.
	oldFileSilence = 30 * time.Second
	// maxComplaints is how many refusals of one session are logged: the rest is only counted.
	maxComplaints = 10
)

var headerBuffers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, headerBuffer) }}

// file takes one binary message. The error means that the connection is of no use any more; a
// refused file is none.
func (ses *session) file(r io.Reader) error {
	<-ses.turn
	defer func() { ses.turn <- struct{}{} }()
	if len(ses.features) == 0 {
		ses.conn.SetSilence(oldFileSilence)
		defer ses.conn.SetSilence(oldSilence)
	}
	p := ses.paced(r)
	defer p.stop()
	br := headerBuffers.Get().(*bufio.Reader)
	br.Reset(p)
	defer func() {
		br.Reset(nil)
		headerBuffers.Put(br)
	}()

	header, entry, err := ses.receive(br, p)
	var refusal *segstore.Refusal
	if errors.As(err, &refusal) {
		ses.s.metrics.files.WithLabelValues(string(refusal.Kind)).Inc()
		return ses.turnDown(header, refusal, br)
	}
	if errors.Is(err, errTooSlow) {
		ses.s.metrics.files.WithLabelValues("slow").Inc()
		ses.brokeOff(header, err)
		return fmt.Errorf("the file %s: %w", id.Quote(string(header.Path)), err)
	}
	if err != nil {
		ses.s.metrics.files.WithLabelValues("broken").Inc()
		ses.brokeOff(header, err)
		return fmt.Errorf("the file %s broke off: %w", id.Quote(string(header.Path)), err)
	}
	ses.count(entry)
	ses.s.cfg.Records.Stored(entry)
	if !ses.ack() || !ses.unanswered.CompareAndSwap(header, nil) {
		return nil
	}
	return ses.answer(header, wire.Stored{
		Command: wire.CommandStored, RequestID: header.RequestID, FilePath: entry.Path,
		Size: entry.Size, SHA256: entry.Digest, Expires: unixOrZero(entry.Expires),
	})
}

// receive reads one file into the store. The error is a *segstore.Refusal where the file is
// refused; any other is the connection's.
func (ses *session) receive(br *bufio.Reader, p *pace) (*wire.FileHeader, segstore.Entry, error) {
	parsed, err := wire.ReadFileHeader(br)
	header := &parsed
	p.content.Store(true)
	if ses.ack() {
		ses.unanswered.Store(header)
	}
	var malformed *wire.HeaderError
	if errors.As(err, &malformed) {
		return header, segstore.Entry{}, &segstore.Refusal{Kind: malformed.Kind, Err: malformed.Err}
	}
	if err != nil {
		return header, segstore.Entry{}, err
	}
	if err := ses.check(parsed); err != nil {
		return header, segstore.Entry{}, err
	}
	w, err := ses.s.cfg.Store.Create(segstore.Meta{
		Publisher: ses.owner(parsed), Path: header.Path, TTL: header.TTL, Size: header.Size, Digest: header.Digest,
		Plays: header.Plays,
	})
	if err != nil {
		return header, segstore.Entry{}, err
	}
	defer w.Cancel()
	if len(parsed.Relay) > 0 && ses.features.Has(wire.FeatureRelay) {
		ses.pass(parsed, w.Follow, true)
	}
	if _, err := w.ReadFrom(br); err != nil {
		return header, segstore.Entry{}, err
	}
	entry, err := w.Commit()
	return header, entry, err
}

// check refuses what the store need not be asked about.
func (ses *session) check(h wire.FileHeader) error {
	refuse := func(kind wire.Kind, text string) error {
		return &segstore.Refusal{Kind: kind, Err: errors.New(text)}
	}
	if goodbye, draining := ses.s.isDraining(); draining {
		return refuse(wire.KindDraining, "this box is about to leave: "+goodbye.Reason)
	}
	switch {
	case ses.publisher != "" && h.Publisher != "" && h.Publisher != ses.publisher:
		return refuse(wire.KindDenied, "PUBLISHER is not the one that this connection belongs to")
	case ses.publisher == "" && (h.Publisher == "" || ses.s.with(h.Publisher, wire.FeatureRelay) == nil):
		return refuse(wire.KindDenied, "PUBLISHER has no session with this box: only its files are taken from other boxes")
	}
	seg, live := id.ParseSegmentPath(h.Path)
	if live && ses.publisher == "" && h.Digest.Short() != seg.Short {
		return refuse(wire.KindDigest, "SHA256 is not the one that FILE_PATH is named by")
	}
	if live && ses.s.cfg.Owner.Refuses(ses.owner(h), seg.Stream) {
		return refuse(wire.KindDenied, "this box's owner takes nothing of this stream")
	}
	if ses.ack() {
		// Without them nobody could tell a part from the whole, nor which file an answer is for.
		switch {
		case h.RequestID == "":
			return refuse(wire.KindMalformed, "REQUEST_ID is missing: an acknowledged file needs one")
		case h.Size < 0:
			return refuse(wire.KindMalformed, "SIZE is missing: an acknowledged file needs it")
		case h.Digest.IsZero():
			return refuse(wire.KindMalformed, "SHA256 is missing: an acknowledged file needs it")
		}
	}
	return nil
}

// turnDown answers a refused file and reads past the rest of it.
func (ses *session) turnDown(h *wire.FileHeader, refusal *segstore.Refusal, rest io.Reader) error {
	if ses.complaints++; ses.complaints <= maxComplaints {
		ses.log().Warn("a file was refused", "path", id.Quote(string(h.Path)), "kind", refusal.Kind, "reason", refusal.Error())
	}
	if ses.ack() && ses.unanswered.CompareAndSwap(h, nil) {
		// Told before the rest has come: a publisher may rather close than send it.
		if err := ses.answer(h, wire.Refused{
			Command: wire.CommandRefused, RequestID: h.RequestID, Error: refusal.Error(), Kind: refusal.Kind,
		}); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, rest)
	return err
}

func (ses *session) count(e segstore.Entry) {
	ses.s.metrics.files.WithLabelValues("stored").Inc()
	ses.s.metrics.bytes.Add(float64(e.Size))
	ses.s.files.Add(1)
	ses.s.bytes.Add(e.Size)
	ses.files.Add(1)
	ses.bytes.Add(e.Size)
}
