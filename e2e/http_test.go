//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

const maxBody = 64 << 20

// client follows no redirects: a test says whom it asks.
var client = &http.Client{
	Timeout:       10 * time.Second,
	Transport:     &http.Transport{Proxy: nil, MaxIdleConnsPerHost: 4, IdleConnTimeout: 5 * time.Second},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// statusError is an answer other than 200.
type statusError struct {
	url    string
	status int
	to     string // of a redirect
	body   string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s answered %d %s %.200s", e.url, e.status, e.to, e.body)
}

// get fetches a URL.
func get(t *testing.T, url string) ([]byte, http.Header, error) {
	return fetch(t.Context(), client, url)
}

// fetch is get by a client of one's own.
func fetch(ctx context.Context, client *http.Client, url string) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return nil, nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, &statusError{url, resp.StatusCode, resp.Header.Get("Location"), string(body)}
	}
	return body, resp.Header, nil
}

func getJSON[T any](t *testing.T, url string) (T, error) {
	return fetchJSON[T](t.Context(), client, url)
}

func fetchJSON[T any](ctx context.Context, client *http.Client, url string) (T, error) {
	var v T
	body, _, err := fetch(ctx, client, url)
	if err == nil {
		err = json.Unmarshal(body, &v)
	}
	return v, err
}

// redirected returns where a URL sends its viewer.
func redirected(t *testing.T, url string) (string, error) {
	_, _, err := get(t, url)
	var status *statusError
	if errors.As(err, &status) && status.status == http.StatusFound {
		return status.to, nil
	}
	if err == nil {
		err = fmt.Errorf("%s answered with the bytes themselves", url)
	}
	return "", err
}
