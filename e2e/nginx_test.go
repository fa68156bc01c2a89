//go:build e2e

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"dandelion/pkg/testnginx"
)

// insecure is a client that takes any certificate and follows no redirects.
func insecure(t *testing.T) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 10 * time.Second, CheckRedirect: client.CheckRedirect}
}

// behindNginx starts nginx with a configuration of this repository, changed for the test.
func behindNginx(t *testing.T, addr, conf, cert, key string, edits map[string]string) *testnginx.Server {
	t.Helper()
	edits["ssl_certificate"], edits["ssl_certificate_key"] = "ssl_certificate "+cert+";", "ssl_certificate_key "+key+";"
	return testnginx.Start(t, addr, testnginx.Edit(t, conf, edits))
}

// addNginxBox starts a box that nginx serves the files of, with TLS where there is a certificate.
func (f *fleet) addNginxBox(cert, key string) *daemon {
	f.t.Helper()
	name := fmt.Sprintf("box%d", len(f.boxes)+1)
	dir, addr := filepath.Join(f.dir, name), testnginx.FreeAddr(f.t)
	public := addr
	if cert != "" {
		public = "https://" + addr
	}
	b := newDaemonIn(f.t, f.env, nil, "run_box", name, dir, fmt.Sprintf("box:\n  edge: nginx\n  edge_listen: %q\n  public_address: %q\n  data_dir: %q\n  live_dir: %q\n  access_log: %q\n  upload_limit: 1Gbit/s\n",
		addr, public, filepath.Join(dir, "data"), filepath.Join(dir, "live"), filepath.Join(dir, "access.log"))+f.peers)
	b.public = addr
	status, conf, said := run(f.t, soon, nil, program("run_box"), "--config", filepath.Join(dir, "config.yaml"), "--listen", b.listen, "--print-nginx")
	if status != 0 || said != "" {
		f.t.Fatalf("run_box --print-nginx: status %d: %s", status, said)
	}
	if cert == "" {
		testnginx.Start(f.t, addr, conf)
	} else {
		behindNginx(f.t, addr, conf, cert, key, map[string]string{})
	}
	f.boxes = append(f.boxes, b)
	return b
}

// served is what a box's account says that viewers got.
func served(t *testing.T, b *daemon) (bytes int64) {
	t.Helper()
	s, err := getJSON[struct {
		Reachable string `json:"reachable"`
		Totals    struct {
			Bytes int64 `json:"served_bytes"`
		} `json:"totals"`
	}](t, b.url()+"/api/v1/box")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Reachable, "reachable: https://") {
		t.Errorf("%s: %s", b.name, s.Reachable)
	}
	return s.Totals.Bytes
}

// TestBoxBehindNginx: a live stream comes to `dandelion watch` and to hls.js from nginx with TLS, and the boxes account
// for just the bytes that viewers got.
func TestBoxBehindNginx(t *testing.T) {
	t.Parallel()
	const seconds = 8
	cert, key := testnginx.Certificate(t)
	fleet := newFleet(t, plan{boxes: -1, tls: cert})
	for range 2 {
		fleet.addNginxBox(cert, key)
	}
	fleet.awaitBoxes(2)
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)

	status, out, said := run(t, patience, fleet.env, program("dandelion"), "watch", "--viewers", "5", "--for", fmt.Sprintf("%ds", seconds), "--json", fleet.index())
	_, text, _ := strings.Cut(out, "{\n")
	var summary struct {
		Bytes    map[string]int64 `json:"bytes"`
		Segments struct{ Missed, Corrupt int }
	}
	if err := json.Unmarshal([]byte("{\n"+text), &summary); err != nil || status != 0 {
		t.Fatalf("dandelion watch: status %d, %v: %s%s", status, err, out, said)
	}
	var boxes, all int64
	for host, n := range summary.Bytes {
		if all += n; host != fleet.publisher.addr {
			boxes += n
		}
	}
	if summary.Segments.Missed > 0 || summary.Segments.Corrupt > 0 || offload(boxes, all-boxes) < 0.9 {
		t.Errorf("%s", text)
	}
	eventually(t, soon, func() error {
		var account int64
		for _, b := range fleet.boxes {
			account += served(t, b)
		}
		// What watch broke off at its end was sent and not received: one segment of each viewer at most.
		if account < boxes || account > boxes+5*300_000 {
			return fmt.Errorf("the boxes account for %d bytes, viewers got %d", account, boxes)
		}
		t.Logf("the boxes account for %d bytes, viewers got %d", account, boxes)
		return nil
	})

	m := seen(t, browse(t, fleet.publisher.url()+"/", seconds, "--insecure"), seconds)
	judgeStalls(t, "the browser", m.Stalls, time.Duration(m.StallSeconds*float64(time.Second)))
	if boxes, own := m.share(); offload(boxes, own) < 0.9 || len(m.serious()) > 0 {
		t.Errorf("boxes sent %d bytes and the origin %d; errors: %q", boxes, own, m.serious())
	}
}

// repositoryConf reads a file of deploy/nginx.
func repositoryConf(t *testing.T, name string) string {
	return string(read(t, filepath.Join(root, "deploy/nginx", name)))
}

// TestEntranceBehindNginx: box and publisher have their sessions with the entrance through nginx with TLS; nothing but
// these is passed on.
func TestEntranceBehindNginx(t *testing.T) {
	t.Parallel()
	cert, key := testnginx.Certificate(t)
	addr := testnginx.FreeAddr(t)
	url := "https://" + addr
	fleet := newFleet(t, plan{
		boxes: 2, entrance: fmt.Sprintf("  public_url: %q\n  trusted_proxies: [127.0.0.1]\n", url),
		front: func(entrance *daemon) string {
			behindNginx(t, addr, repositoryConf(t, "entrance.conf"), cert, key, map[string]string{
				"listen": "listen " + addr + " ssl;", "server 127.0.0.1:7070": "server " + entrance.addr + ";",
			})
			return fmt.Sprintf("  entrances: [%q]\n  insecure_tls: [%[1]q]\n", url)
		},
	})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(3)
	https := insecure(t)
	if body, _, err := fetch(t.Context(), https, url+"/dandelion/"); err != nil || string(body) != "HI "+fleet.entrance.id {
		t.Errorf("the index: %s, %v", body, err)
	}
	for _, path := range []string{"/", "/api/v1/boxes", "/metrics", "/debug/health", "/dandelion/../api/v1/boxes"} {
		var status *statusError
		if _, _, err := fetch(t.Context(), https, url+path); !errors.As(err, &status) || status.status != http.StatusNotFound {
			t.Errorf("%s: %v, want 404", path, err)
		}
	}
	type sessions struct {
		Boxes []struct {
			Session   string `json:"session"`
			Reachable string `json:"reachable"`
		} `json:"boxes"`
	}
	s, err := getJSON[sessions](t, fleet.entrance.url()+"/api/v1/boxes")
	if err != nil || len(s.Boxes) != 2 || s.Boxes[0].Session != "persistent" || s.Boxes[0].Reachable != "yes" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestWebServerBeforePublisher: many viewers of a site ask the publisher for a playlist once a second; redirects are each
// viewer's own; and when the publisher is down, the last playlist and a local directory serve on.
func TestWebServerBeforePublisher(t *testing.T) {
	t.Parallel()
	cert, key := testnginx.Certificate(t)
	addr, local := testnginx.FreeAddr(t), t.TempDir()
	url := "https://" + addr
	fleet := newFleet(t, plan{boxes: 2, extra: fmt.Sprintf("  public_url: %q\n  trusted_proxies: [127.0.0.1/32]\n", url)})
	behindNginx(t, addr, repositoryConf(t, "web.conf"), cert, key, map[string]string{
		"listen": "listen " + addr + " ssl;", "server 127.0.0.1:7071": "server " + fleet.publisher.addr + ";", "root": "root " + local + ";",
		"proxy_cache_path": fmt.Sprintf("proxy_cache_path %s/cache levels=1:2 keys_zone=dandelion_web:1m inactive=30s use_temp_path=off;", t.TempDir()),
	})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	https := insecure(t)
	media := url + "/live/" + stream + "/index/index.m3u8"

	const viewers, length = 40, 5 * time.Second
	before := viewersAsked(t, fleet)
	var group sync.WaitGroup
	var mu sync.Mutex
	asked := 0
	began := time.Now()
	for i := range viewers {
		group.Go(func() {
			for time.Since(began) < length {
				if _, header, err := fetch(t.Context(), https, fmt.Sprintf("%s?viewer=%d", media, i)); err != nil || header.Get("Access-Control-Allow-Origin") != "*" {
					t.Errorf("%v, %v", header, err)
					return
				}
				mu.Lock()
				asked++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	passed := viewersAsked(t, fleet).Playlists - before.Playlists
	t.Logf("%d viewers asked %d times in %v, the publisher was asked %d times", viewers, asked, length, passed)
	if passed > int64(length/time.Second)+3 || passed < 2 || asked < 10*int(passed) {
		t.Errorf("%d requests of %d reached the publisher in %v", passed, asked, length)
	}

	segment := lastSegment(t, https, media)
	before = viewersAsked(t, fleet)
	const repeats = 2
	for range repeats {
		resp := head(t, https, http.MethodGet, segment)
		if to := resp.Header.Get("Location"); resp.StatusCode != 302 || fleet.box(host(t, to)) == nil || resp.Header.Get("Cache-Control") != "no-store" || len(resp.Header.Values("Access-Control-Allow-Origin")) != 1 {
			t.Errorf("%s: %d %v", segment, resp.StatusCode, resp.Header)
		}
	}
	if n := viewersAsked(t, fleet).Redirects - before.Redirects; n != repeats {
		t.Errorf("%d redirects given for %d requests", n, repeats)
	}
	fleet.awaitMore(1) // of a segment that nobody asked for yet
	eventually(t, soon, func() error {
		if lastSegment(t, https, media) == segment {
			return errors.New("no new segment")
		}
		return nil
	})
	if to := head(t, https, http.MethodGet, lastSegment(t, https, media)+"?avoid="+fleet.boxes[0].id).Header.Get("Location"); !strings.HasSuffix(to, "?hop=1") {
		t.Errorf("sent on to %s, want ?hop=1 at its end", to)
	}
	if resp := head(t, https, http.MethodOptions, segment); resp.StatusCode != 204 || resp.Header.Get("Access-Control-Allow-Headers") == "" {
		t.Errorf("OPTIONS: %d %v", resp.StatusCode, resp.Header)
	}
	for _, path := range []string{"/api/v1/streams", "/api/v1/boxes", "/metrics", "/debug/health", "/live/../api/v1/boxes", "/live/none/index.m3u8"} {
		if resp := head(t, https, http.MethodGet, url+path); resp.StatusCode != 404 {
			t.Errorf("%s: %d, want 404", path, resp.StatusCode)
		}
	}

	segment = lastSegment(t, https, media)
	last, _, err := fetch(t.Context(), https, media)
	if err != nil {
		t.Fatal(err)
	}
	fleet.publisher.kill()
	killed := time.Now()
	other := segment + ".gone"
	name := filepath.Join(local, strings.TrimPrefix(segment, url))
	slate := filepath.Join(local, "live", "slate", "index.m3u8")
	for _, file := range []string{name, slate} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, file, "local")
	}
	if body, header, err := fetch(t.Context(), https, segment); err != nil || string(body) != "local" || header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a segment in the local directory: %q, %v, %v", body, header, err)
	}
	if resp := head(t, https, http.MethodGet, other); resp.StatusCode != 503 || resp.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a segment that is not there: %d %v", resp.StatusCode, resp.Header)
	}
	if body, _, err := fetch(t.Context(), https, url+"/live/slate/index.m3u8"); err != nil || string(body) != "local" {
		t.Errorf("a playlist in the local directory: %q, %v", body, err)
	}
	eventually(t, soon, func() error { // also when its second is over
		body, _, err := fetch(t.Context(), https, media)
		if err == nil && string(body) == "local" {
			err = fatal{errors.New("not the last playlist")}
		}
		if err == nil && time.Since(killed) < 2*time.Second {
			err = errors.New("not over yet")
		}
		if err == nil && !strings.HasPrefix(string(body), "#EXTM3U") || len(body) < len(last)/2 {
			err = fmt.Errorf("%s", body)
		}
		return err
	})
}

// viewersAsked is what the publisher counts.
func viewersAsked(t *testing.T, f *fleet) (n struct{ Playlists, Redirects int64 }) {
	t.Helper()
	s, err := getJSON[struct {
		Totals struct {
			Viewers struct {
				Playlists int64 `json:"playlists"`
				Redirects int64 `json:"redirects"`
			} `json:"viewers"`
		} `json:"totals"`
	}](t, f.publisher.url()+"/api/v1/streams")
	if err != nil {
		t.Fatal(err)
	}
	n.Playlists, n.Redirects = s.Totals.Viewers.Playlists, s.Totals.Viewers.Redirects
	return n
}

// lastSegment returns the URL of the last segment of a media playlist.
func lastSegment(t *testing.T, client *http.Client, media string) string {
	t.Helper()
	body, _, err := fetch(t.Context(), client, media)
	if err != nil {
		t.Fatal(err)
	}
	last := ""
	for line := range lines(string(body)) {
		if !strings.HasPrefix(line, "#") {
			last = line
		}
	}
	if strings.HasPrefix(last, "/") {
		return "https://" + host(t, media) + last
	}
	return media[:strings.LastIndexByte(media, '/')+1] + last
}

// head asks, and reads the answer to its end.
func head(t *testing.T, client *http.Client, method, url string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp
}
