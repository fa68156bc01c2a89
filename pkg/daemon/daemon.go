// Package daemon is what the mains of the three daemons share: settings in, signals, one line
// and status 1 when it goes wrong; and how a peer opens its port. It knows no peer.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"

	"dandelion/pkg/config"
	"dandelion/pkg/lifecycle"
)

// Main loads the program's settings, runs it until SIGINT or SIGTERM, and exits: 0 after an
// orderly end, 1 with one line on stderr otherwise (2: a wrong command line).
func Main(program config.Program, run func(ctx context.Context, log *slog.Logger) error) {
	if done, status := program.Parse(os.Args[1:], os.Environ(), os.Stdout, os.Stderr); done {
		os.Exit(status)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := lifecycle.SignalContext(context.Background(), log)
	err := run(ctx, log)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", program.Name, err)
		os.Exit(1)
	}
}

// Listen opens the TCP port of a setting such as "box.listen". Errors name the setting, the
// cause and the cure.
func Listen(setting, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("%s: another program uses %s: stop it, or set %s to another port", setting, addr, setting)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("%s: this user may not listen on %s: set %s to a port above 1023", setting, addr, setting)
	case err != nil:
		return nil, fmt.Errorf("%s: cannot listen on %s (%w): set it to an address of this machine, or to a port alone, such as :7072", setting, addr, err)
	}
	return ln, nil
}
