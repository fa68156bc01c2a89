package main

import (
	"cmp"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
)

// trafficSums and traffic are what the tool reads of an entrance's GET /api/v1/traffic.
type trafficSums struct {
	Bytes           int64 `json:"bytes"`
	Deliveries      int64 `json:"deliveries"`
	Failed          int64 `json:"failed"`
	FailedBytes     int64 `json:"failed_bytes"`
	Redirects       int64 `json:"redirects"`
	RedirectedBytes int64 `json:"redirected_bytes"`
	Dropped         int64 `json:"dropped"`
	DroppedBytes    int64 `json:"dropped_bytes"`
	LateBytes       int64 `json:"late_bytes"`
}

type trafficRow struct {
	Box       string `json:"box,omitzero"`
	Publisher string `json:"publisher,omitzero"`
	Stream    string `json:"stream,omitzero"`
	trafficSums
}

type traffic struct {
	By          string       `json:"by"`
	Granularity string       `json:"granularity"`
	From        time.Time    `json:"from"`
	To          time.Time    `json:"to"`
	Rows        []trafficRow `json:"rows"`
	Totals      trafficSums  `json:"totals"`
	LeftOut     int          `json:"rows_left_out,omitzero"`
}

func newTraffic() *cobra.Command {
	var base, by, from, to string
	var asCSV, asJSON bool
	cmd := &cobra.Command{
		Use:   "traffic",
		Short: "Say what boxes delivered, by box, publisher or stream",
		Long: `Say what boxes delivered, by box, publisher or stream.

SENT and FILES are what boxes say that they sent to viewers, FAILED the files of it with status
400 or above; REDIRECTED is what publishers say that they sent viewers there for. Accounts are by
the hour: --from and --to are rounded outwards. The table cuts publishers' IDs; --csv and --json
have them whole, and exact bytes.`,
		Example: `  dandelion traffic --by stream --from -7d
  dandelion traffic --from 2026-05-01T00:00:00Z --to 2026-06-01T00:00:00Z --csv > may.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asCSV && asJSON {
				return errors.New("--csv and --json: one of the two")
			}
			query := url.Values{"by": {by}, "from": {from}, "to": {to}}
			t, err := call[traffic](cmd.Context(), http.MethodGet, endpoint(base, "/api/v1/traffic?"+query.Encode()), nil, 0)
			if err != nil {
				return err
			}
			if t.LeftOut > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "dandelion: %d more with less traffic are left out; the totals have them\n", t.LeftOut)
			}
			out := cmd.OutOrStdout()
			switch {
			case asCSV:
				return t.writeCSV(out)
			case asJSON:
				return json.MarshalWrite(out, t, jsontext.WithIndent("  "))
			}
			return t.writeTable(out)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&base, "entrance", "http://127.0.0.1:7070", "URL of the entrance, on its machine")
	flags.StringVar(&by, "by", "box", "box, publisher or stream")
	flags.StringVar(&from, "from", "-24h", "since when: 2026-05-01T00:00:00Z, unix seconds, -24h or -7d")
	flags.StringVar(&to, "to", "", "until when, in the same forms (default now)")
	flags.BoolVar(&asCSV, "csv", false, "write CSV")
	flags.BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// names are the columns that say what a row is of, and their values.
func (t *traffic) names() []string {
	if t.By == "stream" {
		return []string{"publisher", "stream"}
	}
	return []string{t.By}
}

func (r *trafficRow) name(column string) string {
	switch column {
	case "box":
		return r.Box
	case "publisher":
		return r.Publisher
	}
	return r.Stream
}

func (t *traffic) writeTable(out io.Writer) error {
	fmt.Fprintf(out, "%s to %s, by the hour\n\n", t.From.Format("2006-01-02 15:04"), t.To.Format("2006-01-02 15:04 MST"))
	if len(t.Rows) == 0 {
		_, err := fmt.Fprintln(out, "Nothing was delivered, as far as this entrance was told.")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	line := func(names []string, s *trafficSums) {
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\n", strings.Join(names, "\t"), human(s.Bytes), s.Deliveries, s.Failed, human(s.RedirectedBytes))
	}
	fmt.Fprintln(w, strings.ToUpper(strings.Join(t.names(), "\t"))+"\tSENT\tFILES\tFAILED\tREDIRECTED")
	for _, r := range t.Rows {
		var names []string
		for _, column := range t.names() {
			names = append(names, cmp.Or(short(r.name(column)), "-"))
		}
		line(names, &r.trafficSums)
	}
	total := make([]string, len(t.names()))
	total[0] = "total"
	line(total, &t.Totals)
	if err := w.Flush(); err != nil {
		return err
	}
	if t.Totals.DroppedBytes > 0 {
		fmt.Fprintf(out, "\nBoxes lost the accounts of %s more, in %d files.\n", human(t.Totals.DroppedBytes), t.Totals.Dropped)
	}
	return nil
}

// short cuts a publisher's ID so that a row fits 80 columns.
func short(name string) string {
	const digits = 8
	if hash, ok := strings.CutPrefix(name, "publisher-"); ok && len(hash) > digits {
		return "publisher-" + hash[:digits] + "…"
	}
	return name
}

// human prints a size as people read it: 12.3 GB.
func human(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, unit := float64(n), 0
	for v >= 999.5 && unit < len(units)-1 {
		v /= 1000
		unit++
	}
	if unit == 0 || v >= 99.95 {
		return fmt.Sprintf("%.0f %s", v, units[unit])
	}
	return fmt.Sprintf("%.1f %s", v, units[unit])
}

func (t *traffic) writeCSV(out io.Writer) error {
	w := csv.NewWriter(out)
	_ = w.Write(append(t.names(), "bytes", "deliveries", "failed", "failed_bytes", "redirects", "redirected_bytes", "dropped", "dropped_bytes", "late_bytes"))
	for _, r := range t.Rows {
		var record []string
		for _, column := range t.names() {
			record = append(record, r.name(column))
		}
		for _, n := range []int64{r.Bytes, r.Deliveries, r.Failed, r.FailedBytes, r.Redirects, r.RedirectedBytes, r.Dropped, r.DroppedBytes, r.LateBytes} {
			record = append(record, strconv.FormatInt(n, 10))
		}
		_ = w.Write(record)
	}
	w.Flush()
	return w.Error()
}
