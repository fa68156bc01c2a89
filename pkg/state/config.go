package state

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/config"
)

// Config is the section `redis` of config.yaml. Its zero value is the embedded state.
type Config struct {
	URL            string   `yaml:"url" doc:"redis://[:password@]host:port/0, rediss://… (TLS) or unix:///path/redis.sock; empty: state embedded in the process, below data_dir"`
	Addrs          []string `yaml:"addrs" doc:"more addresses (host:port) of the same Redis, with cluster or sentinel; user, password, database and TLS come from url"`
	Sentinel       string   `yaml:"sentinel" doc:"name of the master that Redis Sentinel watches; url and addrs are then those of Sentinels"`
	Cluster        bool     `yaml:"cluster" doc:"url and addrs are nodes of a Redis Cluster"`
	EmbeddedListen string   `yaml:"embedded_listen" doc:"loopback address (127.0.0.1:6379) where other programs of this machine reach the embedded state with any Redis client; empty: no port"`
}

// Default returns the embedded state without a port.
func Default() Config { return Config{} }

// Validate returns an error that names each wrong field and what would be right. It prints no
// part of a URL, because that may hold a password.
func (c Config) Validate() error {
	var p config.Problems
	if c.URL != "" {
		if _, err := parseURL(c.URL); err != nil {
			p.Add("redis.url", "cannot be read", err.Error())
		}
	}
	for i, addr := range c.Addrs {
		if !isHostPort(addr) {
			p.Add(fmt.Sprintf("redis.addrs[%d]", i), fmt.Sprintf("is %q", addr), "host:port")
		}
	}
	if c.Cluster && c.Sentinel != "" {
		p.Add("redis.sentinel", "is set together with cluster", "one of the two")
	}
	if c.embedded() && c.Cluster {
		p.Add("redis.cluster", "is set and there is no address", "redis.url or redis.addrs too")
	}
	if c.embedded() && c.Sentinel != "" {
		p.Add("redis.sentinel", "is set and there is no address", "redis.url or redis.addrs too")
	}
	if len(c.Addrs) > 0 && !c.Cluster && c.Sentinel == "" && (c.URL != "" || len(c.Addrs) > 1) {
		p.Add("redis.addrs", "has several addresses of one Redis", "cluster: true or sentinel: <master name> with them")
	}
	if c.EmbeddedListen != "" {
		switch {
		case !c.embedded():
			p.Add("redis.embedded_listen", "is set although another Redis is configured", "nothing, or neither url nor addrs")
		case !isLoopback(c.EmbeddedListen):
			p.Add("redis.embedded_listen", fmt.Sprintf("is %q, which is not a loopback address", c.EmbeddedListen), "127.0.0.1:port or [::1]:port; a real Redis shares state between machines")
		}
	}
	return p.Err()
}

func (c Config) embedded() bool { return c.URL == "" && len(c.Addrs) == 0 }

var errURL = errors.New("redis://[:password@]host:port/0, rediss://host:port/0, unix:///path/redis.sock, or nothing for the embedded state")

// parseURL is redis.ParseURL with errors that do not repeat the URL.
func parseURL(raw string) (*redis.Options, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, errURL
	}
	if p := u.Port(); u.Scheme != "unix" && p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return nil, errURL
		}
	}
	options, err := redis.ParseURL(raw)
	if err != nil {
		if strings.Contains(err.Error(), "database number") || strings.Contains(err.Error(), "URL path") {
			return nil, errors.New("the number of a database behind the host, such as /0")
		}
		return nil, errURL
	}
	return options, nil
}

func isHostPort(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

// isLoopback keeps the embedded state off the network: it has no password.
func isLoopback(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, ipErr := netip.ParseAddr(host)
	n, portErr := strconv.Atoi(port)
	return (host == "localhost" || ipErr == nil && ip.IsLoopback()) && portErr == nil && n >= 0 && n <= 65535
}
