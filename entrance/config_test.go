package entrance

import (
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"dandelion/pkg/config"
	"dandelion/pkg/wire"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for _, test := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Listen = "7070" }, "listen"},
		{func(c *Config) { c.DataDir = " " }, "data_dir is empty"},
		{func(c *Config) { c.PublicURL = "example.org" }, "public_url"},
		{func(c *Config) { c.OtherURLs = []string{"http://192.0.2.1", "ftp://x"} }, "other_urls[1]"},
		{func(c *Config) { c.LeaseTTL = 0 }, "lease_ttl"},
		{func(c *Config) { c.LeaseTTL = config.Hour }, "lease_ttl"},
		{func(c *Config) { c.MaxSearchResults = 0 }, "max_search_results"},
		{func(c *Config) { c.MaxSearchResults = wire.MaxBoxSet + 1 }, "max_search_results"},
		{func(c *Config) { c.AccountsKeep = config.Hour }, "accounts_keep"},
	} {
		cfg := DefaultConfig()
		test.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v; want %q", err, test.want)
		}
	}
}

// TestNewFails with one line that says what to do, and leaves nothing open.
func TestNewFails(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	running := start(t, embedded, nil)
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"port in use", func(c *Config) { c.Listen = busy.Addr().String() }, "entrance.listen: "},
		{"data_dir in use", func(c *Config) { c.DataDir = running.cfg.DataDir }, "in use"},
		{"data_dir below a file", func(c *Config) { c.DataDir = filepath.Join(running.cfg.DataDir, "key.pem", "x") }, "key.pem"},
		{"no such database", func(c *Config) { c.GeoIPDB = []string{"/nowhere.mmdb"} }, "entrance.geoip_db: "},
		{"bad configuration", func(c *Config) { c.LeaseTTL = 0 }, "lease_ttl"},
	} {
		cfg := DefaultConfig()
		cfg.Listen, cfg.DataDir = "127.0.0.1:0", t.TempDir()
		test.change(&cfg)
		e, err := New(t.Context(), cfg, embedded, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v; want one line with %q", test.name, err, test.want)
		}
		if err == nil {
			e.Close()
		}
	}
	// What a failed New held is free again.
	cfg := DefaultConfig()
	cfg.Listen, cfg.DataDir = busy.Addr().String(), t.TempDir()
	if _, err := New(t.Context(), cfg, embedded, slog.New(slog.DiscardHandler)); err == nil {
		t.Fatal("the port is not in use")
	}
	cfg.Listen = "127.0.0.1:0"
	e, err := New(t.Context(), cfg, embedded, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
