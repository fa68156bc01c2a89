//go:build e2e

package e2e

import (
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// daemon is one of the three, with the configuration that it is started with again after a kill.
type daemon struct {
	*process
	t       *testing.T
	program string
	name    string
	dir     string // its own: config.yaml and data
	at      *place // where it runs; nil: 127.0.0.1
	listen  string // host:port of --listen, the same after each start
	addr    string // host:port in its own network, the same after each start
	public  string // host:port at which others reach it
	id      string
	env     []string // more of its environment
}

// newDaemon writes the configuration and starts it. config is YAML in which listen is not set.
func newDaemon(t *testing.T, program, name, dir, config string) *daemon {
	t.Helper()
	return newDaemonAt(t, nil, program, name, dir, config)
}

func newDaemonAt(t *testing.T, at *place, program, name, dir, config string) *daemon {
	t.Helper()
	return newDaemonIn(t, nil, at, program, name, dir, config)
}

// newDaemonIn is newDaemonAt with more environment.
func newDaemonIn(t *testing.T, env []string, at *place, program, name, dir, config string) *daemon {
	t.Helper()
	d := &daemon{t: t, env: env, program: program, name: name, dir: dir, at: at, listen: at.anyPort()}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "config.yaml"), config)
	d.start()
	return d
}

// start starts the daemon and waits until it listens, at the address that it had before.
func (d *daemon) start() {
	d.t.Helper()
	cmd := exec.Command(program(d.program), "--config", filepath.Join(d.dir, "config.yaml"), "--listen", d.listen)
	cmd.Dir = d.dir
	cmd.Env = append(os.Environ(), d.env...)
	if d.process != nil {
		d.replaced.Store(true)
	}
	d.at.enter(func() { d.process = begin(d.t, d.name, cmd, d.stop) })
	line := d.says(d.t, soon, " listen=", " id=")
	if id := attribute(line, "id"); d.id != "" && d.id != id {
		fails(d.t, "%s was %s and is %s after a restart", d.name, d.id, id)
	} else {
		d.id = id
	}
	d.listen = attribute(line, "listen")
	d.addr = d.at.reachedAt(d.listen)
}

func (d *daemon) url() string { return "http://" + d.addr }

// stop asks the daemon to leave; it must drain and end with status 0.
func (d *daemon) stop(p *process) {
	d.t.Helper()
	p.signal(syscall.SIGTERM)
	if status := p.exit(d.t, leave); status != 0 {
		fails(d.t, "%s ended with status %d after SIGTERM, want 0", d.name, status)
	}
}

const stream = "demo"

// fleet is an entrance, boxes and a publisher with one stream, whose source is a directory.
type fleet struct {
	t         *testing.T
	dir       string
	source    string
	entrance  *daemon
	twin      *daemon // another process of the entrance
	state     string  // the section redis of all daemons
	boxes     []*daemon
	publisher *daemon
	client    *http.Client // asks the publisher
	env       []string     // of all daemons
	peers     string       // YAML by which boxes and the publisher know the entrance
}

// plan says which fleet. Its zero value has three boxes and two copies of each segment.
type plan struct {
	boxes    int // -1: none yet
	replicas int
	redis    string                                // URL for the publisher; "": embedded
	embedded string                                // address where the publisher's embedded state is reached
	state    string                                // the section redis of all daemons, YAML; "": as above
	twin     bool                                  // two processes of one entrance behind nginx; needs state
	extra    string                                // more YAML of the publisher, indented by two spaces
	tls      string                                // file with the certificate that all trust; "": the machine's
	entrance string                                // more YAML of the entrance
	front    func(entrance *daemon) (peers string) // the YAML by which boxes and the publisher know it; nil: itself
}

// newFleet starts a fleet and returns it when the publisher has sessions with all boxes.
func newFleet(t *testing.T, p plan) *fleet {
	t.Helper()
	if p.boxes == 0 {
		p.boxes = 3
	}
	if p.replicas == 0 {
		p.replicas = 2
	}
	f := &fleet{t: t, dir: t.TempDir(), client: client, state: p.state}
	if p.tls != "" {
		f.env = []string{"SSL_CERT_FILE=" + p.tls}
	}
	f.source = filepath.Join(f.dir, "source")
	if err := os.Mkdir(f.source, 0o700); err != nil {
		t.Fatal(err)
	}
	if p.twin {
		f.peers = entrances(f.startTwins())
	} else {
		f.entrance = f.newEntrance("entrance", p.entrance)
		f.peers = entrances(f.entrance.url())
	}
	if p.front != nil {
		f.peers = p.front(f.entrance)
	}
	for range p.boxes {
		f.addBox()
	}
	dir := filepath.Join(f.dir, "publisher")
	config := fmt.Sprintf("publisher:\n  data_dir: %q\n  replicas: %d\n", filepath.Join(dir, "data"), p.replicas) +
		f.peers + p.extra + fmt.Sprintf("  streams:\n    - name: %s\n      source: %q\n", stream, "dir:"+f.source)
	if p.redis != "" || p.embedded != "" {
		config = fmt.Sprintf("redis:\n  url: %q\n  embedded_listen: %q\n", p.redis, p.embedded) + config
	}
	f.publisher = newDaemonIn(t, f.env, nil, "run_publisher", "publisher", dir, p.state+config)
	f.awaitBoxes(max(p.boxes, 0))
	return f
}

// entrances is the YAML by which boxes and a publisher know an entrance.
func entrances(url string) string { return fmt.Sprintf("  entrances: [%q]\n", url) }

// newEntrance starts a process of the entrance. more is YAML of its section.
func (f *fleet) newEntrance(name, more string) *daemon {
	f.t.Helper()
	dir := filepath.Join(f.dir, name)
	return newDaemonIn(f.t, f.env, nil, "run_entrance", name, dir, f.state+fmt.Sprintf("entrance:\n  data_dir: %q\n", filepath.Join(dir, "data"))+more)
}

// addBox starts one more box.
func (f *fleet) addBox() *daemon { return f.addBoxAt("127.0.0.1") }

// addBoxAt starts one more box, which is reached at an address that may not be its own.
func (f *fleet) addBoxAt(public string) *daemon {
	f.t.Helper()
	name := fmt.Sprintf("box%d", len(f.boxes)+1)
	dir := filepath.Join(f.dir, name)
	b := newDaemonIn(f.t, f.env, nil, "run_box", name, dir, f.state+fmt.Sprintf("box:\n  public_address: %q\n  data_dir: %q\n  live_dir: %q\n  upload_capacity: 1Gbit/s\n  upload_limit: 1Gbit/s\n",
		public, filepath.Join(dir, "data"), filepath.Join(dir, "live"))+f.peers)
	if b.public = public; public == "127.0.0.1" {
		b.public = b.addr
	}
	f.boxes = append(f.boxes, b)
	return b
}

// awaitBoxes waits until the publisher has sessions with exactly n boxes.
func (f *fleet) awaitBoxes(n int) {
	f.t.Helper()
	eventually(f.t, patience, func() error {
		s, err := f.streams()
		if err == nil && s.Boxes.Up != n {
			err = fmt.Errorf("the publisher has sessions with %d boxes, want %d", s.Boxes.Up, n)
		}
		return err
	})
}

// index is the URL that viewers are given.
func (f *fleet) index() string { return f.publisher.url() + "/live/" + stream + "/index.m3u8" }

// box returns the box that serves at host:port.
func (f *fleet) box(addr string) *daemon {
	for _, b := range f.boxes {
		if b.public == addr {
			return b
		}
	}
	return nil
}

// streams is what GET /api/v1/streams tells.
type streams struct {
	ID      string `json:"id"`
	Streams []struct {
		Name       string `json:"name"`
		URL        string `json:"url"`
		Ended      bool   `json:"ended"`
		Problem    string `json:"problem"`
		Renditions []struct {
			Name          string `json:"name"`
			MediaSequence uint64 `json:"media_sequence"`
			Entries       int    `json:"entries"`
		} `json:"renditions"`
	} `json:"streams"`
	Boxes struct {
		Up int `json:"up"`
	} `json:"boxes"`
}

func (f *fleet) streams() (streams, error) {
	return fetchJSON[streams](f.t.Context(), f.client, f.publisher.url()+"/api/v1/streams")
}

// end is the number behind the last segment that viewers see of the first rendition.
func (f *fleet) end() (uint64, error) {
	s, err := f.streams()
	if err != nil {
		return 0, err
	}
	if len(s.Streams) == 0 || len(s.Streams[0].Renditions) == 0 {
		return 0, fmt.Errorf("the publisher does not show a rendition yet")
	}
	r := s.Streams[0].Renditions[0]
	return r.MediaSequence + uint64(r.Entries), nil
}

// awaitMore waits until viewers see n more segments than now.
func (f *fleet) awaitMore(n int) {
	f.t.Helper()
	begin, _ := f.end() // 0 where nothing is there yet
	err := awaiting(f.t, patience, func() error {
		end, err := f.end()
		if err == nil && end < begin+uint64(n) {
			err = fmt.Errorf("%d segments more than at the start, want %d", end-begin, n)
		}
		return err
	})
	if err != nil {
		shown, _ := f.streams()
		f.publisher.stacks()
		ends(f.t, "after %v: %v; viewers see %+v; the encoder wrote\n%s", patience, err, shown, written(f.source))
	}
}

// written says what is in a directory, and when it was written.
func written(dir string) string {
	var text strings.Builder
	_ = filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			if info, err := e.Info(); err == nil {
				fmt.Fprintf(&text, "%s %d %s\n", info.ModTime().Format("15:04:05.000"), info.Size(), name)
			}
		}
		return nil
	})
	return text.String()
}

// located is what GET /api/v1/locate tells.
type located struct {
	URLs   []string `json:"urls"`
	Digest string   `json:"digest"`
	Size   int64    `json:"size"`
}

func (f *fleet) locate(path string) (located, error) {
	return fetchJSON[located](f.t.Context(), f.client, f.publisher.url()+"/api/v1/locate?path="+url.QueryEscape(path))
}

// holders returns the boxes' own URLs of a file. The origin, which must be the last and no
// other, is left out; an address that is none of the fleet's boxes is an error.
func (f *fleet) holders(path string) ([]string, located, error) {
	l, err := f.locate(path)
	if err != nil {
		return nil, l, err
	}
	var holders []string
	seen := map[string]bool{}
	for i, text := range l.URLs {
		u, err := url.Parse(text)
		if err != nil {
			return nil, l, fatal{err}
		}
		switch {
		case u.Host == f.publisher.addr && i == len(l.URLs)-1 && strings.HasPrefix(u.Path, "/origin/"):
		case f.box(u.Host) == nil:
			return nil, l, fatal{fmt.Errorf("%s of %s is neither a box's URL nor, at the end, the origin's", text, l.URLs)}
		case seen[u.Host]:
			return nil, l, fatal{fmt.Errorf("a box is named twice: %s", l.URLs)}
		default:
			holders = append(holders, text)
			seen[u.Host] = true
		}
	}
	return holders, l, nil
}

func host(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
