//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"dandelion/pkg/id"
	"dandelion/pkg/testnginx"
)

const (
	chaosBoxes = 5
	diskSize   = 160 << 20 // of each box; with less than 64 MiB free it is not offered
	boxRate    = 100e6     // bits/s each way: the viewers of a segment keep a box busy for a while
	boxLimit   = 24 << 20  // of live segments and of files each, so that the disk is full only by the fault
)

// chaosFleet is a fleet whose members are places, with a Redis of its own.
type chaosFleet struct {
	*fleet
	core   *place // publisher, entrance, Redis
	at     []*place
	disks  []string // tmpfs of each box; "": none can be mounted
	redis  *redisServer
	seed   uint64
	notRun []string // what this machine cannot do
}

// newPlaces makes the places: each box's, and for each crowd one. Without namespaces they are
// addresses of the loopback interface.
func (c *chaosFleet) newPlaces(crowds int) (viewers []*place) {
	c.t.Helper()
	network, err := newInternet(c.t)
	join := func(third byte, delay time.Duration, loss, rate float64) *place {
		if err == nil {
			var p *place
			if p, err = network.join(third, delay, loss, rate, c.seed); err == nil {
				return p
			}
		}
		if third >= 100 {
			return &place{ip: "127.0.0.1"}
		}
		return &place{ip: fmt.Sprintf("127.77.%d.2", third)}
	}
	c.core = join(0, time.Millisecond, 0, 0)
	for i := range chaosBoxes { // 5 to 20 ms, 0.1 to 0.5 % of the packets
		share := float64(i) / (chaosBoxes - 1)
		c.at = append(c.at, join(byte(i+1), 5*time.Millisecond+time.Duration(share*float64(15*time.Millisecond)), 0.001+0.004*share, boxRate))
	}
	for i := range crowds {
		viewers = append(viewers, join(byte(101+i), 5*time.Millisecond, 0.001, 0))
	}
	if err != nil {
		c.notRun = append(c.notRun, fmt.Sprintf("delay and loss; %s; %s; viewers at addresses of their own (no network namespaces: %v)", faultCut, faultSlow, err))
	}
	return viewers
}

// newChaosFleet starts the fleet and returns it when all boxes are up.
func newChaosFleet(t *testing.T, c *chaosFleet) {
	t.Helper()
	f := c.fleet
	c.redis = newRedisServer(t, c.core, filepath.Join(f.dir, "redis"))
	state := fmt.Sprintf("redis:\n  url: %q\n", "redis://"+c.redis.addr+"/0")
	dir := filepath.Join(f.dir, "entrance")
	f.entrance = newDaemonAt(t, c.core, "run_entrance", "entrance", dir,
		state+fmt.Sprintf("entrance:\n  data_dir: %q\n", filepath.Join(dir, "data")))
	for i, at := range c.at {
		name := fmt.Sprintf("box%d", i+1)
		dir := filepath.Join(f.dir, name)
		disk := filepath.Join(dir, "disk")
		if err := mountDisk(t, disk, diskSize); err != nil {
			if i == 0 {
				c.notRun = append(c.notRun, fmt.Sprintf("%s (no disk of its own can be mounted: %v)", faultFill, err))
			}
			c.disks = append(c.disks, "")
		} else {
			c.disks = append(c.disks, disk)
		}
		b := newDaemonAt(t, at, "run_box", name, dir, fmt.Sprintf("box:\n  public_address: %q\n  data_dir: %q\n  live_dir: %q\n"+
			"  live_limit: %d\n  storage_limit: %d\n  upload_capacity: 100Mbit/s\n  upload_limit: 90Mbit/s\n  entrances: [%q]\n",
			at.ip, filepath.Join(disk, "data"), filepath.Join(disk, "live"), boxLimit, boxLimit, f.entrance.url()))
		b.public = b.addr
		f.boxes = append(f.boxes, b)
	}
	dir = filepath.Join(f.dir, "publisher")
	f.publisher = newDaemonAt(t, c.core, "run_publisher", "publisher", dir, state+
		fmt.Sprintf("publisher:\n  data_dir: %q\n  entrances: [%q]\n  streams:\n    - name: %s\n      source: %q\n      segment_ttl: %s\n",
			filepath.Join(dir, "data"), f.entrance.url(), stream, "dir:"+f.source, liveTTL))
	f.awaitBoxes(chaosBoxes)
}

// chaosDisks begins the names of disks in /proc/mounts; the number of the process that mounted it follows.
const chaosDisks = "dandelion-chaos-"

// mountDisk mounts a small file system in memory until the test ends.
func mountDisk(t *testing.T, dir string, size int64) error {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(fmt.Sprint(chaosDisks, os.Getpid()), dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=700", size)); err != nil {
		return err
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return nil
}

// unmountLeftovers removes the disks of runs that were killed. Their namespaces went with them.
func unmountLeftovers(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for line := range lines(string(mounts)) {
		fields := strings.Fields(line)
		pid, ours := strings.CutPrefix(fields[0], chaosDisks)
		if !ours || len(fields) < 2 {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); err != nil {
			t.Logf("unmounting %s, left by process %s", fields[1], pid)
			_ = unix.Unmount(fields[1], unix.MNT_DETACH)
		}
	}
}

// redisServer is Redis with a file that has all that it answered for.
type redisServer struct {
	*process
	t    *testing.T
	at   *place
	dir  string
	addr string // host:port, for programs of its own place
}

func newRedisServer(t *testing.T, at *place, dir string) *redisServer {
	t.Helper()
	needs(t, "redis-server", "sudo apt-get install redis-server")
	if err := os.Mkdir(dir, 0o700); err != nil {
		ends(t, "%v", err)
	}
	r := &redisServer{t: t, at: at, dir: dir}
	at.enter(func() { r.addr = testnginx.FreeAddr(t) })
	r.start()
	return r
}

func (r *redisServer) start() {
	r.t.Helper()
	_, port, _ := net.SplitHostPort(r.addr)
	cmd := exec.Command("redis-server", "--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--save", "", "--appendonly", "yes")
	if r.process != nil {
		r.replaced.Store(true)
	}
	r.at.enter(func() { r.process = begin(r.t, "redis-server", cmd, nil) })
	eventually(r.t, soon, r.answers)
}

// answers returns what is wrong when it does not answer a PING at once.
func (r *redisServer) answers() error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 300*time.Millisecond)
	defer cancel()
	conn, err := r.at.dial(ctx, "tcp", r.addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	answer := make([]byte, 7)
	if _, err = conn.Write([]byte("PING\r\n")); err == nil {
		_, err = conn.Read(answer)
	}
	if err == nil && string(answer) != "+PONG\r\n" {
		err = fmt.Errorf("Redis answers %q", answer)
	}
	return err
}

// upload hands a file of random bytes in with the tool. The path is of an acknowledged file.
func (c *chaosFleet) upload(ctx context.Context, name, ttl string, size int) (path, digest string, err error) {
	content := make([]byte, size)
	_, _ = rand.Read(content)
	file := filepath.Join(c.dir, name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, program("dandelion"), "upload", "--publisher", c.core.ownURL(c.publisher.addr), "--ttl", ttl, file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, log strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &log
	c.core.enter(func() { err = cmd.Start() })
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return "", "", fmt.Errorf("upload of %s: %w: %s", name, err, strings.TrimSpace(log.String()))
	}
	_, path, ok := strings.Cut(strings.TrimSpace(out.String()), c.publisher.id)
	if !ok {
		return "", "", fmt.Errorf("upload of %s printed %s", name, out.String())
	}
	return path, id.DigestOf(content).String(), nil
}
