package playlist

import (
	"slices"
	"strings"
	"time"
)

// Media is a media playlist. Whatever applies to a segment is in its entry, also where it
// was written only once before an earlier one (keys, maps), so that entries can be taken
// out, put together and written again.
type Media struct {
	Version               int // 0: no EXT-X-VERSION
	TargetDuration        int // seconds
	Sequence              uint64
	DiscontinuitySequence uint64
	Type                  string   // EXT-X-PLAYLIST-TYPE: "", "EVENT" or "VOD"
	Header                []string // other lines that apply to the whole playlist, in order
	Entries               []Entry
	Ended                 bool // EXT-X-ENDLIST
}

// Entry is one segment.
type Entry struct {
	URI           string
	Duration      Duration
	Title         string
	Discontinuity bool
	DateTime      string       // EXT-X-PROGRAM-DATE-TIME, as written
	Range         *Range       // EXT-X-BYTERANGE, its offset resolved; nil: the whole file
	Map           *Map         // EXT-X-MAP in effect; nil: none
	Keys          []Attributes // EXT-X-KEYs in effect; empty: not encrypted
	Gap           bool
	Tags          []string // other lines that stand before this segment, in order
}

// Map is an EXT-X-MAP: where the init segment is.
type Map struct {
	URI   string
	Range *Range       // nil: the whole file
	Attrs Attributes   // all attributes, as written
	Keys  []Attributes // the keys that the init segment is encrypted with: those written before it
}

// Tags of the low-latency extension. What they promise (parts, blocking reloads, delta
// updates) holds only at the server that wrote them, so they are not kept.
var lowLatency = map[string]bool{
	"EXT-X-PART": true, "EXT-X-PART-INF": true, "EXT-X-PRELOAD-HINT": true,
	"EXT-X-SERVER-CONTROL": true, "EXT-X-RENDITION-REPORT": true,
}

// Tags that apply to the whole playlist wherever they stand.
var headerTags = map[string]bool{
	"EXT-X-INDEPENDENT-SEGMENTS": true, "EXT-X-START": true, "EXT-X-DEFINE": true,
	"EXT-X-I-FRAMES-ONLY": true, "EXT-X-ALLOW-CACHE": true,
}

// Tags that belong to the segment behind them although this package does not look into
// them. From the first tag of a segment on, unknown tags belong to segments too.
var segmentTags = map[string]bool{
	"EXT-X-BITRATE": true, "EXT-X-DATERANGE": true, "EXT-X-CUE": true, "EXT-X-CUE-OUT": true,
	"EXT-X-CUE-OUT-CONT": true, "EXT-X-CUE-IN": true, "EXT-X-CUE-SPAN": true, "EXT-X-SCTE35": true,
	"EXT-X-SPLICEPOINT-SCTE35": true, "EXT-OATCLS-SCTE35": true, "EXT-X-ASSET": true, "EXT-X-SIGNAL-EXIT": true,
}

// mediaParser holds what is in effect while lines are read.
type mediaParser struct {
	out       *Media
	next      Entry // of the segment whose URI has not come yet
	extinf    bool  // next has its EXTINF
	inEntries bool  // a tag of a segment was seen
	target    bool
	byteRange *Range
	hasOffset bool
	keys      []Attributes
	mapping   *Map
	lastURI   string // of the last byte range, and where it ended
	lastEnd   int64
}

func parseMedia(lines []line) (*Media, error) {
	p := &mediaParser{out: &Media{}}
	for _, l := range lines {
		var err error
		if l.tag == "" {
			err = p.uri(l)
		} else {
			err = p.tag(l)
		}
		if err != nil {
			return nil, err
		}
	}
	last := line{number: lines[len(lines)-1].number}
	if p.extinf {
		return nil, last.errorf("ends behind an EXTINF, without its URI")
	}
	if !p.target {
		return nil, last.errorf("EXT-X-TARGETDURATION is missing")
	}
	return p.out, nil
}

func (p *mediaParser) tag(l line) (err error) {
	switch l.tag {
	case "EXT-X-VERSION", "EXT-X-TARGETDURATION", "EXT-X-MEDIA-SEQUENCE", "EXT-X-DISCONTINUITY-SEQUENCE", "EXT-X-SKIP":
		return p.number(l)
	case "EXT-X-PLAYLIST-TYPE":
		p.out.Type = l.value
		return nil
	case "EXT-X-ENDLIST":
		p.out.Ended = true
		return nil
	case "EXTINF":
		err = p.duration(l)
	case "EXT-X-DISCONTINUITY":
		p.next.Discontinuity = true
	case "EXT-X-GAP":
		p.next.Gap = true
	case "EXT-X-PROGRAM-DATE-TIME":
		p.next.DateTime = l.value
	case "EXT-X-BYTERANGE":
		var r Range
		if r, p.hasOffset, err = parseRange(l.value); err != nil {
			return l.errorf("%w", err)
		}
		p.byteRange = &r
	case "EXT-X-KEY":
		err = p.key(l)
	case "EXT-X-MAP":
		err = p.mapTag(l)
	default:
		if lowLatency[l.tag] || l.tag == "EXTM3U" {
			return nil
		}
		if headerTags[l.tag] || !p.inEntries && !segmentTags[l.tag] {
			p.out.Header = append(p.out.Header, l.text)
			return nil
		}
		p.next.Tags = append(p.next.Tags, l.text)
	}
	p.inEntries = true
	return err
}

func (p *mediaParser) number(l line) error {
	switch l.tag {
	case "EXT-X-VERSION":
		n, err := l.uint(1000)
		p.out.Version = int(n)
		return err
	case "EXT-X-TARGETDURATION":
		// Some encoders write a fraction; the next whole second holds for it.
		d, err := ParseDuration(strings.TrimSpace(l.value))
		if err != nil {
			return l.errorf("%s: %w", l.tag, err)
		}
		p.out.TargetDuration = int((d.Value + time.Second - 1) / time.Second)
		p.target = true
		return nil
	case "EXT-X-DISCONTINUITY-SEQUENCE":
		n, err := l.uint(maxSequence)
		p.out.DiscontinuitySequence = n
		return err
	case "EXT-X-MEDIA-SEQUENCE":
		n, err := l.uint(maxSequence)
		p.out.Sequence += n
		return err
	}
	// EXT-X-SKIP stands for segments that are not listed: the first one listed is so much later.
	attrs, err := ParseAttributes(l.value)
	if err != nil {
		return l.errorf("%s: %w", l.tag, err)
	}
	skipped, _ := attrs.Get("SKIPPED-SEGMENTS")
	l.value = skipped
	n, err := l.uint(maxSequence)
	p.out.Sequence += n
	return err
}

func (p *mediaParser) duration(l line) error {
	text, title, _ := strings.Cut(l.value, ",")
	d, err := ParseDuration(strings.TrimSpace(text))
	if err != nil {
		return l.errorf("%s: %w", l.tag, err)
	}
	p.next.Duration, p.next.Title, p.extinf = d, title, true
	return nil
}

// key puts a key into effect. It replaces the one of the same KEYFORMAT; METHOD=NONE ends all
// of them (RFC 8216 section 4.3.2.4).
func (p *mediaParser) key(l line) error {
	attrs, err := ParseAttributes(l.value)
	if err != nil {
		return l.errorf("%s: %w", l.tag, err)
	}
	method, ok := attrs.Get("METHOD")
	if !ok {
		return l.errorf("%s: METHOD is missing", l.tag)
	}
	if method == "NONE" {
		p.keys = nil
		return nil
	}
	keys := slices.Clone(p.keys) // entries share the old slice
	at := slices.IndexFunc(keys, func(k Attributes) bool { return keyFormat(k) == keyFormat(attrs) })
	if at < 0 {
		if len(keys) == maxKeys {
			return l.errorf("%s: more than %d keys in effect at once", l.tag, maxKeys)
		}
		p.keys = append(keys, attrs)
		return nil
	}
	keys[at] = attrs
	p.keys = keys
	return nil
}

func keyFormat(key Attributes) string {
	if format, ok := key.Get("KEYFORMAT"); ok {
		return format
	}
	return "identity"
}

func (p *mediaParser) mapTag(l line) error {
	attrs, err := ParseAttributes(l.value)
	if err != nil {
		return l.errorf("%s: %w", l.tag, err)
	}
	m := &Map{Attrs: attrs, Keys: p.keys}
	if m.URI, _ = attrs.Get("URI"); m.URI == "" {
		return l.errorf("%s: URI is missing", l.tag)
	}
	if text, ok := attrs.Get("BYTERANGE"); ok {
		r, _, err := parseRange(text)
		if err != nil {
			return l.errorf("%s: %w", l.tag, err)
		}
		m.Range = &r
	}
	p.mapping = m
	return nil
}

// uri ends an entry.
func (p *mediaParser) uri(l line) error {
	if !p.extinf {
		return l.errorf("%s has no EXTINF before it", quote(l.text))
	}
	if len(p.out.Entries) == MaxEntries {
		return l.errorf("more than %d segments", MaxEntries)
	}
	e := p.next
	e.URI, e.Map, e.Keys = l.text, p.mapping, p.keys
	if p.byteRange != nil {
		if !p.hasOffset {
			if p.lastURI != e.URI {
				return l.errorf("a byte range without an offset, and no byte range of the same file before it")
			}
			p.byteRange.Offset = p.lastEnd
			if p.lastEnd+p.byteRange.Length < 0 {
				return l.errorf("a byte range beyond any file")
			}
		}
		e.Range = p.byteRange
		p.lastEnd = e.Range.Offset + e.Range.Length
		p.lastURI = e.URI
	} else {
		p.lastURI = ""
	}
	p.out.Entries = append(p.out.Entries, e)
	p.next, p.extinf, p.byteRange = Entry{}, false, nil
	return nil
}
