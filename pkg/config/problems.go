package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Problems collects what a section's Validate finds. Its methods take a field as it is named in
// the section: "listen", "streams[0].source". The zero value is ready to use.
//
//	func (c *Config) Validate() error {
//		var p config.Problems
//		p.Listen("listen", c.Listen)
//		config.Between(&p, "lease_ttl", c.LeaseTTL, 3*config.Second, config.Hour)
//		return p.Err()
//	}
type Problems struct{ all []error }

// Add notes that a field has a problem ("is 0s"), and what would be right.
func (p *Problems) Add(field, problem, want string) {
	p.all = append(p.all, &FieldError{Field: field, Problem: problem, Want: want})
}

// Err returns all problems as one error, or nil.
func (p *Problems) Err() error { return errors.Join(p.all...) }

// Between notes a value outside least..most, both allowed: a number, or one of the units.
func Between[T cmp.Ordered](p *Problems, field string, v, least, most T) {
	if v < least || v > most {
		p.Add(field, fmt.Sprintf("is %v", v), fmt.Sprintf("%v to %v", least, most))
	}
}

// Listen notes what is not an address to listen on: host:port or :port. Port 0 takes any.
func (p *Problems) Listen(field, addr string) {
	const want = "an address to listen on, such as :7072 or 127.0.0.1:7072"
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		p.Add(field, "is "+quoted(addr), want)
		return
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		p.Add(field, "is "+quoted(addr), want+", its port from 0 to 65535")
	}
}

// HTTPURL notes what is not an http or https URL with a host, such as http://192.0.2.1:7070/.
func (p *Problems) HTTPURL(field, raw string) {
	const want = "an http or https URL, such as http://192.0.2.1:7070/"
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		p.Add(field, "is "+quoted(raw), want)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		p.Add(field, "has a user, query or fragment", want)
	}
}

// NotEmpty notes an empty text.
func (p *Problems) NotEmpty(field, text, want string) {
	if strings.TrimSpace(text) == "" {
		p.Add(field, "is empty", want)
	}
}

// quoted quotes at most 80 bytes of a value.
func quoted(s string) string {
	const limit = 80
	if len(s) > limit {
		return strconv.Quote(s[:limit]) + "…"
	}
	return strconv.Quote(s)
}
