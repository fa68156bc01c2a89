// Package id holds the names that cross Dandelion's borders: IDs of peers, stream and
// rendition names, digests and file paths. Each is a type with one constructor that
// validates it, so that a value of the type is safe to put into a path, a URL, a key or a
// message. It knows nothing of files, sockets or Redis.
package id

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Prefixes of the three peers' IDs (docs/protocol.md).
const (
	boxPrefix       = "box-"
	publisherPrefix = "publisher-"
	entrancePrefix  = "entrance-"
	hashLen         = 32
)

// BoxID names a box: "box-" and 32 lower-case hex digits.
type BoxID string

// PublisherID names a publisher: "publisher-" and 32 lower-case hex digits.
type PublisherID string

// EntranceID names an entrance: "entrance-" and 32 lower-case hex digits.
type EntranceID string

// ParseBoxID returns s as a BoxID, or an error that says what a box's ID looks like.
func ParseBoxID(s string) (BoxID, error) { return parseID[BoxID](s, boxPrefix) }

// ParsePublisherID returns s as a PublisherID, or an error that says what one looks like.
func ParsePublisherID(s string) (PublisherID, error) {
	return parseID[PublisherID](s, publisherPrefix)
}

// ParseEntranceID returns s as an EntranceID, or an error that says what one looks like.
func ParseEntranceID(s string) (EntranceID, error) { return parseID[EntranceID](s, entrancePrefix) }

// KeyHash is the part of a peer's ID behind the prefix: the first 32 hex digits of the
// SHA-256 of its Ed25519 public key.
func KeyHash(publicKey []byte) string {
	sum := sha256.Sum256(publicKey)
	return hex.EncodeToString(sum[:])[:hashLen]
}

// BoxIDOf returns the ID of the box that owns publicKey.
func BoxIDOf(publicKey []byte) BoxID { return BoxID(boxPrefix + KeyHash(publicKey)) }

// PublisherIDOf returns the ID of the publisher that owns publicKey.
func PublisherIDOf(publicKey []byte) PublisherID {
	return PublisherID(publisherPrefix + KeyHash(publicKey))
}

// EntranceIDOf returns the ID of the entrance that owns publicKey.
func EntranceIDOf(publicKey []byte) EntranceID {
	return EntranceID(entrancePrefix + KeyHash(publicKey))
}

func parseID[T ~string](s, prefix string) (T, error) {
	hash, ok := strings.CutPrefix(s, prefix)
	if !ok || len(hash) != hashLen || !isLowerHex(hash) {
		return "", fmt.Errorf("%s is not an ID: want %q and %d hex digits", Quote(s), prefix, hashLen)
	}
	return T(s), nil
}

// Digest is the SHA-256 of a file's bytes: its identity.
type Digest [sha256.Size]byte

// ParseDigest reads 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	if len(s) != 2*len(d) || !isLowerHex(s) {
		return d, fmt.Errorf("%s is not a SHA-256: want 64 hex digits", Quote(s))
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err
}

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest { return sha256.Sum256(b) }

// String returns the digest as 64 hex digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// Short returns the first 12 hex digits, the part that stands in a live segment's path.
func (d Digest) Short() string { return hex.EncodeToString(d[:6]) }

// IsZero reports whether the digest was never set.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText writes 64 hex digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads 64 hex digits.
func (d *Digest) UnmarshalText(b []byte) error {
	parsed, err := ParseDigest(string(b))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// StreamName names a stream of a publisher; RenditionName a rendition of a stream. Both are
// one path component: 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit.
type (
	StreamName    string
	RenditionName string
)

const maxName = 64

var errName = fmt.Errorf("want 1 to %d letters, digits, '.', '_' or '-', the first a letter or a digit", maxName)

// ParseStreamName returns s as a StreamName, or an error that says what one looks like.
func ParseStreamName(s string) (StreamName, error) {
	if err := checkName(s); err != nil {
		return "", fmt.Errorf("%s is not a stream name: %w", Quote(s), err)
	}
	return StreamName(s), nil
}

// ParseRenditionName returns s as a RenditionName, or an error that says what one looks like.
func ParseRenditionName(s string) (RenditionName, error) {
	if err := checkName(s); err != nil {
		return "", fmt.Errorf("%s is not a rendition name: %w", Quote(s), err)
	}
	return RenditionName(s), nil
}

func checkName(s string) error {
	if len(s) == 0 || len(s) > maxName || !alphanumeric(s[0]) {
		return errName
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && c != '.' && c != '_' && c != '-' {
			return errName
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Quote quotes a string from outside for an error: at most 80 bytes of it, escaped.
func Quote(s string) string {
	const limit = 80
	if len(s) > limit {
		return fmt.Sprintf("%q…", s[:limit])
	}
	return fmt.Sprintf("%q", s)
}

// ErrPath is what every refusal of ParsePath wraps.
var ErrPath = errors.New("not a file path that can be stored")
