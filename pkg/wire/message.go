package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"dandelion/pkg/id"
)

// Text is a JSON string, or a number taken as its text: old peers send PORT as either.
type Text string

// UnmarshalJSONFrom reads a string or a number.
func (t *Text) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	switch dec.PeekKind() {
	case '"', '0':
		v, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if v.Kind() == '0' {
			*t = Text(v)
			return nil
		}
		return json.Unmarshal(v, (*string)(t))
	}
	return errors.New("want a string or a number")
}

// Peer is what every message says of its sender. A publisher has no PORT.
type Peer struct {
	ID   string `json:"ID"`
	IP   string `json:"IP"`
	Port Text   `json:"PORT,omitzero"`
	Type string `json:"TYPE"`
}

// Envelope is the part of a message that decides what it is.
type Envelope struct {
	Peer
	Command string `json:"COMMAND"`
	Error   string `json:"ERROR,omitzero"`
}

// ErrFormat is wrapped by what DecodeEnvelope returns for a message that is to be answered
// with NewError and close code 1000.
var ErrFormat = errors.New("wrong format")

// DecodeEnvelope reads the common fields of a request and checks that none is missing or
// empty (docs/protocol.md). Errors wrap ErrFormat.
func DecodeEnvelope(message []byte) (Envelope, error) {
	e, err := readEnvelope(message)
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for _, f := range []struct{ name, value string }{
		{"ID", e.ID}, {"IP", e.IP}, {"TYPE", e.Type}, {"COMMAND", e.Command},
	} {
		if f.value == "" {
			return e, fmt.Errorf("%w: %s is missing or empty", ErrFormat, f.name)
		}
		if len(f.value) > MaxField {
			return e, fmt.Errorf("%w: %s is longer than %d bytes", ErrFormat, f.name, MaxField)
		}
	}
	if e.Port == "" && e.Type != TypePublisher {
		return e, fmt.Errorf("%w: PORT is missing or empty", ErrFormat)
	}
	return e, nil
}

// readEnvelope reads past all other fields without looking into them: every message comes
// through here, and most of a report is of no interest yet.
func readEnvelope(message []byte) (e Envelope, err error) {
	dec := borrowDecoder(message)
	defer returnDecoder(dec)
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return e, errors.New("not a JSON object")
	}
	for dec.PeekKind() == '"' {
		name, err := dec.ReadToken()
		if err != nil {
			return e, err
		}
		dest := e.field(name.String())
		if dest == nil {
			if err := dec.SkipValue(); err != nil {
				return e, err
			}
			continue
		}
		value, err := dec.ReadValue()
		if err != nil {
			return e, err
		}
		if value.Kind() != '"' && dest != (*string)(&e.Port) {
			return e, errors.New("want a string")
		}
		if *dest, err = textOf(value); err != nil {
			return e, err
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return e, err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return e, errors.New("something follows the JSON object")
	}
	return e, nil
}

// decoder is a jsontext.Decoder of one message. They are kept: each has a kilobyte of its own.
type decoder struct {
	jsontext.Decoder
	message bytes.Buffer // out of a Buffer, and of nothing else, it reads without a copy
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

func borrowDecoder(message []byte) *decoder {
	dec := decoders.Get().(*decoder)
	dec.message = *bytes.NewBuffer(message)
	dec.Reset(&dec.message, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	return dec
}

func returnDecoder(dec *decoder) {
	dec.Reset(nobody) // so that it does not hold the message
	dec.message = bytes.Buffer{}
	decoders.Put(dec)
}

var nobody = strings.NewReader("")

// field returns where the value of a name belongs, nil for names that are not the envelope's.
func (e *Envelope) field(name string) *string {
	switch name {
	case "ID":
		return &e.ID
	case "IP":
		return &e.IP
	case "PORT":
		return (*string)(&e.Port)
	case "TYPE":
		return &e.Type
	case "COMMAND":
		return &e.Command
	case "ERROR":
		return &e.Error
	}
	return nil
}

// Decode reads a message of a known COMMAND. Unknown fields are passed over. Errors wrap
// ErrFormat.
func Decode[T any](message []byte) (T, error) {
	var v T
	err := unmarshal(message, &v)
	return v, err
}

func unmarshal(message []byte, v any) error {
	if err := json.Unmarshal(message, v, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return nil
}

// Encode writes a message. Only a programming error makes it fail.
func Encode(v any) []byte {
	b, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true), json.Deterministic(true))
	if err != nil {
		panic(fmt.Sprintf("wire: encoding %T: %v", v, err))
	}
	return b
}

// ErrorReply answers a message that cannot be taken.
type ErrorReply struct {
	Peer
	Error string `json:"ERROR"`
}

// NewWrongFormat is the answer to a message that lacks a field or is not JSON, in the words
// of the old protocol, with at most MaxEcho bytes of the message.
func NewWrongFormat(own Peer, message []byte) ErrorReply {
	return ErrorReply{Peer: own, Error: "Wrong format in your message. Your message: " + echo(message)}
}

// NewUnknownCommand is the answer to a COMMAND that the role does not know.
func NewUnknownCommand(own Peer, command string) ErrorReply {
	return ErrorReply{Peer: own, Error: "Unknown COMMAND: " + echo([]byte(command))}
}

func echo(b []byte) string {
	if len(b) > MaxEcho {
		b = b[:MaxEcho]
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// ExchangeReply answers an EXCHANGE. The fields behind Features are sent only to a box that
// named a feature.
type ExchangeReply struct {
	Peer
	Command      string   `json:"COMMAND"`
	Message      string   `json:"MESSAGE"`
	EntranceURLs []string `json:"ENTRANCE_URLS"`
	Features     Features `json:"FEATURES,omitzero"`

	// Address is the address that the entrance sees the box at.
	Address string `json:"ADDRESS,omitzero"`
	// Nonce is what the entrance will ask for at the box's public URL: the dial-back.
	Nonce string `json:"NONCE,omitzero"`
	// Reachable tells how the dial-back ended, in ReachableYes, ReachableNo or "" (not yet tried).
	Reachable string `json:"REACHABLE,omitzero"`
	// Reason says in one sentence what the dial-back found.
	Reason string `json:"REASON,omitzero"`
}

// What REACHABLE may say.
const (
	ReachableYes = "yes"
	ReachableNo  = "no"
)

// Search asks an entrance for boxes.
type Search struct {
	Peer
	Command  string   `json:"COMMAND"`
	GeoIP    *GeoIP   `json:"GEOIP,omitzero"`
	Features Features `json:"FEATURES,omitzero"`
	// Count is how many boxes are wanted; 0 or above the entrance's maximum: the maximum.
	Count int `json:"COUNT,omitzero"`
}

// SearchReply carries the boxes that an entrance offers, best first in Order for a peer with
// features. Each entry of BoxSet is a flat map (see Exchange.Flat): an old publisher stores
// it with HMSET as it is.
type SearchReply struct {
	Peer
	URL          string                     `json:"URL"`
	Command      string                     `json:"COMMAND"`
	EntranceURLs []string                   `json:"ENTRANCE_URLS"`
	BoxSet       map[string]map[string]Text `json:"BOX_SET"`
	Features     Features                   `json:"FEATURES,omitzero"`
}

// Publish opens a session of a publisher with a box.
type Publish struct {
	Peer
	Command  string   `json:"COMMAND"`
	Features Features `json:"FEATURES,omitzero"`
	// FrontURL is the publisher's door for viewers.
	FrontURL string `json:"FRONT_URL,omitzero"`
}

// PublishReply accepts a session (Message) or refuses it (Error).
type PublishReply struct {
	Peer
	Command  string   `json:"COMMAND"`
	Message  string   `json:"MESSAGE,omitzero"`
	Error    string   `json:"ERROR,omitzero"`
	Features Features `json:"FEATURES,omitzero"`
	// Grant, with FeatureGrant: what the publisher may plan with from now on.
	Grant *Terms `json:"GRANT,omitzero"`
	// Favours names the streams of the publisher that the box's owner wants to hold also without
	// viewers ("*": all), each up to Seed bytes.
	Favours []string `json:"FAVOURS,omitzero"`
	Seed    int64    `json:"SEED,omitzero"`
}

// Stored acknowledges a file: it is committed and served until Expires (unix seconds; 0: until
// its room is needed).
type Stored struct {
	Peer
	Command   string    `json:"COMMAND"`
	RequestID string    `json:"REQUEST_ID"`
	FilePath  id.Path   `json:"FILE_PATH"`
	Size      int64     `json:"SIZE"`
	SHA256    id.Digest `json:"SHA256"`
	Expires   int64     `json:"EXPIRES"`
	// Box is the old box, which does not answer itself, that the sender passed the file on to.
	Box id.BoxID `json:"BOX,omitzero"`
}

// Refused says that a file is not stored, and why.
type Refused struct {
	Peer
	Command   string `json:"COMMAND"`
	RequestID string `json:"REQUEST_ID"`
	Error     string `json:"ERROR"`
	Kind      Kind   `json:"KIND"`
	// Box is the box that the sender should have passed the file on to, and could not.
	Box id.BoxID `json:"BOX,omitzero"`
	// Parent is the box that passed the refused file on.
	Parent id.BoxID `json:"PARENT,omitzero"`
}

// Goodbye says that its sender leaves in Seconds, and why.
type Goodbye struct {
	Peer
	Command string  `json:"COMMAND"`
	Reason  string  `json:"REASON"`
	Seconds float64 `json:"SECONDS"`
}

// Finish is the time that the sender still gives its peer.
func (g Goodbye) Finish() time.Duration {
	return time.Duration(min(max(g.Seconds, 0), 3600) * float64(time.Second))
}

// Have asks for a page of what the box holds of the publisher's files, from behind the path
// After on; "" is the first page.
type Have struct {
	Peer
	Command string `json:"COMMAND"`
	After   string `json:"AFTER,omitzero"`
}

// HavePageReply is one page, ordered by path. Next is the After of the next page, "" at the end.
type HavePageReply struct {
	Peer
	Command string     `json:"COMMAND"`
	Files   []HaveFile `json:"FILES"`
	Next    string     `json:"NEXT,omitzero"`
}

// HaveFile is one file that a box holds. Expires is in unix seconds; 0: until its room is needed.
type HaveFile struct {
	FilePath id.Path   `json:"FILE_PATH"`
	SHA256   id.Digest `json:"SHA256"`
	Size     int64     `json:"SIZE"`
	Expires  int64     `json:"EXPIRES"`
}

// Delete names files of the publisher that the box may remove.
type Delete struct {
	Peer
	Command   string   `json:"COMMAND"`
	RequestID string   `json:"REQUEST_ID"`
	FilePaths []string `json:"FILE_PATHS"`
}

// Gone names files of the publisher that the box does not hold any more, unasked: they made room, or
// their disk lost them. At most MaxGone in one message.
type Gone struct {
	Peer
	Command   string   `json:"COMMAND"`
	FilePaths []string `json:"FILE_PATHS"`
}

// MaxGone is how many paths one GONE has at most: with the longest paths it fits a message.
const MaxGone = 500

// Deleted says how many of them were there.
type Deleted struct {
	Peer
	Command   string `json:"COMMAND"`
	RequestID string `json:"REQUEST_ID"`
	Count     int    `json:"COUNT"`
}
