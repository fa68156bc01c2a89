// Command run_box is Dandelion's edge: it keeps segments near viewers and serves them.
package main

import (
	"context"
	"io"
	"log/slog"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/pkg/daemon"
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
		Prints: []config.Print{{
			Flag: "print-nginx", Doc: "Print a configuration of nginx for a box with these settings (edge nginx) and exit.",
			Write: func(w io.Writer) error { return box.PrintNginx(w, cfg) },
		}},
	}
	daemon.Main(program, func(ctx context.Context, log *slog.Logger) error {
		peer, err := box.New(cfg, redis, log)
		if err != nil {
			return err
		}
		return peer.Run(ctx)
	})
}
