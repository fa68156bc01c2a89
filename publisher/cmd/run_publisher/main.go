// Command run_publisher is the caster's side of Dandelion.
package main

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"dandelion/pkg/config"
	"dandelion/pkg/daemon"
	"dandelion/pkg/state"
	"dandelion/publisher"
)

func main() {
	if os.Getenv("GOGC") == "" {
		// The live heap is a few megabytes: collecting it at every doubling costs a fifth of what
		// a redirect costs.
		debug.SetGCPercent(400)
	}
	redis, cfg := state.Default(), publisher.DefaultConfig()
	program := config.Program{
		Name: "run_publisher", Doc: "takes live segments from encoders, places copies on boxes and sends viewers there",
		Sections: []config.Section{
			{Name: "redis", Value: &redis, Doc: "Where state is kept.", Shared: true},
			{Name: "publisher", Value: &cfg, Doc: "The caster's side."},
		},
	}
	daemon.Main(program, func(ctx context.Context, log *slog.Logger) error {
		peer, err := publisher.New(ctx, cfg, redis, log)
		if err != nil {
			return err
		}
		return peer.Run(ctx)
	})
}
