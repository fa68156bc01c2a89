package lifecycle

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// SignalContext returns a context that ends at the first SIGINT or SIGTERM, or when the terminal
// closes (SIGHUP, unless the process was started to ignore it, as by nohup), so that the parts
// can drain. A second signal ends the process at once, with status 128 and the signal's number,
// as shells count it. The returned function gives the signals back and ends the context; main
// calls it when the daemon is done.
func SignalContext(parent context.Context, log *slog.Logger) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		watchSignals(signals, stop, cancel, os.Exit, log)
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(stop)
		<-stopped
		cancel()
	})
}

func watchSignals(signals <-chan os.Signal, stop <-chan struct{}, drain func(), exit func(int), log *slog.Logger) {
	for first := true; ; first = false {
		select {
		case <-stop:
			return
		case s := <-signals:
			if !first {
				exit(128 + int(s.(syscall.Signal)))
				return
			}
			log.Info("stopping; a second signal exits at once", "signal", s.String())
			drain()
		}
	}
}
