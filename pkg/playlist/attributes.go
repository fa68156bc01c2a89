package playlist

import (
	"fmt"
	"strings"
)

// Attr is one attribute of a tag. Value is as it was written, with its quotes.
type Attr struct {
	Name  string `json:"n"`
	Value string `json:"v"`
}

// Attributes is an attribute list (RFC 8216 section 4.2) in the order in which it was
// written. Methods never change the list that they are called on.
type Attributes []Attr

// ParseAttributes reads an attribute list. Commas in quoted strings belong to the string;
// blanks around names and commas are forgiven, as players forgive them.
func ParseAttributes(s string) (Attributes, error) {
	var list Attributes
	rest := strings.TrimSpace(s)
	for rest != "" {
		name, after, ok := strings.Cut(rest, "=")
		name = strings.TrimSpace(name)
		if !ok || !isAttrName(name) {
			return nil, fmt.Errorf("%s is not an attribute: want NAME=value", quote(rest))
		}
		value, behind, err := cutValue(after)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if len(list) == maxAttrs {
			return nil, fmt.Errorf("more than %d attributes", maxAttrs)
		}
		list = append(list, Attr{Name: name, Value: value})
		rest = strings.TrimSpace(behind)
	}
	return list, nil
}

// cutValue takes one value off the front of s, and the comma behind it.
func cutValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		value, rest, _ = strings.Cut(s, ",")
		value = strings.TrimSpace(value)
		if strings.Contains(value, `"`) {
			return "", "", fmt.Errorf("a quote within %s", quote(value))
		}
		return value, rest, nil
	}
	end := strings.IndexByte(s[1:], '"')
	if end < 0 {
		return "", "", fmt.Errorf("%s has no closing quote", quote(s))
	}
	value, rest = s[:end+2], strings.TrimSpace(s[end+2:])
	if rest == "" {
		return value, "", nil
	}
	rest, ok := strings.CutPrefix(rest, ",")
	if !ok {
		return "", "", fmt.Errorf("%s stands behind a closing quote", quote(rest))
	}
	return value, rest, nil
}

func isAttrName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && (c < 'a' || c > 'z') {
			return false
		}
	}
	return s != ""
}

// Get returns the value of an attribute without its quotes, and whether it is there.
func (a Attributes) Get(name string) (string, bool) {
	for _, attr := range a {
		if attr.Name == name {
			return strings.Trim(attr.Value, `"`), true
		}
	}
	return "", false
}

// With returns the list with that attribute set to value, as it is to be written: a quoted
// string with its quotes (Quoted). It keeps its place, or becomes the last.
func (a Attributes) With(name, value string) Attributes {
	out := make(Attributes, 0, len(a)+1)
	found := false
	for _, attr := range a {
		if attr.Name == name {
			attr.Value, found = value, true
		}
		out = append(out, attr)
	}
	if !found {
		out = append(out, Attr{Name: name, Value: value})
	}
	return out
}

// Without returns the list without that attribute.
func (a Attributes) Without(name string) Attributes {
	out := make(Attributes, 0, len(a))
	for _, attr := range a {
		if attr.Name != name {
			out = append(out, attr)
		}
	}
	return out
}

// String returns the list as it stands behind a tag's colon.
func (a Attributes) String() string { return string(a.appendTo(nil)) }

func (a Attributes) appendTo(b []byte) []byte {
	for i, attr := range a {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, attr.Name...)
		b = append(b, '=')
		b = append(b, attr.Value...)
	}
	return b
}

// Quoted returns s as a quoted string. A quoted string cannot hold a quote or the end of a
// line (RFC 8216 section 4.2); URIs never do, and here such characters are left out.
func Quoted(s string) string {
	return `"` + strings.Map(func(r rune) rune {
		if r == '"' || r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, s) + `"`
}
