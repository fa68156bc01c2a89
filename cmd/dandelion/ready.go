package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// readyPatience is how long `dandelion ready` waits for an answer; a daemon's own checks take 2 s at most.
const readyPatience = 5 * time.Second

func newReady() *cobra.Command {
	return &cobra.Command{
		Use:   "ready URL",
		Short: "Tell by the exit status whether a daemon of this machine is ready, for health checks",
		Long: "Asks a daemon's /debug/ready, which answers programs on the same machine. Exits with 0 when it is ready, else with 1\n" +
			"and what is wrong in one line.",
		Example: "  dandelion ready http://127.0.0.1:7070",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), readyPatience)
			defer cancel()
			if err := ready(ctx, args[0]); err != nil {
				return fmt.Errorf("%s is not ready: %w", args[0], err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is ready\n", args[0])
			return nil
		},
	}
}

// ready returns why the daemon at base is not ready; nil when it is.
func ready(ctx context.Context, base string) error {
	resp, err := ask(ctx, http.MethodGet, endpoint(base, "/debug/ready"), nil, 0)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Checks []struct {
			Name   string `json:"name"`
			Ready  bool   `json:"ready"`
			Reason string `json:"reason"`
		} `json:"checks"`
		Error string `json:"error"` // of a refusal
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("the answer broke off: %w", err)
	case json.Unmarshal(body, &answer) != nil || answer.Checks == nil && answer.Error == "":
		return fmt.Errorf("%s, and what answers there is no daemon of Dandelion", resp.Status)
	case resp.StatusCode == http.StatusOK:
		return nil
	case answer.Error != "":
		return fmt.Errorf("%s: %s", resp.Status, answer.Error)
	}
	var wrong []string
	for _, c := range answer.Checks {
		if !c.Ready {
			wrong = append(wrong, c.Name+": "+c.Reason)
		}
	}
	return errors.New(strings.Join(wrong, "; "))
}
