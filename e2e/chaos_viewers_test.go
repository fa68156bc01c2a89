//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// crowd is viewers of one household and policy: a process of `dandelion watch`.
type crowd struct {
	*process
	policy  string
	size    int
	events  string // file
	series  string // file; "": none
	summary watch.Summary
	began   time.Time
	left    time.Time
}

// seenEvent is an event of one of all viewers.
type seenEvent struct {
	watch.Event
	policy string
	viewer int       // among all
	left   time.Time // when the viewer was asked to leave
}

func (e seenEvent) end() time.Time {
	return e.Time.Add(time.Duration(e.Seconds * float64(time.Second)))
}

// startCrowd starts viewers; they leave with the test.
func startCrowd(t *testing.T, at *place, number int, dir, url, policy string, size int) *crowd {
	t.Helper()
	return startViewers(t, at, viewing{
		name: fmt.Sprintf("%d viewers (%s) of household %d", size, policy, number), file: fmt.Sprintf("%d-%s", number, policy),
		dir: dir, url: url, policy: policy, viewers: size, ramp: 2 * time.Second,
	})
}

// viewing says who watches what.
type viewing struct {
	name, file string // file: names the files in dir that they write
	dir, url   string
	policy     string
	viewers    int
	ramp       time.Duration
	series     bool
}

func startViewers(t *testing.T, at *place, v viewing) *crowd {
	t.Helper()
	c := &crowd{policy: v.policy, size: v.viewers, events: filepath.Join(v.dir, "events-"+v.file+".jsonl"), began: time.Now()}
	args := []string{"watch", v.url, "--viewers", fmt.Sprint(v.viewers), "--policy", v.policy, "--json", "--events", c.events, "--ramp", v.ramp.String()}
	if v.series {
		c.series = filepath.Join(v.dir, "series-"+v.file+".jsonl")
		args = append(args, "--series", c.series)
	}
	cmd := exec.Command(program("dandelion"), args...)
	cmd.Dir = v.dir
	at.enter(func() { c.process = begin(t, v.name, cmd, nil) })
	return c
}

// leave ends the viewers and reads what they saw.
func (c *crowd) leave(t *testing.T) {
	t.Helper()
	c.left = time.Now()
	c.signal(syscall.SIGINT)
	if status := c.exit(t, leave); status != 0 {
		fails(t, "%s ended with status %d: %s", c.name, status, c.log.tail(5))
	}
	if err := json.Unmarshal([]byte(c.out.String()), &c.summary); err != nil {
		fails(t, "%s: %v in what they tell: %s", c.name, err, c.out.tail(5))
	}
}

// allEvents reads what the viewers of all crowds noticed.
func allEvents(t *testing.T, crowds []*crowd) []seenEvent {
	t.Helper()
	var list []seenEvent
	first := 0
	for _, c := range crowds {
		file, err := os.Open(c.events)
		if err != nil {
			ends(t, "%v", err)
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			e := seenEvent{policy: c.policy, left: c.left}
			if err := json.Unmarshal(lines.Bytes(), &e.Event); err != nil {
				ends(t, "%s: %v in %s", c.events, err, lines.Text())
			}
			e.viewer = first + e.Viewer
			list = append(list, e)
		}
		if err := lines.Err(); err != nil {
			ends(t, "%s: %v", c.events, err)
		}
		first += c.size
	}
	return list
}
