//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of waiting. They are for a loaded machine with two cores; nothing waits that long when
// all is well.
const (
	soon     = 20 * time.Second // for what takes well under a second
	patience = time.Minute      // for what takes seconds
	look     = 50 * time.Millisecond
	leave    = 20 * time.Second // for a daemon that was asked to stop; its own limit is 10 s
)

// process is a program that a test started. It is ended with the test.
type process struct {
	name     string
	cmd      *exec.Cmd
	out, log transcript // stdout, stderr
	done     chan struct{}
	replaced atomic.Bool // its program was started again; a failing test does not show its log
	quit     atomic.Bool // it was asked for its stacks; a failing test shows all of its log
}

// begin starts a program in a process group of its own, so that a Ctrl-C at the terminal reaches
// the test alone and what the program starts can be ended with it. ending, when the test ends, asks
// it to leave; nil kills it.
func begin(t *testing.T, name string, cmd *exec.Cmd, ending func(*process)) *process {
	t.Helper()
	tellReasons(t) // before the first process's cleanup is registered, so behind its log
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // a grandchild may hold the pipes
	if err := startWithSlack(cmd); err != nil {
		ends(t, "%s does not start: %v", name, err)
	}
	go func() {
		_ = cmd.Wait() // ProcessState has what there is to know
		close(p.done)
	}()
	t.Cleanup(func() {
		defer func() {
			p.kill()
			p.keep()
			if t.Failed() && !p.replaced.Load() {
				lines := 60
				if p.quit.Load() {
					lines = 2000
				}
				t.Logf("=== %s (pid %d, %v)\n%s%s", name, cmd.Process.Pid, cmd.ProcessState, p.out.tail(20), p.log.tail(lines))
			}
		}()
		if p.running() && ending != nil && !t.Failed() {
			ending(p)
		}
	})
	return p
}

// timerSlack is how much later than asked for the timers of processes may fire: TimerSlackNSec of
// deploy/systemd/run_box.service. With the kernel's 50 µs a hundred boxes on two processors spend most of their
// time in the monitor of Go's runtime, which sleeps for 20 µs at a time while anything runs.
const timerSlack = 2 * time.Millisecond

// startWithSlack starts a process with timerSlack, which it inherits from the thread that starts it.
func startWithSlack(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0, 0, 0) // refused to nobody
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)                 // as it was
	return cmd.Start()
}

// keepLogs is a directory where what processes logged stays after the tests; "": nowhere.
var keepLogs = os.Getenv("E2E_LOGS")

// keep writes what the process logged.
func (p *process) keep() {
	if keepLogs == "" {
		return
	}
	name := strings.NewReplacer(" ", "-", "/", "-").Replace(fmt.Sprintf("%s-%d.log", p.name, p.cmd.Process.Pid))
	if err := os.MkdirAll(keepLogs, 0o700); err == nil {
		_ = os.WriteFile(filepath.Join(keepLogs, name), []byte(p.out.String()+p.log.String()), 0o600)
	}
}

// keepFile keeps a file of a test beside the logs.
func keepFile(file, of string) {
	if b, err := os.ReadFile(file); err == nil && keepLogs != "" {
		_ = os.WriteFile(filepath.Join(keepLogs, of+"-"+filepath.Base(file)), b, 0o600)
	}
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the process and what it started, as a crash would, and waits for it.
func (p *process) kill() {
	if p.running() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
	<-p.done
}

func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// exit waits until the process is over and returns its exit status; -1 for one that a signal ended.
func (p *process) exit(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(within):
		p.stacks()
		ends(t, "%s still runs after %v", p.name, within)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stacks ends the process with the stacks of its goroutines in its log: they say where it hangs.
func (p *process) stacks() {
	p.quit.Store(true)
	p.signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
	}
}

// run runs a program to its end and returns its exit status and what it wrote.
func run(t *testing.T, within time.Duration, env []string, name string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), env...)
	p := begin(t, name, cmd, nil)
	status = p.exit(t, within)
	return status, p.out.String(), p.log.String()
}

// transcript keeps what a process writes; any goroutine.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *transcript) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *transcript) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

func (w *transcript) tail(n int) string {
	lines := strings.SplitAfter(w.String(), "\n")
	return strings.Join(lines[max(len(lines)-n, 0):], "")
}

// line returns the first line that has all the words.
func (w *transcript) line(words ...string) (string, bool) {
	for line := range strings.Lines(w.String()) {
		if hasAll(line, words) {
			return line, true
		}
	}
	return "", false
}

func hasAll(text string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(text, word) {
			return false
		}
	}
	return true
}

// says waits until the process has logged a line with all the words, and returns it.
func (p *process) says(t *testing.T, within time.Duration, words ...string) string {
	t.Helper()
	var found string
	eventually(t, within, func() error {
		line, ok := p.log.line(words...)
		if found = line; ok {
			return nil
		}
		if !p.running() {
			// What it wrote last may have come between the two looks.
			if found, ok = p.log.line(words...); ok {
				return nil
			}
			return fatal{fmt.Errorf("%s ended (%v) and did not say %q", p.name, p.cmd.ProcessState, words)}
		}
		return fmt.Errorf("%s does not say %q", p.name, words)
	})
	return found
}

// attribute returns the value of key in a line of the log.
func attribute(line, key string) string {
	_, rest, ok := strings.Cut(line, " "+key+"=")
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return strings.Trim(value, `"`)
}

// fatal is an error that does not pass.
type fatal struct{ error }

// eventually looks until f finds nothing wrong, and fails the test with what was still wrong when
// the time is over.
func eventually(t *testing.T, within time.Duration, f func() error) {
	t.Helper()
	if err := awaiting(t, within, f); err != nil {
		ends(t, "after %v: %v", within, err)
	}
}

// awaiting is eventually for goroutines that may not end the test.
func awaiting(t *testing.T, within time.Duration, f func() error) error {
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	until := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return nil
		}
		if errors.As(err, &fatal{}) || time.Now().After(until) {
			return err
		}
		select {
		case <-ticker.C:
		case <-t.Context().Done():
			return t.Context().Err()
		}
	}
}
