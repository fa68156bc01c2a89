package publisher

import (
	"strings"
	"testing"

	"dandelion/pkg/config"
)

func TestConfig(t *testing.T) {
	t.Parallel()
	stream := StreamConfig{Name: "demo", Source: "dir:/var/hls/demo"}
	for field, change := range map[string]func(c *Config){
		"":                              func(*Config) {},
		"publisher.listen":              func(c *Config) { c.Listen = "here" },
		"publisher.data_dir":            func(c *Config) { c.DataDir = "" },
		"publisher.public_url":          func(c *Config) { c.PublicURL = "live.example.org" },
		"publisher.entrances[1]":        func(c *Config) { c.Entrances = []string{"http://192.0.2.1:7070", "ftp://192.0.2.1"} },
		"publisher.insecure_tls[0]":     func(c *Config) { c.InsecureTLS = []string{"https://192.0.2.1"} },
		"publisher.min_boxes":           func(c *Config) { c.MinBoxes = 0 },
		"publisher.replicas":            func(c *Config) { c.Replicas = 101 },
		"publisher.window_limit":        func(c *Config) { c.WindowLimit = 1 },
		"publisher.max_upload":          func(c *Config) { c.MaxUpload = 1 },
		"publisher.file_roots[0]":       func(c *Config) { c.FileRoots = []string{"var"} },
		"publisher.streams[0].name":     func(c *Config) { c.Streams[0].Name = "a/b" },
		"publisher.streams[1].name":     func(c *Config) { c.Streams = append(c.Streams, stream) },
		"publisher.streams[0].source":   func(c *Config) { c.Streams[0].Source = "dir:hls" },
		"publisher.streams[0].replicas": func(c *Config) { c.Streams[0].Replicas = -1 },
	} {
		c := DefaultConfig()
		c.Streams = []StreamConfig{stream}
		change(&c)
		err := c.Validate()
		switch {
		case field == "" && err != nil:
			t.Errorf("the defaults: %v", err)
		case field != "" && (err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(field, "publisher."))):
			t.Errorf("%s: %v", field, err)
		}
	}
	if d := DefaultConfig(); d.Replicas > d.MinBoxes || d.MaxUpload < config.GB {
		t.Errorf("%+v", d)
	}
}
