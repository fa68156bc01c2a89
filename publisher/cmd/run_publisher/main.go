// Command run_publisher is the caster's side of Dandelion.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"dandelion/pkg/config"
	"dandelion/pkg/lifecycle"
	"dandelion/pkg/state"
	"dandelion/publisher"
)

func main() {
	redis, cfg := state.Default(), publisher.DefaultConfig()
	program := config.Program{
		Name: "run_publisher", Doc: "takes live segments from encoders, places copies on boxes and sends viewers there",
		Sections: []config.Section{
			{Name: "redis", Value: &redis, Doc: "Where state is kept.", Shared: true},
			{Name: "publisher", Value: &cfg, Doc: "The caster's side."},
		},
	}
	if done, status := program.Parse(os.Args[1:], os.Environ(), os.Stdout, os.Stderr); done {
		os.Exit(status)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ctx, stop := lifecycle.SignalContext(context.Background(), log)
	defer stop()
	if err := run(ctx, cfg, redis, log); err != nil {
		fmt.Fprintln(os.Stderr, "run_publisher:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cfg publisher.Config, redis state.Config, log *slog.Logger) error {
	p, err := publisher.New(ctx, cfg, redis, log)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}
