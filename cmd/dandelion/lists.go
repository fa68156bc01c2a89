package main

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"dandelion/pkg/config"
	"dandelion/pkg/id"
	"dandelion/publisher"
)

func newStreams() *cobra.Command {
	var base string
	asJSON := false
	cmd := &cobra.Command{
		Use:   "streams",
		Short: "List a publisher's streams, their viewers and what boxes save",
		Long: "Lists a publisher's streams: viewers now, the bitrate of all its renditions, the boxes that are to\n" +
			"hold it, and over the last minute and the last hour\n\n" +
			"  OFFLOAD   the share of the viewers' bytes that boxes sent\n" +
			"  CASTER    that share, less what the publisher sent to boxes for it; below 0 with few viewers\n" +
			"  PLACING   what was sent to boxes, by the publisher or by boxes, beside the viewers' bytes\n\n" +
			"\"-\": there were no viewers. --json prints the publisher's whole answer.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, out := endpoint(base, "/api/v1/streams"), cmd.OutOrStdout()
			if asJSON {
				answer, err := call[jsontext.Value](cmd.Context(), http.MethodGet, at, nil, 0)
				if err != nil {
					return err
				}
				if err := answer.Indent(jsontext.WithIndent("  ")); err != nil {
					return err
				}
				_, err = fmt.Fprintf(out, "%s\n", answer)
				return err
			}
			s, err := call[publisher.Streams](cmd.Context(), http.MethodGet, at, nil, 0)
			if err != nil {
				return err
			}
			listStreams(out, s.Streams)
			return nil
		},
	}
	cmd.Flags().StringVar(&base, "publisher", "http://127.0.0.1:7071", "URL of the publisher")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// longestName is how much of a stream's name the table shows, so that it fits into 80 columns.
const longestName = 14

// listStreams writes a table that fits into 80 columns, and below it where each stream plays and what is wrong with it.
func listStreams(out io.Writer, streams []publisher.StreamStatus) {
	fmt.Fprintf(out, "%-14s %7s %7s %5s%14s%14s%14s\n", "STREAM", "VIEWERS", "MBIT/S", "BOXES", "OFFLOAD", "CASTER", "PLACING")
	fmt.Fprintf(out, "%37s%[2]s%[2]s%[2]s\n", "", "  minute  hour")
	for _, t := range streams {
		viewers, bitrate, boxes := 0, int64(0), map[id.BoxID]bool{}
		for _, r := range t.Renditions {
			bitrate += r.BitRate
		}
		for _, u := range t.Upload {
			viewers += u.Watching
			for _, box := range u.Holders {
				boxes[box] = true
			}
		}
		minute, hour := t.Saving.Minute, t.Saving.Hour
		fmt.Fprintf(out, "%-14s %7d %7.1f %5d%8s%6s%8s%6s%8s%6s\n", cut(string(t.Name), longestName), viewers, float64(bitrate)/1e6, len(boxes),
			percent(minute.Offload), percent(hour.Offload), percent(minute.CasterOffload), percent(hour.CasterOffload),
			percent(minute.PlacingOverhead), percent(hour.PlacingOverhead))
	}
	for _, t := range streams {
		state := "live"
		switch {
		case t.Problem != "":
			state = t.Problem
		case t.Ended:
			state = "ended"
		case len(t.Renditions) == 0:
			state = "no segment yet"
		case len(t.Renditions) > 1:
			state = fmt.Sprintf("live, %d renditions", len(t.Renditions))
		}
		fmt.Fprintf(out, "\n%s: %s%s\n  %s\n", t.Name, state, shortOf(t), t.URL)
	}
}

// percent writes a ratio; "-" where there is none. So few viewers that it is far from all of use say only so.
func percent(ratio *float64) string {
	const far = 9.99
	switch {
	case ratio == nil:
		return "-"
	case *ratio > far:
		return ">999%"
	case *ratio < -far:
		return "<-999%"
	case *ratio > 0.99 && *ratio < 1: // one viewer of a hundred, or of a thousand
		return fmt.Sprintf("%.1f%%", 100**ratio)
	}
	return fmt.Sprintf("%.0f%%", 100**ratio)
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

// fleetBoxes is what the tool reads of a page of an entrance's GET /api/v1/boxes.
type fleetBoxes struct {
	Boxes []fleetBox `json:"boxes"`
	Next  string     `json:"next"`
}

type fleetBox struct {
	ID           string `json:"id"`
	EdgeURL      string `json:"edge_url"`
	Place        string `json:"place"`
	Searchable   bool   `json:"searchable"`
	WhyNot       string `json:"why_not"`
	ClaimsReason string `json:"claims_reason"`
}

func newBoxes() *cobra.Command {
	var base string
	cmd := &cobra.Command{
		Use:   "boxes",
		Short: "List the boxes that an entrance knows",
		Long: `Lists the boxes that an entrance knows, whether it offers them to publishers, and below the table
why not, and whose accounts claim more than publishers sent them viewers for.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var boxes []fleetBox
			for after, more := "", true; more; {
				query := url.Values{"limit": {"1000"}, "after": {after}}
				page, err := call[fleetBoxes](cmd.Context(), http.MethodGet, endpoint(base, "/api/v1/boxes?"+query.Encode()), nil, 0)
				if err != nil {
					return err
				}
				boxes = append(boxes, page.Boxes...)
				after, more = page.Next, page.Next != ""
			}
			return listBoxes(cmd.OutOrStdout(), boxes)
		},
	}
	cmd.Flags().StringVar(&base, "entrance", "http://127.0.0.1:7070", "URL of the entrance, on its machine")
	return cmd
}

// listBoxes writes a table that fits into 80 columns, but for places with long names.
func listBoxes(out io.Writer, boxes []fleetBox) error {
	if len(boxes) == 0 {
		_, err := fmt.Fprintln(out, "No box is here yet. A box connects when this entrance's URL is in its entrances.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "BOX\tADDRESS\tOFFERED\tPLACE")
	for _, b := range boxes {
		offered := "yes"
		if !b.Searchable {
			offered = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", b.ID, b.EdgeURL, offered, cmp.Or(b.Place, "unknown"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, b := range boxes {
		if !b.Searchable {
			fmt.Fprintf(out, "\n%s: not offered\n  %s\n", b.ID, b.WhyNot)
		}
		if b.ClaimsReason != "" {
			fmt.Fprintf(out, "\n%s: its accounts exceed what publishers say\n  %s\n", b.ID, b.ClaimsReason)
		}
	}
	return nil
}
