package state

import (
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		config Config
		want   string // part of the error; empty: valid
	}{
		{"default", Default(), ""},
		{"url", Config{URL: "redis://127.0.0.1:6379/0"}, ""},
		{"password", Config{URL: "redis://:secret@host/3"}, ""},
		{"tls", Config{URL: "rediss://user:secret@host:6380"}, ""},
		{"unix", Config{URL: "unix:///run/redis.sock"}, ""},
		{"one address", Config{Addrs: []string{"host:6379"}}, ""},
		{"cluster", Config{URL: "redis://:secret@a:1", Addrs: []string{"b:2", "c:3"}, Cluster: true}, ""},
		{"sentinel", Config{Addrs: []string{"b:2", "c:3"}, Sentinel: "main"}, ""},
		{"port", Config{EmbeddedListen: "127.0.0.1:6379"}, ""},
		{"port, IPv6", Config{EmbeddedListen: "[::1]:6379"}, ""},
		{"no scheme", Config{URL: "localhost:6379"}, "redis.url cannot be read; want redis://"},
		{"http", Config{URL: "http://secret@localhost"}, "redis.url cannot be read; want redis://"},
		{"bad port", Config{URL: "redis://:secret@localhost:port"}, "redis.url cannot be read; want redis://"},
		{"port out of range", Config{URL: "redis://:secret@localhost:65536"}, "redis.url cannot be read; want redis://"},
		{"control character", Config{URL: "redis://:secret@local\x7fhost"}, "redis.url cannot be read; want redis://"},
		{"database", Config{URL: "redis://:secret@localhost/first"}, "redis.url cannot be read; want the number of a database"},
		{"unknown option", Config{URL: "redis://:secret@localhost?secret=1"}, "redis.url cannot be read; want redis://"},
		{"address without port", Config{Addrs: []string{"host"}}, `redis.addrs[0] is "host"; want host:port`},
		{"several without a kind", Config{Addrs: []string{"a:1", "b:2"}}, "redis.addrs has several addresses of one Redis; want cluster: true or sentinel"},
		{"cluster and sentinel", Config{URL: "redis://a", Cluster: true, Sentinel: "main"}, "redis.sentinel is set together with cluster"},
		{"cluster of nothing", Config{Cluster: true}, "redis.cluster is set and there is no address"},
		{"sentinel of nothing", Config{Sentinel: "main"}, "redis.sentinel is set and there is no address"},
		{"open to the world", Config{EmbeddedListen: ":6379"}, `redis.embedded_listen is ":6379", which is not a loopback address`},
		{"open to the network", Config{EmbeddedListen: "192.168.1.2:6379"}, "is not a loopback address"},
		{"port of a real Redis", Config{URL: "redis://a", EmbeddedListen: "127.0.0.1:1"}, "redis.embedded_listen is set although another Redis"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := test.config.Validate()
			switch {
			case test.want == "" && err != nil:
				t.Errorf("got %v, want no error", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want an error with %q", err, test.want)
			case err != nil && strings.Contains(err.Error(), "secret"):
				t.Errorf("the password is in the error: %v", err)
			}
		})
	}
}
