package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"dandelion/pkg/id"
)

// A file is one binary message (docs/protocol.md):
//
//	<Dandelion> JSON headers </Dandelion> content
const (
	fileOpen  = "<Dandelion>"
	fileClose = "</Dandelion>"
)

// FileHeader is what stands before a file's content. The fields from RequestID on belong to
// FeatureAck and are zero in a file of an old publisher.
type FileHeader struct {
	Path      id.Path
	TTL       time.Duration // whole seconds; 0: until its room is needed
	RequestID string
	Publisher id.PublisherID
	Size      int64 // bytes of content, -1 where the sender did not say
	Digest    id.Digest
	Plays     time.Duration // how long it plays; 0: not said (FeatureGrant)
	Relay     []RelayNode   // the boxes that it is passed on to (FeatureRelay)
}

// HeaderError is the refusal of a file because of its headers.
type HeaderError struct {
	Kind Kind
	Err  error
}

func (e *HeaderError) Error() string { return e.Err.Error() }
func (e *HeaderError) Unwrap() error { return e.Err }

type fileHeaderJSON struct {
	FilePath  *string        `json:"FILE_PATH,omitzero"`
	TTL       jsontext.Value `json:"TTL,omitzero"`
	RequestID string         `json:"REQUEST_ID,omitzero"`
	Publisher string         `json:"PUBLISHER,omitzero"`
	Size      *int64         `json:"SIZE,omitzero"`
	SHA256    string         `json:"SHA256,omitzero"`
	Duration  float64        `json:"DURATION,omitzero"`
	Relay     []RelayNode    `json:"RELAY,omitzero"`
}

// AppendTo appends the framed headers to b; the content follows. For an old box leave
// RequestID empty.
func (h FileHeader) AppendTo(b []byte) []byte {
	path := string(h.Path)
	raw := fileHeaderJSON{FilePath: &path, TTL: jsontext.Value(strconv.FormatInt(int64(h.TTL/time.Second), 10))}
	if h.RequestID != "" {
		raw.RequestID, raw.Publisher = h.RequestID, string(h.Publisher)
		raw.Size, raw.SHA256 = &h.Size, h.Digest.String()
		raw.Duration, raw.Relay = h.Plays.Seconds(), h.Relay
	}
	// '<' is escaped, so that no path can end the headers early.
	encoded, err := json.Marshal(raw, jsontext.EscapeForHTML(true))
	if err != nil {
		panic(fmt.Sprintf("wire: encoding file headers: %v", err))
	}
	b = append(b, fileOpen...)
	b = append(b, encoded...)
	return append(b, fileClose...)
}

// ReadFileHeader reads the headers of a file and leaves r at the first byte of its content.
// It reads no more than MaxFileHeader bytes to find them. Errors of the headers themselves are
// a *HeaderError, with what was understood in the header returned (RequestID above all), so
// that the refusal can name it; other errors are those of r.
func ReadFileHeader(r *bufio.Reader) (FileHeader, error) {
	raw, err := readFraming(r)
	if err != nil {
		return FileHeader{Size: -1}, err
	}
	return ParseFileHeader(raw)
}

func readFraming(r *bufio.Reader) ([]byte, error) {
	malformed := func(format string, args ...any) error {
		return &HeaderError{KindMalformed, fmt.Errorf(format, args...)}
	}
	open, err := r.Peek(len(fileOpen))
	if !bytes.Equal(open, []byte(fileOpen)) {
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return nil, malformed("a file must begin with %s, not %s", fileOpen, id.Quote(string(open)))
	}
	if _, err := r.Discard(len(fileOpen)); err != nil {
		return nil, err
	}
	var raw []byte
	for {
		part, err := r.ReadSlice('>')
		if len(raw)+len(part) > MaxFileHeader+len(fileClose) {
			return nil, malformed("a file's headers must end with %s within %d bytes", fileClose, MaxFileHeader)
		}
		raw = append(raw, part...)
		if head, ok := bytes.CutSuffix(raw, []byte(fileClose)); ok {
			return head, nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, malformed("a file's headers must end with %s", fileClose)
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// ParseFileHeader reads the JSON between the tags; the queue's tasks have the same FILE_PATH
// and TTL. Errors are a *HeaderError, see ReadFileHeader.
func ParseFileHeader(raw []byte) (FileHeader, error) {
	h := FileHeader{Size: -1}
	refuse := func(kind Kind, err error) (FileHeader, error) { return h, &HeaderError{kind, err} }

	var f fileHeaderJSON
	if err := json.Unmarshal(raw, &f, jsontext.AllowDuplicateNames(true)); err != nil {
		return refuse(KindMalformed, fmt.Errorf("a file's headers are not a JSON object of its fields: %w", err))
	}
	if len(f.RequestID) > MaxField {
		return refuse(KindMalformed, fmt.Errorf("REQUEST_ID is longer than %d bytes", MaxField))
	}
	h.RequestID = f.RequestID
	if f.FilePath == nil {
		return refuse(KindMalformed, errors.New("FILE_PATH is missing"))
	}
	var err error
	if h.Path, err = id.ParsePath(*f.FilePath); err != nil {
		return refuse(KindPath, fmt.Errorf("FILE_PATH: %w", err))
	}
	if h.TTL, err = ParseTTL(f.TTL); err != nil {
		return refuse(KindTTL, err)
	}
	if f.Publisher != "" {
		if h.Publisher, err = id.ParsePublisherID(f.Publisher); err != nil {
			return refuse(KindMalformed, fmt.Errorf("PUBLISHER: %w", err))
		}
	}
	if f.Size != nil {
		if *f.Size < 0 {
			return refuse(KindSize, fmt.Errorf("SIZE is %d: want bytes, 0 or more", *f.Size))
		}
		h.Size = *f.Size
	}
	if f.SHA256 != "" {
		if h.Digest, err = id.ParseDigest(f.SHA256); err != nil {
			return refuse(KindDigest, fmt.Errorf("SHA256: %w", err))
		}
	}
	if !(f.Duration >= 0 && f.Duration <= MaxPlays.Seconds()) {
		return refuse(KindMalformed, fmt.Errorf("DURATION is %v: want seconds, 0 to %v", f.Duration, MaxPlays.Seconds()))
	}
	h.Plays = time.Duration(f.Duration * float64(time.Second))
	if err := CheckRelay(f.Relay); err != nil {
		return refuse(KindMalformed, fmt.Errorf("RELAY: %w", err))
	}
	h.Relay = f.Relay
	return h, nil
}

// ParseTTL reads a TTL as JSON: absent (nil) is DefaultTTL, 0 keeps the file until its room is
// needed, "30" and 1.9 are whole seconds, anything above MaxTTL is MaxTTL. Negative, null and
// what is not a number are errors (docs/protocol.md).
func ParseTTL(v jsontext.Value) (time.Duration, error) {
	if v == nil {
		return DefaultTTL, nil
	}
	text := string(v)
	if v.Kind() == '"' {
		if err := json.Unmarshal(v, &text); err != nil {
			return 0, fmt.Errorf("TTL: %w", err)
		}
	} else if v.Kind() != '0' {
		return 0, fmt.Errorf("TTL is %s: want whole seconds, 0 or more", id.Quote(text))
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || math.IsNaN(seconds) || math.IsInf(seconds, 0) || seconds < 0 {
		return 0, fmt.Errorf("TTL is %s: want whole seconds, 0 or more", id.Quote(text))
	}
	whole := math.Trunc(seconds)
	if whole == 0 && seconds > 0 {
		whole = 1 // 0 would keep for ever what was meant to go at once
	}
	return time.Duration(min(whole, MaxTTL.Seconds())) * time.Second, nil
}
