// Command run_box is Dandelion's edge: it keeps segments near viewers and serves them.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/state"
)

func main() {
	redis, cfg := state.Default(), box.DefaultConfig()
	program := config.Program{
		Name: "run_box", Doc: "keeps segments near viewers and serves them",
		Sections: []config.Section{
			{Name: "redis", Value: &redis, Doc: "Where state is kept.", Shared: true},
			{Name: "box", Value: &cfg, Doc: "The edge: keeps segments and serves them."},
		},
	}
	if done, status := program.Parse(os.Args[1:], os.Environ(), os.Stdout, os.Stderr); done {
		os.Exit(status)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := lifecycle.SignalContext(context.Background(), log)
	defer stop()
	if err := run(ctx, cfg, redis, log); err != nil {
		fmt.Fprintln(os.Stderr, "run_box:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg box.Config, redis state.Config, log *slog.Logger) error {
	b, err := box.New(cfg, redis, log)
	if err != nil {
		return err
	}
	return b.Run(ctx)
}
