package lifecycle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"testing/synctest"
)

const childVariable = "LIFECYCLE_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		ctx, stop := SignalContext(context.Background(), slog.New(slog.DiscardHandler))
		defer stop()
		fmt.Println("ready")
		<-ctx.Done()
		fmt.Println("draining")
		select {} // only a second signal ends it
	}
	os.Exit(m.Run())
}

func TestSignalContextInAProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for _, want := range []string{"ready", "draining"} {
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the child printed %q, want %q", lines.Text(), want)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 128+15 {
		t.Errorf("the child ended with %v, want exit status 143", err)
	}
}

func TestWatchSignals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		signals, stop := make(chan os.Signal), make(chan struct{})
		drained, exited := 0, 0
		go watchSignals(signals, stop, func() { drained++ }, func(code int) { exited = code }, slog.New(slog.DiscardHandler))
		signals <- syscall.SIGINT
		synctest.Wait()
		if drained != 1 || exited != 0 {
			t.Errorf("after one signal: drained %d, exited %d", drained, exited)
		}
		signals <- syscall.SIGINT
		synctest.Wait()
		if drained != 1 || exited != 130 {
			t.Errorf("after two signals: drained %d, exited %d", drained, exited)
		}
	})
}

func TestSignalContextEndsWithStop(t *testing.T) {
	t.Parallel()
	ctx, stop := SignalContext(t.Context(), slog.New(slog.DiscardHandler))
	if ctx.Err() != nil {
		t.Error("the context ended too early")
	}
	stop()
	stop()
	if ctx.Err() == nil {
		t.Error("the context goes on after stop")
	}
}
