package box

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	good := DefaultConfig()
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	full := Config{
		Listen: "[::1]:7072", EdgeListen: ":8080", Edge: "builtin", PublicAddress: "Box.example.org:80", DataDir: "d", LiveDir: "l",
		LiveLimit: config.Fixed(minLimit), StorageLimit: config.Fixed(config.GB),
		Entrances: []string{"http://192.0.2.1:7070", "https://e.example/"}, InsecureTLS: []string{"https://E.example"},
		ReportInterval: config.Minute, TrustedProxies: config.Networks{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}},
	}
	if err := full.Validate(); err != nil {
		t.Error(err)
	}
	if got := full.trusted(); len(got) != 1 || got[0].String() != "10.0.0.0/8" {
		t.Errorf("%v", got)
	}
	for want, change := range map[string]func(*Config){
		"listen":          func(c *Config) { c.Listen = "7072" },
		"edge_listen":     func(c *Config) { c.EdgeListen = c.Listen },
		"public_address":  func(c *Config) { c.PublicAddress = "http://box.example" },
		"data_dir":        func(c *Config) { c.DataDir = "" },
		"edge":            func(c *Config) { c.Edge = "apache" },
		"live_limit":      func(c *Config) { c.LiveLimit = config.Fixed(config.KB) },
		"storage_limit":   func(c *Config) { c.StorageLimit = config.Fixed(config.ByteSize(0)) },
		"entrances[1]":    func(c *Config) { c.Entrances = []string{"http://e.example", "e.example:7070"} },
		"insecure_tls[0]": func(c *Config) { c.InsecureTLS = []string{"https://e.example"} },
		"report_interval": func(c *Config) { c.ReportInterval = config.Hour },
	} {
		c := DefaultConfig()
		change(&c)
		var field *config.FieldError
		if err := c.Validate(); !errors.As(err, &field) || field.Field != want || field.Want == "" {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestSplitPublic(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]public{
		"": {}, "203.0.113.7": {false, "203.0.113.7", 0}, "203.0.113.7:80": {false, "203.0.113.7", 80}, "Box.Example": {false, "box.example", 0},
		"box.example:65535": {false, "box.example", 65535}, "2001:db8::1": {false, "2001:db8::1", 0}, "[2001:db8::1]": {false, "2001:db8::1", 0},
		"[2001:db8::1]:80": {false, "2001:db8::1", 80}, "127.0.0.1:7072": {false, "127.0.0.1", 7072}, "::ffff:203.0.113.7": {false, "203.0.113.7", 0},
		"https://Box.example": {true, "box.example", 443}, "https://203.0.113.7:8443": {true, "203.0.113.7", 8443}, "https://[2001:db8::1]": {true, "2001:db8::1", 443},
	} {
		if got, err := splitPublic(in); got.tls != want.tls || got.host != want.host || got.port != want.port || err != nil {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, bad := range []string{
		":80", "box.example:", "box.example:0", "box.example:65536", "box example", "http://box.example", "-box.example", "box..example",
		"0.0.0.0", "169.254.169.254:80", "[fe80::1]:80", "ff02::1", strings.Repeat("a", 64), "a:b:c", "böx.example",
		"https://", "https://box.example/", "https://:443", "https://https://box.example",
	} {
		if got, err := splitPublic(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// TestStoreConfig: limits that nobody set, and that restarts do not change.
func TestStoreConfig(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
	cfg.DataDir, cfg.LiveDir = t.TempDir(), t.TempDir()
	log := slog.New(slog.DiscardHandler)
	s, err := storeConfig(&cfg, id.BoxIDOf(nil), log)
	if err != nil {
		t.Fatal(err)
	}
	free := freeSpace(cfg.DataDir)
	if s.StorageLimit > int64(maxAutoStorage) || s.StorageLimit > free/4 || s.StorageLimit < min(int64(maxAutoStorage), free/6) {
		t.Errorf("storage limit %d of %d free", s.StorageLimit, free)
	}
	if s.LiveLimit > int64(maxAutoLive) || s.LiveLimit < int64(minLimit) || s.LiveDir != cfg.LiveDir || s.DataDir != filepath.Join(cfg.DataDir, "files") {
		t.Errorf("%+v", s)
	}
	cfg.StorageLimit, cfg.LiveLimit = config.Fixed(20*config.MB), config.Fixed(30*config.MB)
	if s, err = storeConfig(&cfg, id.BoxIDOf(nil), log); err != nil || s.StorageLimit != 20_000_000 || s.LiveLimit != 30_000_000 {
		t.Errorf("%+v, %v", s, err)
	}
	file := filepath.Join(cfg.DataDir, "one")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(file, file+"-again"); err != nil {
		t.Fatal(err)
	}
	if got := stored(cfg.DataDir); got < 1<<20 || got > 1<<20+16<<10 {
		t.Errorf("a file of 1 MiB with two names takes %d", got)
	}
}

func TestAutoLive(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		free     int64
		inMemory bool
		want     config.ByteSize
	}{
		{0, false, minLimit}, {1e9, false, 100 * config.MB}, {1e12, false, maxAutoLive}, {64e6, true, 32 * config.MB}, {1e6, true, minLimit},
	} {
		if got := autoLive(tt.free, tt.inMemory); got != tt.want {
			t.Errorf("%d, in memory %v: %v, want %v", tt.free, tt.inMemory, got, tt.want)
		}
	}
	if got := autoLive(1e15, true); got > config.ByteSize(memory()/memoryPart) {
		t.Errorf("%v of a memory of %d", got, memory())
	}
}

// TestMemoryDir: a directory in memory that is somebody else's is not used.
func TestMemoryDir(t *testing.T) {
	t.Parallel()
	box := id.BoxIDOf([]byte(t.TempDir()))
	dir, ok := memoryDir(box)
	if !ok {
		t.Log("this machine has no directory in memory")
		return
	}
	defer os.Remove(dir)
	if !onTmpfs(dir) || filepath.Base(dir) != "dandelion-"+string(box) {
		t.Errorf("%s", dir)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), dir); err != nil {
		t.Fatal(err)
	}
	if again, _ := memoryDir(box); again == dir {
		t.Error("a link that somebody left there is followed")
	}
}

func TestAnnounced(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		edge, main string
		want       bool
	}{
		{"127.0.0.1:0", "127.0.0.1:0", true}, {"127.0.0.1:0", ":0", false}, {":0", ":0", true}, {":0", "127.0.0.1:0", true},
	} {
		edge, err := net.Listen("tcp", tt.edge)
		if err != nil {
			t.Fatal(err)
		}
		main, err := net.Listen("tcp", tt.main)
		if err != nil {
			t.Fatal(err)
		}
		if got := announced(edge, main); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
		edge.Close()
		main.Close()
	}
}
