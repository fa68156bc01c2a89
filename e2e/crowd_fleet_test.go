//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"dandelion/pkg/testnginx"
)

// crowdFleet is an entrance and boxes that one or two publishers share.
type crowdFleet struct {
	dir      string
	entrance *daemon
	boxes    []*daemon
	addrs    []string // of the boxes, the same after each start
	casters  []*caster
	encoders []*process
}

// caster is a publisher with its encoder, and the boxes that all share.
type caster struct {
	*fleet
	rate float64 // bit/s that the encoder really writes
}

// steadyFormat is a small picture with a constant bitrate.
func steadyFormat(rate int64) format {
	video := fmt.Sprintf("%dk", rate*95/100/1000-64) // the rest is sound and MPEG-TS
	return format{"ts", []string{"."}, []string{
		"-map", "0:v", "-map", "1:a", "-r", "12.5", "-s", "160x90", "-g", "25", "-keyint_min", "25",
		"-b:v", video, "-minrate", video, "-maxrate", video, "-bufsize", video,
		"-x264-params", "nal-hrd=cbr:force-cfr=1", "-hls_segment_filename", "seg-%d.ts", "index.m3u8",
	}}
}

// newCrowdFleet starts everything; it is ready when the publishers have sessions with as many boxes as they
// want without viewers.
func (r *crowdRun) newCrowdFleet() {
	t, p := r.t, r.plan
	t.Helper()
	r.dir = t.TempDir()
	dir := filepath.Join(r.dir, "entrance")
	r.entrance = newDaemon(t, "run_entrance", "entrance", dir, fmt.Sprintf("entrance:\n  data_dir: %q\n", filepath.Join(dir, "data")))
	names := []string{"big", "small"}[:1+min(p.small, 1)]
	for i, name := range names {
		source := filepath.Join(r.dir, "source-"+name)
		if err := os.Mkdir(source, 0o700); err != nil {
			ends(t, "%v", err)
		}
		// Segments stay, so that what was written can be counted; none is seen before it is whole.
		r.encoders = append(r.encoders, encodeScene(t, source, steadyFormat(p.rate), "+temp_file", i+1))
	}
	for i := range p.boxes {
		at := &place{ip: fmt.Sprintf("127.77.%d.2", i+1)}
		name := fmt.Sprintf("box%d", i+1)
		dir := filepath.Join(r.dir, name)
		b := newDaemonAt(t, at, "run_box", name, dir, fmt.Sprintf(
			"box:\n  public_address: %q\n  data_dir: %q\n  live_dir: %q\n  upload_limit: %dbit/s\n  entrances: [%q]\n",
			at.ip, filepath.Join(dir, "data"), filepath.Join(dir, "live"), p.limit, r.entrance.url()))
		b.public = b.addr
		r.boxes = append(r.boxes, b)
		r.addrs = append(r.addrs, b.addr)
	}
	for _, name := range names {
		r.addCaster(name)
	}
	for _, c := range r.casters {
		c.awaitMore(4)
	}
	r.tell("%d boxes, %d publishers", len(r.boxes), len(r.casters))
}

func (r *crowdRun) addCaster(name string) {
	t, p := r.t, r.plan
	t.Helper()
	c := &caster{fleet: &fleet{t: t, dir: r.dir, source: filepath.Join(r.dir, "source-"+name), entrance: r.entrance, boxes: r.boxes, client: client}}
	eventually(t, patience, func() error {
		n, bytes := encoded(c.source)
		if n < 3 {
			return fmt.Errorf("the encoder has written %d segments", n)
		}
		c.rate = float64(8*bytes) / float64(n*segmentSeconds)
		return nil
	})
	uplink := ""
	if p.uplink > 0 {
		uplink = fmt.Sprintf("  upload_limit: %dbit/s\n", int64(p.uplink*c.rate))
	}
	dir := filepath.Join(r.dir, "publisher-"+name)
	d := &daemon{t: t, program: "run_publisher", name: "publisher " + name, dir: dir, listen: testnginx.FreeAddr(t)}
	if err := os.Mkdir(dir, 0o700); err != nil {
		ends(t, "%v", err)
	}
	write(t, filepath.Join(dir, "config.yaml"), fmt.Sprintf(
		"publisher:\n  data_dir: %q\n  public_url: %q\n  entrances: [%q]\n%s  streams:\n    - name: %s\n      source: %q\n",
		filepath.Join(dir, "data"), "http://"+d.listen, r.entrance.url(), uplink, stream, "dir:"+c.source))
	d.start()
	c.publisher = d
	r.casters = append(r.casters, c)
	eventually(t, patience, func() error {
		s, err := c.streams()
		if want := min(p.boxes, 20); err == nil && s.Boxes.Up < want {
			err = fmt.Errorf("the publisher has sessions with %d boxes, want %d", s.Boxes.Up, want)
		}
		return err
	})
}

// encoded counts the segments that an encoder has finished, and their bytes.
func encoded(dir string) (n, bytes int64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), ".ts") {
			n++
			bytes += info.Size()
		}
	}
	return n, bytes
}

// end asks all boxes at once to leave, which takes each a moment, and looks that they do.
func (r *crowdRun) end() {
	r.t.Helper()
	for _, b := range r.boxes {
		b.signal(syscall.SIGTERM)
	}
	for _, b := range r.boxes {
		if status := b.exit(r.t, leave); status != 0 {
			fails(r.t, "%s ended with status %d after SIGTERM, want 0", b.name, status)
		}
	}
	r.over = true
}

// quiet keeps logs of a failing test short: what fails are figures, and no process is at fault.
func (r *crowdRun) quiet() {
	for _, p := range r.processes() {
		p.replaced.Store(true)
	}
}

func (r *crowdRun) processes() []*process {
	list := slices.Clone(r.encoders)
	list = append(list, r.entrance.process)
	for _, b := range r.boxes {
		list = append(list, b.process)
	}
	for _, c := range r.casters {
		list = append(list, c.publisher.process)
	}
	for _, c := range []*crowd{r.big, r.small, r.alone} {
		if c != nil {
			list = append(list, c.process)
		}
	}
	return list
}

// cpuUse is processors' time by kind of program, in seconds, of the processes that were there.
type cpuUse map[string]float64

var cpuKinds = []string{"boxes", "publishers", "entrance", "encoders", "viewers", "this test"}

func (r *crowdRun) cpuNow() cpuUse {
	use := cpuUse{"this test": cpuOf(os.Getpid())}
	for _, p := range r.processes() {
		kind := "boxes"
		switch {
		case p.name == "entrance":
			kind = "entrance"
		case p.name == "encoder":
			kind = "encoders"
		case strings.HasPrefix(p.name, "publisher"):
			kind = "publishers"
		case strings.Contains(p.name, "viewers"):
			kind = "viewers"
		}
		use[kind] += cpuOf(p.cmd.Process.Pid)
	}
	use["at"] = float64(time.Now().UnixNano()) / 1e9
	return use
}

func (u cpuUse) less(before cpuUse) cpuUse {
	d := cpuUse{}
	for kind, seconds := range u {
		d[kind] = max(seconds-before[kind], 0)
	}
	return d
}

func (u cpuUse) String() string {
	var parts []string
	for _, kind := range cpuKinds {
		parts = append(parts, fmt.Sprintf("%s %.0f %%", kind, 100*u[kind]/max(u["at"], 1)))
	}
	return strings.Join(parts, ", ")
}

// cpuOf is the time that a process has computed; 0 of one that is gone.
func cpuOf(pid int) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}
