package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"dandelion/publisher"
)

func newUpload() *cobra.Command {
	var base, ttl string
	cmd := &cobra.Command{
		Use:   "upload FILE…",
		Short: "Hand files to a publisher, which places them on boxes; prints their URLs",
		Args:  arguments(1, math.MaxInt),
		RunE: func(cmd *cobra.Command, files []string) error {
			var errs []error
			for _, name := range files {
				u, err := upload(cmd.Context(), base, ttl, name, cmd.ErrOrStderr())
				if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), u.URL)
				if !u.Placed {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: no box holds it yet; it will be placed as soon as one can\n", name)
				}
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&base, "publisher", "http://127.0.0.1:7071", "URL of the publisher, on this machine")
	cmd.Flags().StringVar(&ttl, "ttl", "24h", "how long boxes keep the files; 0: until they need the room")
	return cmd
}

func upload(ctx context.Context, base, ttl, name string, progress io.Writer) (publisher.Upload, error) {
	file, err := os.Open(name)
	if err != nil {
		return publisher.Upload{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return publisher.Upload{}, err
	}
	if !info.Mode().IsRegular() {
		return publisher.Upload{}, errors.New("not a regular file")
	}
	var body io.Reader = file
	if isTerminal(progress) {
		bar := progressbar.NewOptions64(info.Size(), progressbar.OptionSetDescription(filepath.Base(name)), progressbar.OptionShowBytes(true),
			progressbar.OptionSetWriter(progress), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
		defer bar.Finish()
		body = io.TeeReader(file, bar)
	}
	query := url.Values{"name": {filepath.Base(name)}, "ttl": {ttl}}
	return call[publisher.Upload](ctx, http.MethodPost, endpoint(base, "/api/v1/uploads?"+query.Encode()), body, info.Size())
}
