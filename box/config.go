package box

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/pkg/netaddr"
	"dandelion/pkg/wire"
)

// Config is the section `box` of config.yaml.
type Config struct {
	Listen         string              `yaml:"listen" doc:"address for publishers' websockets and for viewers"`
	EdgeListen     string              `yaml:"edge_listen" doc:"a second address, for viewers alone; empty: none. With edge nginx: the address that nginx listens on, for all"`
	Edge           string              `yaml:"edge" doc:"who serves viewers: builtin, the box itself, or nginx, configured by run_box --print-nginx"`
	AccessLog      string              `yaml:"access_log" doc:"with edge nginx: the log that nginx writes for the box"`
	PublicAddress  string              `yaml:"public_address" doc:"host or host:port that others dial, behind a web server with TLS https://host; empty: the address that entrances see, and the port of listen, with edge nginx of edge_listen"`
	DataDir        string              `yaml:"data_dir" doc:"directory of the box's key and of files that stay longer than 15 minutes"`
	LiveDir        string              `yaml:"live_dir" doc:"directory of live segments; empty: one in memory (below /dev/shm or /run/user) where the system has room for it, else below data_dir"`
	LiveLimit      config.AutoByteSize `yaml:"live_limit" doc:"how much live_dir may hold; auto: a part of what is free there, at most 512MB"`
	StorageLimit   config.AutoByteSize `yaml:"storage_limit" doc:"how much data_dir may hold; auto: the lesser of 8GB and a fifth of the free space"`
	SyncData       bool                `yaml:"sync_data" doc:"wait until files of data_dir are on the disk before acknowledging them: safer when the power fails, slower, wears memory cards"`
	UploadCapacity config.AutoBitRate  `yaml:"upload_capacity" doc:"what the line of the household can send; auto: learned from what is sent to other networks, 2Mbit/s until it is known"`
	UploadLimit    config.AutoBitRate  `yaml:"upload_limit" doc:"how much of it the box may use, for viewers and for other boxes; auto: half of upload_capacity"`
	Favour         []string            `yaml:"favour" doc:"publishers (publisher-…) or streams of theirs (publisher-…/name) that come first, and whose segments are also kept without viewers, up to seed_limit"`
	Refuse         []string            `yaml:"refuse" doc:"publishers (publisher-…) or streams of theirs (publisher-…/name) that the box takes nothing of"`
	SeedLimit      config.ByteSize     `yaml:"seed_limit" doc:"how much the box may hold of each favoured stream while nobody watches it; 0B: only what viewers need"`
	Entrances      []string            `yaml:"entrances" doc:"URLs of entrances, such as http://192.0.2.1:7070; more are learned from them"`
	InsecureTLS    []string            `yaml:"insecure_tls" doc:"those of entrances whose certificate is not verified"`
	ReportInterval config.Duration     `yaml:"report_interval" doc:"time between reports to entrances"`
	GeoIPDB        config.Paths        `yaml:"geoip_db" doc:"GeoIP databases (.mmdb) that say where the box is; empty: none, the entrance may know it. They take as much memory as the files"`
	TrustedProxies config.Networks     `yaml:"trusted_proxies" doc:"addresses or networks of web servers in front of this one, whose X-Forwarded-For names the peer"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		Listen:         ":7072",
		Edge:           edgeBuiltin,
		AccessLog:      "/var/log/nginx/dandelion.log",
		DataDir:        "data/box",
		ReportInterval: 5 * config.Second,
	}
}

// minLimit is the smallest limit that holds more than a moment of one stream.
const minLimit = 16 * config.MB

// minUpload carries one poor stream to one viewer.
const minUpload = 100 * config.Kbit

// Validate names each wrong field and what would be right.
func (c *Config) Validate() error {
	var p config.Problems
	p.Listen("listen", c.Listen)
	if c.EdgeListen != "" {
		p.Listen("edge_listen", c.EdgeListen)
		if c.EdgeListen == c.Listen && !strings.HasSuffix(c.Listen, ":0") {
			p.Add("edge_listen", "is the same as listen", "another port, or nothing: viewers are served on listen too")
		}
	}
	if _, err := splitPublic(c.PublicAddress); err != nil {
		p.Add("public_address", err.Error(), "a host or host:port that others can dial, such as 203.0.113.7 or box.example.org:7072, or behind a web server with TLS https://box.example.org")
	}
	p.NotEmpty("data_dir", c.DataDir, "a directory that this user may write to")
	for field, limit := range map[string]config.AutoByteSize{"live_limit": c.LiveLimit, "storage_limit": c.StorageLimit} {
		if v, fixed := limit.Get(); fixed && v < minLimit {
			p.Add(field, "is "+v.String(), "auto, or a size of at least "+minLimit.String())
		}
	}
	for field, rate := range map[string]config.AutoBitRate{"upload_capacity": c.UploadCapacity, "upload_limit": c.UploadLimit} {
		if v, fixed := rate.Get(); fixed && v < minUpload {
			p.Add(field, "is "+v.String(), "auto, or a rate of at least "+minUpload.String())
		}
	}
	capacity, said := c.UploadCapacity.Get()
	if limit, fixed := c.UploadLimit.Get(); fixed && said && limit > capacity {
		p.Add("upload_limit", "is "+limit.String()+", more than upload_capacity", "at most "+capacity.String())
	}
	for field, list := range map[string][]string{"favour": c.Favour, "refuse": c.Refuse} {
		for i, text := range list {
			if _, err := parseWish(text); err != nil {
				p.Add(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("is %.80q: %v", text, err), "a publisher's ID, or one with a slash and the name of a stream")
			}
		}
	}
	known := make(map[string]bool)
	for i, raw := range c.Entrances {
		if u := entranceURL(&p, fmt.Sprintf("entrances[%d]", i), raw); u != "" {
			known[u] = true
		}
	}
	for i, raw := range c.InsecureTLS {
		field := fmt.Sprintf("insecure_tls[%d]", i)
		if u := entranceURL(&p, field, raw); u != "" && !known[u] {
			p.Add(field, "is "+strconv.Quote(raw)+", which is not one of entrances", "one of box.entrances")
		}
	}
	config.Between(&p, "report_interval", c.ReportInterval, config.Second, config.Minute)
	c.validateNginx(&p)
	return p.Err()
}

// trusted returns TrustedProxies, and nginx on this machine, whose printed configuration says who asks.
func (c *Config) trusted() []netip.Prefix {
	list := c.TrustedProxies.Prefixes()
	if c.nginx() {
		list = append(list, netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"))
	}
	return list
}

// wish is a publisher, or with a name one of its streams, that the owner favours or refuses.
type wish struct {
	publisher id.PublisherID
	stream    id.StreamName // "": all of them
}

func parseWish(text string) (w wish, err error) {
	publisher, stream, one := strings.Cut(text, "/")
	if w.publisher, err = id.ParsePublisherID(publisher); err == nil && one {
		w.stream, err = id.ParseStreamName(stream)
	}
	return w, err
}

func entranceURL(p *config.Problems, field, raw string) string {
	u, err := wire.ParseEntranceURL(raw)
	if err != nil {
		p.Add(field, "is wrong: "+err.Error(), "the URL of an entrance, such as http://192.0.2.1:7070")
	}
	return u
}

// public is a public_address: host is "" where the whole is, port 0 where none is said.
type public struct {
	tls  bool
	host string
	port int
}

// splitPublic takes a public_address apart. Errors begin with a verb.
func splitPublic(s string) (p public, err error) {
	if s == "" {
		return p, nil
	}
	host := s
	if host, p.tls = strings.CutPrefix(s, "https://"); p.tls {
		p.port = 443
	}
	if a, addrErr := netip.ParseAddr(strings.Trim(host, "[]")); addrErr == nil {
		host = a.String()
	} else if strings.Contains(host, ":") {
		var text string
		if host, text, err = net.SplitHostPort(host); err != nil {
			return public{}, fmt.Errorf("is %q", s)
		}
		if p.port, err = strconv.Atoi(text); err != nil || p.port < 1 || p.port > 65535 {
			return public{}, fmt.Errorf("is %q: its port is not one from 1 to 65535", s)
		}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if netaddr.ScopeOf(a) == netaddr.Forbidden {
			return public{}, fmt.Errorf("is %q, which nobody can dial", s)
		}
		p.host = a.Unmap().String()
		return p, nil
	}
	if err := checkHostName(host); err != nil {
		return public{}, fmt.Errorf("is %q: %w", s, err)
	}
	p.host = strings.ToLower(host)
	return p, nil
}

var errHostName = errors.New("neither an address nor a host name")

func checkHostName(s string) error {
	if s == "" || len(s) > 253 {
		return errHostName
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errHostName
		}
		for _, r := range label {
			if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' {
				return errHostName
			}
		}
	}
	return nil
}
