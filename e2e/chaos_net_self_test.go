//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// TestChaosNamespacesSpareProcesses: those that were started from any thread before live on.
func TestChaosNamespacesSpareProcesses(t *testing.T) {
	t.Parallel()
	network, err := newInternet(t)
	if err != nil {
		t.Fatal(err)
	}
	var processes []*process
	for third := range byte(8) {
		processes = append(processes, begin(t, "sleep", exec.Command("sleep", "1000"), nil))
		if _, err := network.join(third, 0, 0, 0, 1); err != nil {
			fmt.Println("NOT RUN: TestChaosNamespacesSpareProcesses:", err)
			return
		}
	}
	for _, p := range processes {
		select {
		case <-p.done:
			t.Errorf("a process was ended: %v", p.cmd.ProcessState)
		case <-time.After(50 * time.Millisecond): // the kernel kills at once
		}
	}
}

// TestChaosInternet: lines delay, cut and slow down what passes, and only that.
func TestChaosInternet(t *testing.T) {
	t.Parallel()
	network, err := newInternet(t)
	if err != nil {
		t.Fatal(err)
	}
	server, err := network.join(1, 30*time.Millisecond, 0, 0, 1)
	if err != nil {
		fmt.Println("NOT RUN: TestChaosInternet:", err)
		return
	}
	viewer, err := network.join(2, 20*time.Millisecond, 0, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	var listener net.Listener
	server.enter(func() { listener, err = net.Listen("tcp", server.ip+":0") })
	if err != nil {
		t.Fatal(err)
	}
	site := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.RemoteAddr+" ")
		_, _ = w.Write(make([]byte, 50_000))
	})}}
	site.Start()
	t.Cleanup(site.Close)
	ask := func(limit time.Duration) (string, time.Duration, error) {
		began := time.Now()
		body, _, err := fetch(t.Context(), viewer.client(limit), "http://"+listener.Addr().String())
		return string(body[:min(len(body), 30)]), time.Since(began), err
	}

	from, took, err := ask(soon)
	if host, _, _ := net.SplitHostPort(from); err != nil || host != viewer.ip {
		t.Fatalf("from %s: %v", from, err)
	}
	if took < 200*time.Millisecond { // two round trips of 100 ms
		t.Errorf("took %v, want 200 ms", took)
	}
	server.line.setCut(true)
	if _, _, err := ask(time.Second); !errors.Is(err, os.ErrDeadlineExceeded) && !os.IsTimeout(err) {
		t.Errorf("of a cut line: %v, want silence", err)
	}
	server.line.setCut(false)
	server.line.setRate(400e3)
	if _, took, err := ask(soon); err != nil || took < time.Second {
		t.Errorf("50 kB at 400 kbit/s took %v (%v), want 1 s", took, err)
	}
	server.line.setRate(0)

	// What comes over a slow line delays nobody else at the line where it goes.
	viewer.line.setRate(100e6)
	_, alone, err := ask(soon)
	if err != nil {
		t.Fatal(err)
	}
	slow, err := network.join(3, 0, 0, 100e3, 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer cancel()
	sent := make(chan struct{}, 1)
	slow.enter(func() {
		conn, err := net.Dial("udp", viewer.ip+":9")
		if err != nil {
			t.Fatal(err)
		}
		flood.Go(func() {
			defer conn.Close()
			ticker := time.NewTicker(time.Millisecond)
			defer ticker.Stop()
			for ctx.Err() == nil {
				_, _ = conn.Write(make([]byte, 1000)) // refused, in the end
				select {
				case sent <- struct{}{}:
				default:
				}
				<-ticker.C
			}
		})
	})
	for range 100 {
		<-sent // the slow line's queue is full
	}
	eventually(t, soon, func() error {
		_, took, err := ask(soon)
		if err == nil && took >= alone+lineQueue/2 {
			err = fmt.Errorf("beside packets that wait for a slow line it takes %v, and alone %v", took, alone)
		}
		return err
	})
	if _, err := net.DialTimeout("tcp", listener.Addr().String(), 100*time.Millisecond); err == nil {
		t.Error("the test's own network reaches the place")
	}
}
