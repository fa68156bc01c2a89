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
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("redis."+field+": "+format, args...))
	}
	if _, err := parseURL(c.URL); c.URL != "" && err != nil {
		bad("url", "%w", err)
	}
	for _, addr := range c.Addrs {
		if err := checkHostPort(addr); err != nil {
			bad("addrs", "%w", err)
		}
	}
	if c.Cluster && c.Sentinel != "" {
		bad("sentinel", "cannot be used together with redis.cluster: leave one of them out")
	}
	if c.embedded() && c.Cluster {
		bad("cluster", "has no addresses: give redis.url or redis.addrs")
	}
	if c.embedded() && c.Sentinel != "" {
		bad("sentinel", "has no addresses: give redis.url or redis.addrs")
	}
	if len(c.Addrs) > 0 && !c.Cluster && c.Sentinel == "" && (c.URL != "" || len(c.Addrs) > 1) {
		bad("addrs", "several addresses need redis.cluster: true or redis.sentinel: <master name>")
	}
	if c.EmbeddedListen != "" {
		if !c.embedded() {
			bad("embedded_listen", "is only for the embedded state: leave it empty, or leave redis.url and redis.addrs empty")
		} else if err := checkLoopback(c.EmbeddedListen); err != nil {
			bad("embedded_listen", "%w", err)
		}
	}
	return errors.Join(errs...)
}

func (c Config) embedded() bool { return c.URL == "" && len(c.Addrs) == 0 }

var errURL = errors.New("want redis://[:password@]host:port/0, rediss://host:port/0, unix:///path/redis.sock, or nothing for the embedded state")

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
			return nil, errors.New("the part behind the host must be the number of a database, such as /0")
		}
		return nil, errURL
	}
	return options, nil
}

func checkHostPort(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err == nil && host != "" {
		if n, err := strconv.Atoi(port); err == nil && n >= 1 && n <= 65535 {
			return nil
		}
	}
	return fmt.Errorf("%q is not an address: want host:port", addr)
}

// checkLoopback keeps the embedded state off the network: it has no password.
func checkLoopback(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		ip, ipErr := netip.ParseAddr(host)
		n, portErr := strconv.Atoi(port)
		if (host == "localhost" || ipErr == nil && ip.IsLoopback()) && portErr == nil && n >= 0 && n <= 65535 {
			return nil
		}
	}
	return fmt.Errorf("%q is not a loopback address: want 127.0.0.1:port or [::1]:port; run a real Redis to share state between machines", addr)
}
