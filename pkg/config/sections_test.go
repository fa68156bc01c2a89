package config

import (
	"net/netip"
	"strings"
)

// The sections that the tests load. They look like those of the daemons, and are not them.

type redisConfig struct {
	URL string `yaml:"url" doc:"Address of Redis, such as redis://127.0.0.1:6379/0; empty: an embedded one."`
}

type boxConfig struct {
	Listen         string         `yaml:"listen" doc:"Address for websockets and viewers."`
	EdgeListen     string         `yaml:"edge_listen" doc:"A second address, for viewers only."`
	LeaseTTL       Duration       `yaml:"lease_ttl" doc:"How long a lease lasts."`
	Storage        AutoByteSize   `yaml:"storage_limit" doc:"How much to store at most; auto: the lesser of 8 GB and a fifth of the free space."`
	Upload         BitRate        `yaml:"upload" doc:"What the line carries upwards."`
	Entrances      []string       `yaml:"entrances" doc:"URLs of entrances."`
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies" doc:"Networks of proxies."`
	Verbose        bool           `yaml:"verbose" doc:"Log more."`
	MaxFiles       int            `yaml:"max_files" doc:"How many files."`
	Weight         float64        `yaml:"weight" doc:"How much it counts."`
	Proxy          netip.Addr     `yaml:"proxy" doc:"An address."`
	internal       int
}

func (c *boxConfig) Validate() error {
	c.internal++
	var p Problems
	p.Listen("listen", c.Listen)
	if c.EdgeListen != "" {
		p.Listen("box.edge_listen", c.EdgeListen)
	}
	if c.LeaseTTL < 3*Second {
		p.Add("lease_ttl", "is "+c.LeaseTTL.String(), "a duration of at least 3s, such as 20s")
	}
	for i, e := range c.Entrances {
		p.HTTPURL("entrances["+string(rune('0'+i))+"]", e)
	}
	Between(&p, "max_files", c.MaxFiles, 1, 1000)
	return p.Err()
}

type publisherConfig struct {
	Listen  string         `yaml:"listen" doc:"Address for viewers."`
	Streams []streamConfig `yaml:"streams" doc:"The streams."`
}

type streamConfig struct {
	Name   string       `yaml:"name" doc:"Its name in URLs." example:"demo"`
	Source string       `yaml:"source" doc:"Where it comes from." example:"dir:/var/hls/demo"`
	TTL    AutoDuration `yaml:"segment_ttl" doc:"How long boxes keep a segment."`
}

func (c *publisherConfig) Validate() error {
	var p Problems
	for i, s := range c.Streams {
		p.NotEmpty("streams["+string(rune('0'+i))+"].name", s.Name, "a name")
		if !strings.HasPrefix(s.Source, "dir:") {
			p.Add("streams["+string(rune('0'+i))+"].source", "is "+quoted(s.Source), "dir: and a directory")
		}
	}
	return p.Err()
}

func defaultBox() *boxConfig {
	return &boxConfig{
		Listen: ":7072", LeaseTTL: 20 * Second, Upload: 2 * Mbit, MaxFiles: 10, Weight: 0.5,
		Entrances: []string{"http://192.0.2.1:7070"}, Proxy: netip.MustParseAddr("192.0.2.7"),
	}
}

type fixture struct {
	redis     redisConfig
	box       *boxConfig
	publisher publisherConfig
}

func newFixture() *fixture {
	return &fixture{box: defaultBox(), publisher: publisherConfig{Listen: ":7071"}}
}

func (f *fixture) sections() []Section {
	return []Section{
		{Name: "redis", Value: &f.redis, Doc: "Where state is shared.", Shared: true},
		{Name: "box", Value: f.box, Doc: "The edge."},
	}
}

func (f *fixture) withPublisher() []Section {
	return append(f.sections(), Section{Name: "publisher", Value: &f.publisher})
}
