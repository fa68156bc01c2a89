// Command run_entrance is Dandelion's control plane: the register of boxes.
package main

import (
	"context"
	"log/slog"

	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/daemon"
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
	daemon.Main(program, func(ctx context.Context, log *slog.Logger) error {
		peer, err := entrance.New(ctx, cfg, redis, log)
		if err != nil {
			return err
		}
		return peer.Run(ctx)
	})
}
