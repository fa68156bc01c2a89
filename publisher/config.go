package publisher

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
)

// Config is the section `publisher` of config.yaml.
type Config struct {
	Listen         string             `yaml:"listen" doc:"address for viewers, uploads and the API"`
	DataDir        string             `yaml:"data_dir" doc:"directory for the key, the streams' windows and uploads; made if missing, one process at a time"`
	PublicURL      string             `yaml:"public_url" doc:"base URL at which viewers reach listen, such as https://live.example.org; empty: the address that each viewer used"`
	Entrances      []string           `yaml:"entrances" doc:"URLs of entrances, such as http://192.0.2.1:7070; others are learned from them"`
	InsecureTLS    []string           `yaml:"insecure_tls" doc:"those of the entrances whose certificate is not verified"`
	MinBoxes       int                `yaml:"min_boxes" doc:"how many boxes to keep a session with, when the entrances offer so many"`
	MaxBoxes       int                `yaml:"max_boxes" doc:"how many boxes to keep a session with while viewers need more upload"`
	Replicas       int                `yaml:"replicas" doc:"on how many boxes each file is at least"`
	FirstCopies    int                `yaml:"first_copies" doc:"how many copies of each segment the publisher itself sends; boxes pass the others on to each other"`
	UploadLimit    config.BitRate     `yaml:"upload_limit" doc:"what the publisher may send to boxes, and as the origin to viewers; 0bit/s: not limited. Set it to what the line carries"`
	OriginLimit    config.AutoBitRate `yaml:"origin_limit" doc:"how much of upload_limit may go to viewers whom no box can serve; auto: what the first copies leave"`
	WindowLimit    config.ByteSize    `yaml:"window_limit" doc:"how much of each stream the publisher itself keeps, for viewers whom no box can serve"`
	FileRoots      []string           `yaml:"file_roots" doc:"directories that tasks on the queue may name files of; empty: any file that the publisher can read"`
	MaxUpload      config.ByteSize    `yaml:"max_upload" doc:"largest file that an upload may have"`
	GeoIPDB        config.Paths       `yaml:"geoip_db" doc:"GeoIP databases (.mmdb) that say where viewers are, such as one of cities and one of ASNs: their answers are joined, and they are read again when they change; empty: viewers are sent to boxes without regard to distance"`
	TrustedProxies config.Networks    `yaml:"trusted_proxies" doc:"addresses or networks of web servers in front of this one, whose X-Forwarded-For names the viewer"`
	Streams        []StreamConfig     `yaml:"streams" doc:"what is published; each stream plays at /live/<name>/index.m3u8"`
}

// StreamConfig is one of publisher.streams.
type StreamConfig struct {
	Name       string              `yaml:"name" doc:"letters, digits, '.', '_' and '-'; part of the URL" example:"demo"`
	Source     string              `yaml:"source" doc:"where the segments come from: dir:/path of the directory that an encoder writes HLS into" example:"dir:/var/hls/demo"`
	SegmentTTL config.AutoDuration `yaml:"segment_ttl" doc:"how long boxes keep a segment; auto: twice the window and the longest segment; shorter than auto is an error" example:"auto"`
	Replicas   int                 `yaml:"replicas" doc:"on how many boxes each segment is placed; 0: publisher.replicas" example:"0"`
}

// DefaultConfig returns the settings of a publisher that nobody configured.
func DefaultConfig() Config {
	return Config{
		Listen:      ":7071",
		DataDir:     "data/publisher",
		MinBoxes:    20,
		MaxBoxes:    200,
		Replicas:    2,
		FirstCopies: 1,
		WindowLimit: 1 * config.GB,
		MaxUpload:   4 * config.GB,
	}
}

// minUpload is the least that makes sense for a stream.
const minUpload = 100 * config.Kbit

// Validate checks the settings; see config.Problems.
func (c *Config) Validate() error {
	var p config.Problems
	p.Listen("listen", c.Listen)
	p.NotEmpty("data_dir", c.DataDir, "a directory, such as /var/lib/dandelion/publisher")
	if c.PublicURL != "" {
		p.HTTPURL("public_url", c.PublicURL)
	}
	for i, u := range c.Entrances {
		p.HTTPURL(fmt.Sprintf("entrances[%d]", i), u)
	}
	for i, u := range c.InsecureTLS {
		if !slices.Contains(c.Entrances, u) {
			p.Add(fmt.Sprintf("insecure_tls[%d]", i), "is none of the entrances", "one of publisher.entrances, spelled the same")
		}
	}
	config.Between(&p, "min_boxes", c.MinBoxes, 1, 1000)
	config.Between(&p, "max_boxes", c.MaxBoxes, 1, 1000)
	config.Between(&p, "replicas", c.Replicas, 1, 100)
	config.Between(&p, "first_copies", c.FirstCopies, 1, 100)
	if c.MaxBoxes >= 1 && c.MinBoxes > c.MaxBoxes {
		p.Add("max_boxes", fmt.Sprintf("is %d, less than min_boxes", c.MaxBoxes), fmt.Sprintf("at least %d", c.MinBoxes))
	}
	if c.UploadLimit > 0 && c.UploadLimit < minUpload {
		p.Add("upload_limit", "is "+c.UploadLimit.String(), "0bit/s, or a rate of at least "+minUpload.String())
	}
	config.Between(&p, "window_limit", c.WindowLimit, 1*config.MB, 1000*config.GB)
	config.Between(&p, "max_upload", c.MaxUpload, 1*config.KB, 1000*config.GB)
	for i, root := range c.FileRoots {
		if !filepath.IsAbs(root) {
			p.Add(fmt.Sprintf("file_roots[%d]", i), "is "+id.Quote(root), "an absolute path")
		}
	}
	names := map[string]int{}
	for i, s := range c.Streams {
		field := func(name string) string { return fmt.Sprintf("streams[%d].%s", i, name) }
		if _, err := id.ParseStreamName(s.Name); err != nil {
			p.Add(field("name"), "is "+id.Quote(s.Name), "1 to 64 letters, digits, '.', '_' or '-', the first a letter or a digit")
		}
		if first, ok := names[s.Name]; ok {
			p.Add(field("name"), fmt.Sprintf("is %q, the name of streams[%d] already", s.Name, first), "a name of its own")
		}
		names[s.Name] = i
		if dir, ok := strings.CutPrefix(s.Source, "dir:"); !ok || !filepath.IsAbs(dir) {
			p.Add(field("source"), "is "+id.Quote(s.Source), "dir: and an absolute path, such as dir:/var/hls/demo")
		}
		config.Between(&p, field("replicas"), s.Replicas, 0, 100)
		if ttl, fixed := s.SegmentTTL.Get(); fixed {
			config.Between(&p, field("segment_ttl"), ttl, 1*config.Second, 24*config.Hour)
		}
	}
	return p.Err()
}
