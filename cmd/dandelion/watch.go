package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"dandelion/pkg/config"
	"dandelion/pkg/watch"
)

// How often what is seen is shown.
const (
	redrawEvery = time.Second
	tellEvery   = 10 * time.Second
	noteEvery   = time.Second // of a series
)

// watchOptions are the flags of watch.
type watchOptions struct {
	crowd   watch.CrowdConfig
	policy  string
	events  string
	series  string
	asJSON  bool
	verbose bool
}

func newWatch() *cobra.Command {
	o := watchOptions{crowd: watch.CrowdConfig{Agent: "dandelion-watch/" + config.Version()}}
	cmd := &cobra.Command{
		Use:   "watch URL",
		Short: "Watch a stream as any number of viewers do, and tell what they would notice",
		Long: "Plays a stream as real players do, without decoding it, and tells how it went: stalls, where the bytes\n" +
			"came from, what was missing, how long it took when a box failed. Ctrl-C ends it, with a verdict.\n" +
			"Succeeds when at least one viewer could play.",
		Example: "  dandelion watch http://127.0.0.1:7071/live/demo/index.m3u8\n" +
			"  dandelion watch --viewers 50 --for 60s --json --events events.jsonl http://192.0.2.1:7071/live/demo/index.m3u8",
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.crowd.URL = args[0]
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&o.crowd.Viewers, "viewers", 1, "how many viewers")
	flags.DurationVar(&o.crowd.For, "for", 0, "how long, such as 60s (default: until Ctrl-C or the end of the stream)")
	flags.DurationVar(&o.crowd.Ramp, "ramp", 0, "time over which the viewers start (default: all at once)")
	flags.StringVar(&o.policy, "policy", watch.Dandelion.Name, "how players wait and ask again: dandelion as the project's page, hlsjs as hls.js by default")
	flags.BoolVar(&o.asJSON, "json", false, "print what was measured as JSON at the end")
	flags.StringVar(&o.events, "events", "", "write each stall, failover, … to this file as a line of JSON; - is stderr")
	flags.StringVar(&o.series, "series", "", "write what was measured so far to this file each second, as a line of JSON with its time")
	flags.BoolVar(&o.verbose, "verbose", false, "log every failed load to stderr")
	return cmd
}

func (o *watchOptions) run(ctx context.Context, out, errOut io.Writer) error {
	var err error
	if o.crowd.Policy, err = watch.PolicyNamed(o.policy); err != nil {
		return err
	}
	o.crowd.Log = newLog(o.verbose)
	switch o.events {
	case "":
	case "-":
		o.crowd.Events = errOut
	default:
		file, err := os.Create(o.events)
		if err != nil {
			return fmt.Errorf("the events cannot be written: %w", err)
		}
		defer file.Close()
		o.crowd.Events = file
	}
	crowd, err := watch.NewCrowd(o.crowd)
	if err != nil {
		return err
	}
	stopNoting, err := o.note(crowd)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- crowd.Run(ctx) }()
	err = errors.Join(o.show(crowd, done, out, errOut), stopNoting())
	if o.asJSON {
		if err := json.MarshalWrite(out, crowd.Summary(), json.Deterministic(true), jsontext.Multiline(true), jsontext.WithIndent("  ")); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	return err
}

// noted is a line of the series.
type noted struct {
	Time time.Time `json:"time"`
	watch.Summary
}

// note writes the series until the function that it returns is called, which returns what went wrong.
func (o *watchOptions) note(crowd *watch.Crowd) (stop func() error, err error) {
	if o.series == "" {
		return func() error { return nil }, nil
	}
	file, err := os.Create(o.series)
	if err != nil {
		return nil, fmt.Errorf("the series cannot be written: %w", err)
	}
	over, done := make(chan struct{}), make(chan error, 1)
	go func() {
		ticker := time.NewTicker(noteEvery)
		defer ticker.Stop()
		for last := false; ; {
			b, err := json.Marshal(noted{time.Now(), crowd.Summary()}, json.Deterministic(true))
			if err == nil {
				_, err = file.Write(append(b, '\n'))
			}
			if err != nil || last {
				done <- errors.Join(err, file.Close())
				return
			}
			select {
			case <-ticker.C:
			case <-over:
				last = true
			}
		}
	}()
	return func() error {
		close(over)
		if err := <-done; err != nil {
			return fmt.Errorf("the series could not be written: %w", err)
		}
		return nil
	}, nil
}

// show shows what is seen until the watching is over: on a terminal a picture that is drawn
// again and again, else a line now and then.
func (o *watchOptions) show(crowd *watch.Crowd, done <-chan error, out, errOut io.Writer) error {
	view := &watchView{out: out, origin: crowd.Origin()}
	every := redrawEvery
	live := !o.asJSON && isTerminal(out)
	if !live {
		every = tellEvery
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if live {
			view.draw(crowd.Summary())
		}
		select {
		case err := <-done:
			if live {
				view.draw(crowd.Summary())
			}
			if !o.asJSON && err == nil {
				view.end(crowd.Summary(), live)
			}
			return err
		case <-ticker.C:
			if !live && o.events != "-" { // whose lines stay JSON
				fmt.Fprintln(errOut, view.line(crowd.Summary()))
			}
		}
	}
}
