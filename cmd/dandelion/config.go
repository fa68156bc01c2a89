package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"dandelion/box"
	"dandelion/entrance"
	"dandelion/pkg/config"
	"dandelion/pkg/state"
	"dandelion/publisher"
)

// sections are all that a config.yaml may hold, at their defaults.
func sections() []config.Section {
	redis, e, b, p := state.Default(), entrance.DefaultConfig(), box.DefaultConfig(), publisher.DefaultConfig()
	return []config.Section{
		{Name: "redis", Value: &redis, Shared: true, Doc: "Where each daemon keeps its state. With nothing set it is embedded in the process, below data_dir."},
		{Name: "entrance", Value: &e, Doc: "run_entrance: the register of boxes, and where publishers find them."},
		{Name: "box", Value: &b, Doc: "run_box: keeps segments and serves them to viewers nearby."},
		{Name: "publisher", Value: &p, Doc: "run_publisher: the caster's side."},
	}
}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check a configuration, or print one with every setting"}
	cmd.AddCommand(
		&cobra.Command{
			Use:   "check FILE",
			Short: "Check a config.yaml: names each bad field, its line and what would be right",
			Args:  arguments(1, 1),
			RunE: func(cmd *cobra.Command, args []string) error {
				if err := config.Check(args[0], sections()...); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is right\n", args[0])
				return nil
			},
		},
		&cobra.Command{
			Use:   "example",
			Short: "Print a config.yaml with every setting at its default",
			Args:  cobra.NoArgs,
			RunE: func(cmd *cobra.Command, _ []string) error {
				_, err := cmd.OutOrStdout().Write(config.Example(sections()...))
				return err
			},
		},
	)
	return cmd
}
