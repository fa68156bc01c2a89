package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"dandelion/cmd/dandelion/internal/demo"
)

// What one process can show.
const (
	maxBoxes   = 100
	maxViewers = 1000
)

func newDemo() *cobra.Command {
	opts := demo.Options{}
	asJSON, verbose := false, false
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run a whole fleet in one process, with a live stream",
		Long: "Runs an entrance, boxes and a publisher in one process, on state of their own that is thrown away,\n" +
			"and feeds them a live stream. Prints the URL to open; Ctrl-C ends it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.For < 0 || opts.Boxes < 1 || opts.Boxes > maxBoxes || opts.Viewers < 0 || opts.Viewers > maxViewers {
				return fmt.Errorf("want --for 0 or longer, --boxes 1 to %d and --viewers 0 to %d", maxBoxes, maxViewers)
			}
			out := cmd.OutOrStdout()
			opts.Log = newLog(verbose)
			line := &statusLine{out: out, terminal: isTerminal(out)}
			if asJSON {
				opts.Viewers = max(opts.Viewers, 1)
			} else {
				opts.Ready, opts.Status = line.ready, line.show
			}
			result, err := demo.Run(cmd.Context(), opts)
			line.end()
			if err != nil || !asJSON {
				return err
			}
			if err := json.MarshalWrite(out, result, jsontext.Multiline(true), jsontext.WithIndent("  ")); err != nil {
				return err
			}
			_, err = fmt.Fprintln(out)
			return err
		},
	}
	flags := cmd.Flags()
	flags.DurationVar(&opts.For, "for", 0, "how long, such as 30s (default: until Ctrl-C)")
	flags.BoolVar(&asJSON, "json", false, "watch the stream too, print nothing but what was measured, as JSON at the end")
	flags.IntVar(&opts.Viewers, "viewers", 0, "viewers of its own (with --json at least 1)")
	flags.IntVar(&opts.Boxes, "boxes", 5, "boxes")
	flags.StringVar(&opts.Listen, "listen", "127.0.0.1:7071", "address of the viewers' URL")
	flags.BoolVar(&verbose, "verbose", false, "log everything to stderr")
	return cmd
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// statusLine is one line that is written again and again; where the output is no terminal, a
// line every ten seconds.
type statusLine struct {
	out      io.Writer
	terminal bool
	last     time.Duration
	shown    bool
}

func (l *statusLine) ready(url, picture string) {
	fmt.Fprintf(l.out, "\n  Watch %s in this fleet: %s\n  Ctrl-C ends it.\n\n", picture, url)
}

func (l *statusLine) show(s demo.Status) {
	if !l.terminal {
		if l.shown && s.Running-l.last < 10*time.Second {
			return
		}
		l.last = s.Running
		fmt.Fprintln(l.out, statusText(s))
	} else {
		fmt.Fprintf(l.out, "\r\x1b[K%s", statusText(s))
	}
	l.shown = true
}

func (l *statusLine) end() {
	if l.shown && l.terminal {
		fmt.Fprintln(l.out)
	}
}

func statusText(s demo.Status) string {
	offload := "no viewer yet"
	if share, ok := s.Offload(); ok {
		offload = fmt.Sprintf("offload %.0f %%", 100*share)
	}
	return fmt.Sprintf("%s  segments placed %d  boxes %d  from boxes %s  origin %s  %s",
		clock(s.Running), s.SegmentsPlaced, s.BoxesUp, human(s.BoxBytes), human(s.OriginBytes), offload)
}

func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

// size writes bytes in the decimal unit that reads best.
