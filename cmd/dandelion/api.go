package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
)

// maxAnswer bounds what is read of an API's answer.
const maxAnswer = 64 << 20

// call asks a daemon's API and reads its JSON. Errors carry the daemon's own words.
func call[T any](ctx context.Context, method, at string, body io.Reader, length int64) (T, error) {
	var v T
	resp, err := ask(ctx, method, at, body, length)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	answer := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode >= 300 {
		var refusal struct {
			Error string `json:"error"`
		}
		if json.UnmarshalRead(answer, &refusal) != nil {
			refusal.Error = "what answers there is not the daemon that this command asks"
		}
		return v, fmt.Errorf("%s: %s", resp.Status, refusal.Error)
	}
	return v, json.UnmarshalRead(answer, &v)
}

// ask sends a request to a daemon. Its errors say why nothing answered.
func ask(ctx context.Context, method, at string, body io.Reader, length int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil || req.URL.Host == "" {
		return nil, fmt.Errorf("%q is not at the URL of a daemon, such as http://127.0.0.1:7070", at)
	}
	req.ContentLength = length
	resp, err := http.DefaultClient.Do(req)
	var failed *url.Error
	if errors.As(err, &failed) { // its URL says more than anybody asked
		err = failed.Err
	}
	if err != nil {
		return nil, fmt.Errorf("no answer (%w): is the daemon running there?", err)
	}
	return resp, nil
}

func endpoint(base, path string) string { return strings.TrimSuffix(base, "/") + path }
