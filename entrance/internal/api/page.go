package api

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"net/http"
	"time"
)

// pageBoxes is how many boxes the page shows; the API has all.
const pageBoxes = 500

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"upload": upload,
	"age":    age,
	"bytes":  size,
}).Parse(pageText))

// upload prints what the box sends, and what its uplink can carry, in Mbit/s.
func upload(system map[string]float64) string {
	up, known := system["NET-UP"]
	if !known {
		return "not known"
	}
	text := fmt.Sprintf("%.1f", up*8/1e6)
	if capacity, known := system["NET-CAPACITY"]; known {
		text += fmt.Sprintf(" of %.1f", capacity*8/1e6)
	}
	return text
}

// size prints bytes in MB, from 10 GB on in GB.
func size(n int64) string {
	if n >= 1e10 {
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

func age(seconds float64) string {
	return time.Duration(math.Round(seconds) * float64(time.Second)).String()
}

func (a *API) page(w http.ResponseWriter, _ *http.Request) error {
	now := time.Now()
	known := a.known()
	data := struct {
		Entrance Entrance
		Uptime   string
		Boxes    []Box
		More     int
	}{Entrance: a.summary(now), More: max(len(known)-pageBoxes, 0)}
	data.Uptime = age(data.Entrance.UptimeS)
	for _, b := range known[:min(len(known), pageBoxes)] {
		data.Boxes = append(data.Boxes, a.describe(b, now))
	}
	var page bytes.Buffer
	if err := pageTemplate.Execute(&page, data); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
	_, _ = w.Write(page.Bytes())
	return nil
}
