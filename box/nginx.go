package box

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dandelion/box/internal/accesslog"
	"dandelion/box/internal/edge"
	"dandelion/box/internal/traffic"
	"dandelion/pkg/config"
)

// Values of Config.Edge.
const (
	edgeBuiltin = "builtin"
	edgeNginx   = "nginx"
)

func (c *Config) nginx() bool { return c.Edge == edgeNginx }

// validateNginx is Validate of what edge asks for.
func (c *Config) validateNginx(p *config.Problems) {
	switch c.Edge {
	case edgeBuiltin:
		return
	case edgeNginx:
	default:
		p.Add("edge", fmt.Sprintf("is %.80q", c.Edge), "builtin or nginx")
		return
	}
	_, limited := c.UploadLimit.Get()
	_, known := c.UploadCapacity.Get()
	switch {
	case c.EdgeListen == "":
		p.Add("edge_listen", "is empty", "the address that nginx listens on, such as :443 or :8080, because edge is nginx")
	case strings.HasSuffix(c.EdgeListen, ":0"):
		p.Add("edge_listen", "is "+strconv.Quote(c.EdgeListen), "the port that nginx listens on, such as :443 or :8080, because edge is nginx")
	}
	if c.LiveDir == "" {
		p.Add("live_dir", "is empty", "the directory where nginx finds live segments, such as /dev/shm/dandelion-box, because edge is nginx")
	}
	if c.AccessLog == "" {
		p.Add("access_log", "is empty", "the file that nginx writes its log to, such as "+DefaultConfig().AccessLog+", because edge is nginx")
	}
	if !limited && !known {
		p.Add("upload_limit", "is auto", "upload_limit, or upload_capacity, as a rate such as 10Mbit/s, because behind nginx the box cannot learn what the line carries")
	}
	for field, dir := range map[string]string{"live_dir": c.LiveDir, "data_dir": c.DataDir, "access_log": c.AccessLog} {
		if strings.ContainsAny(dir, "\"\\${};\n") {
			p.Add(field, fmt.Sprintf("is %.80q, which a configuration of nginx cannot hold", dir), "a path without quotes, backslashes, $, ;, { and }")
		}
	}
}

//go:embed nginx.conf
var nginxConf string

// usualRate, in bytes/s, is what one answer may take where nothing else is known: a quarter more than a stream of 3.2
// Mbit/s.
const usualRate = 500_000

// PrintNginx writes a configuration of nginx that fits a box with these settings, which must have edge
// nginx. It touches nothing.
func PrintNginx(w io.Writer, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if !cfg.nginx() {
		return errors.New("box.edge is builtin: run_box serves viewers itself. Set box.edge to nginx, and what it then asks for")
	}
	if portOf(cfg.Listen) == 0 {
		return errors.New("box.listen has port 0: nginx must know where run_box listens; want a port, such as 127.0.0.1:7072")
	}
	live, liveErr := filepath.Abs(cfg.LiveDir)
	data, dataErr := filepath.Abs(filepath.Join(cfg.DataDir, filesDir))
	log, logErr := filepath.Abs(cfg.AccessLog)
	if err := errors.Join(liveErr, dataErr, logErr); err != nil {
		return err
	}
	limit, limited := cfg.UploadLimit.Get()
	from := "upload_limit is " + limit.String()
	if !limited {
		capacity, _ := cfg.UploadCapacity.Get()
		limit = capacity / 2
		from = "upload_limit is auto, half of upload_capacity: " + limit.String()
	}
	rate := min(usualRate, limit.BytesPerSecond())
	_, err := strings.NewReplacer(
		"{{listen}}", listenLines(&cfg),
		"{{access_log}}", quoted(log), "{{live}}", quoted(live), "{{data}}", quoted(data),
		"{{run_box}}", dialled(cfg.Listen),
		"{{upload}}", from+".",
		"{{rate}}", strconv.FormatInt(rate, 10),
		"{{answers}}", strconv.FormatInt(limit.BytesPerSecond()/rate, 10),
	).WriteString(w, nginxConf)
	return err
}

// listenLines are the directives that depend on whether nginx speaks TLS, without the last line's end.
func listenLines(cfg *Config) string {
	public, _ := splitPublic(cfg.PublicAddress) // Validate has seen it
	tls := ""
	if public.tls {
		tls = " ssl"
	}
	host, port, _ := net.SplitHostPort(cfg.EdgeListen)
	var b strings.Builder
	if host == "" {
		fmt.Fprintf(&b, "  listen %s%s; # box.edge_listen\n  listen [::]:%[1]s%[2]s;\n", port, tls)
	} else {
		fmt.Fprintf(&b, "  listen %s%s; # box.edge_listen\n", cfg.EdgeListen, tls)
	}
	if public.host != "" {
		fmt.Fprintf(&b, "  server_name %s;\n", public.host)
	}
	if public.tls {
		fmt.Fprintf(&b, `  ssl_certificate /etc/letsencrypt/live/%[1]s/fullchain.pem; # EDIT: with the certificates above it
  ssl_certificate_key /etc/letsencrypt/live/%[1]s/privkey.pem;  # EDIT
  ssl_protocols TLSv1.2 TLSv1.3;
  ssl_session_cache shared:dandelion_box_tls:1m;
  ssl_session_timeout 1h;
`, public.host)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func quoted(path string) string {
	if strings.ContainsAny(path, " \t'#") {
		return `"` + path + `"`
	}
	return path
}

// dialled is how this machine reaches what listens on addr.
func dialled(addr string) string {
	host, port, _ := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// letThrough lets nginx's processes, which run as another user, reach the files: it opens data_dir for passing
// through, not for looking, and says which directories above do not let others pass.
func (b *Box) letThrough(live string) {
	dir := b.cfg.DataDir
	if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o011 != 0o011 {
		if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
			b.log.Warn("nginx's processes cannot pass through data_dir: chmod a+x it", "dir", dir, "error", err)
		}
	}
	for _, dir := range []string{filepath.Join(dir, filesDir), live} {
		at, err := filepath.Abs(dir)
		for err == nil {
			var info fs.FileInfo
			if info, err = os.Stat(at); err == nil && info.Mode().Perm()&0o001 == 0 {
				b.log.Warn("nginx's processes cannot pass through a directory, unless their group may: chmod a+x it", "dir", at)
			}
			if at == filepath.Dir(at) {
				break
			}
			at = filepath.Dir(at)
		}
	}
}

// startNginx says what to do when nobody listens where nginx should; "" when somebody does.
func (c *Config) startNginx() string {
	host, port, _ := net.SplitHostPort(c.EdgeListen)
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "localhost"
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 100*time.Millisecond)
	if err == nil {
		conn.Close()
		return ""
	}
	return fmt.Sprintf("nothing listens on port %s of this machine: start nginx with the configuration that run_box --print-nginx prints", port)
}

// followNginx returns the follower of nginx's log.
func (b *Box) followNginx() *accesslog.Follower {
	return accesslog.New(accesslog.Config{
		Path: b.cfg.AccessLog, From: accesslog.ParsePosition(b.traffic.Position()), Take: b.takeLogged, Registerer: b.metrics, Log: b.log,
	})
}

// justNow is how old a line may be whose bytes count against the upload of now: others are from before the start.
const justNow = 10 * time.Second

// takeLogged accounts what nginx sent. The journal has it together with how far the log was read.
func (b *Box) takeLogged(list []accesslog.Delivery, behind accesslog.Position) error {
	kept := make([]traffic.Delivery, 0, len(list))
	for _, d := range list {
		if d.Method == http.MethodGet { // as without nginx
			kept = append(kept, traffic.Delivery{Time: d.Time, URL: d.URL, Status: d.Status, Bytes: d.Bytes, Viewer: d.Viewer})
		}
	}
	b.traffic.RecordAll(kept, behind.String())
	now, sent := time.Now(), int64(0)
	for _, d := range list {
		b.edge.Account(edge.Delivery{Status: d.Status, Bytes: d.Bytes, Aborted: d.Aborted})
		if age := now.Sub(d.Time); -justNow < age && age < justNow {
			sent += d.Bytes
		}
	}
	b.limiter.Debit(sent)
	return nil
}
