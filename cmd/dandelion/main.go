// Command dandelion is the tool of casters and operators: it shows Dandelion, hands in files,
// and checks configurations.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"dandelion/pkg/config"
	"dandelion/pkg/lifecycle"
)

func main() {
	ctx, stop := lifecycle.SignalContext(context.Background(), slog.New(slog.DiscardHandler))
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "dandelion:", err)
		os.Exit(1)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "dandelion",
		Short:         "Live streaming that boxes at home carry: demonstrations, uploads, checks",
		Version:       config.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w\n%s --help lists the flags", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newDemo(), newUpload(), newBoxes(), newStreams(), newTraffic(), newWatch(), newGeoIP(), newReady(), newConfig())
	return root
}

// arguments checks how many a command is given.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// newLog writes to stderr: warnings, or with verbose everything.
func newLog(verbose bool) *slog.Logger {
	level := slog.LevelWarn
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}
