package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
)

// maxAnswer bounds what is read of an API's answer.
const maxAnswer = 64 << 20

// call asks a daemon's API and reads its JSON. Errors carry the daemon's own words.
func call[T any](ctx context.Context, method, url string, body io.Reader, length int64) (T, error) {
	var v T
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return v, err
	}
	req.ContentLength = length
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return v, fmt.Errorf("no answer: %w: is the daemon running there?", err)
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode >= 300 {
		var refusal struct {
			Error string `json:"error"`
		}
		_ = json.UnmarshalRead(answer, &refusal)
		return v, fmt.Errorf("%s: %s", resp.Status, refusal.Error)
	}
	return v, json.UnmarshalRead(answer, &v)
}

func endpoint(base, path string) string { return strings.TrimSuffix(base, "/") + path }
