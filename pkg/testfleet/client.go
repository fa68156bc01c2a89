package testfleet

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"dandelion/pkg/id"
)

// Located is the answer of the publisher's /api/v1/locate.
type Located struct {
	URLs   []string `json:"urls"`
	Digest string   `json:"digest"`
	Size   int64    `json:"size"`
}

// Holders are the URLs at boxes: all but the origin's.
func (l Located) Holders() []string {
	var boxes []string
	for _, u := range l.URLs {
		if !strings.Contains(u, "/origin/") {
			boxes = append(boxes, u)
		}
	}
	return boxes
}

// Locate asks the publisher where a file is; the zero value where it does not know.
func (f *Fleet) Locate(path id.Path) Located {
	f.tb.Helper()
	var l Located
	status, body := f.Get(f.Publisher.URL() + "/api/v1/locate?path=" + string(path))
	if status == http.StatusOK {
		if err := json.Unmarshal(body, &l); err != nil {
			f.tb.Fatalf("locate %s: %v: %s", path, err, body)
		}
	}
	return l
}

// noRedirects shows redirects instead of following them.
var noRedirects = &http.Client{
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport:     &http.Transport{DisableKeepAlives: true},
}

// Get gets a URL without following redirects; status 0 where nobody answered.
func (f *Fleet) Get(url string) (status int, body []byte) {
	resp, err := noRedirects.Get(url)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, body
}

// Ask asks the front as a viewer with that user agent does, and returns where it is sent: ""
// where the front serves the bytes itself.
func (f *Fleet) Ask(path id.Path, agent string) (location string, err error) {
	req, err := http.NewRequest(http.MethodGet, f.Publisher.URL()+string(path), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", agent)
	resp, err := noRedirects.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusFound:
		return resp.Header.Get("Location"), nil
	case http.StatusOK:
		return "", nil
	}
	return "", fmt.Errorf("the front answered %s", resp.Status)
}
