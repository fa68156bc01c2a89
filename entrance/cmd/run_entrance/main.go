// Command run_entrance is Dandelion's control plane: the register of boxes.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/state"
)

func main() {
	redis, cfg := state.Default(), entrance.DefaultConfig()
	program := config.Program{
		Name: "run_entrance", Doc: "registers boxes and tells publishers of the best ones",
		Sections: []config.Section{
			{Name: "redis", Value: &redis, Doc: "Where state is kept.", Shared: true},
			{Name: "entrance", Value: &cfg, Doc: "The register of boxes."},
		},
	}
	if done, status := program.Parse(os.Args[1:], os.Environ(), os.Stdout, os.Stderr); done {
		os.Exit(status)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := lifecycle.SignalContext(context.Background(), log)
	defer stop()
	if err := run(ctx, cfg, redis, log); err != nil {
		fmt.Fprintln(os.Stderr, "run_entrance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg entrance.Config, redis state.Config, log *slog.Logger) error {
	e, err := entrance.New(ctx, cfg, redis, log)
	if err != nil {
		return err
	}
	return e.Run(ctx)
}
