package main

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"dandelion/pkg/config"
	"dandelion/publisher"
)

func newStreams() *cobra.Command {
	var base string
	cmd := &cobra.Command{
		Use:   "streams",
		Short: "List a publisher's streams",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := call[publisher.Streams](cmd.Context(), http.MethodGet, endpoint(base, "/api/v1/streams"), nil, 0)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "STREAM\tRENDITIONS\tURL\tSTATE")
			for _, t := range s.Streams {
				state := "live"
				if t.Ended {
					state = "ended"
				}
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\n", t.Name, len(t.Renditions), t.URL, cmp.Or(t.Problem, state+shortOf(t)))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&base, "publisher", "http://127.0.0.1:7071", "URL of the publisher")
	return cmd
}

// shortOf says by how much boxes lack upload for a stream's viewers, and where these are as far as that is known.
func shortOf(t publisher.StreamStatus) string {
	var short int64
	var places []string
	for _, u := range t.Upload {
		short += u.Short
		for _, in := range u.ShortIn {
			if !slices.Contains(places, in.Place) && len(places) < 3 {
				places = append(places, in.Place)
			}
		}
	}
	if short == 0 {
		return ""
	}
	text := ", upload short by " + config.BitRate(max(short/100_000, 1)*100_000).String()
	if len(places) > 0 {
		text += " in " + strings.Join(places, "; ")
	}
	return text
}

// fleetBoxes is what the tool reads of an entrance's GET /api/v1/boxes.
type fleetBoxes struct {
	Boxes []struct {
		ID         string `json:"id"`
		EdgeURL    string `json:"edge_url"`
		Place      string `json:"place"`
		Searchable bool   `json:"searchable"`
		WhyNot     string `json:"why_not"`
	} `json:"boxes"`
}

func newBoxes() *cobra.Command {
	var base string
	cmd := &cobra.Command{
		Use:   "boxes",
		Short: "List the boxes that an entrance knows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := call[fleetBoxes](cmd.Context(), http.MethodGet, endpoint(base, "/api/v1/boxes"), nil, 0)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "BOX\tADDRESS\tPLACE\tOFFERED\tWHY NOT")
			for _, b := range f.Boxes {
				offered, why := "yes", ""
				if !b.Searchable {
					offered, why = "no", b.WhyNot
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", b.ID, b.EdgeURL, cmp.Or(b.Place, "unknown"), offered, why)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&base, "entrance", "http://127.0.0.1:7070", "URL of the entrance, on its machine")
	return cmd
}
