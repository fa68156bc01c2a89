package api

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"dandelion/entrance/internal/ledger"
	"dandelion/pkg/httperr"
	"dandelion/pkg/id"
)

// Traffic is the answer of GET /api/v1/traffic.
type Traffic struct {
	// Granularity is what From and To are rounded to, outwards: accounts are kept by the hour.
	Granularity string `json:"granularity"`
	*ledger.Traffic
}

func (a *API) traffic(w http.ResponseWriter, r *http.Request) error {
	q, err := trafficQuery(r, time.Now())
	if err != nil {
		return err
	}
	t, err := a.ledger.Traffic(r.Context(), q)
	switch {
	case errors.Is(err, ledger.ErrRange):
		return httperr.BadRequest(err.Error(), err)
	case errors.Is(err, ledger.ErrBusy):
		w.Header().Set("Retry-After", "1")
		return httperr.New(http.StatusServiceUnavailable, err.Error(), err)
	case err != nil:
		return httperr.New(http.StatusServiceUnavailable, "the accounts cannot be read now: Redis does not answer as it should; the log says more", err)
	}
	return writeJSON(w, Traffic{"1h", t})
}

func trafficQuery(r *http.Request, now time.Time) (q ledger.Query, err error) {
	q.By = ledger.By(r.FormValue("by"))
	switch q.By {
	case "":
		q.By = ledger.ByBox
	case ledger.ByBox, ledger.ByPublisher, ledger.ByStream:
	default:
		return q, httperr.BadRequest("by must be box, publisher or stream", nil)
	}
	q.From, q.To = now.Add(-24*time.Hour), now
	for _, bound := range []struct {
		name string
		time *time.Time
	}{{"from", &q.From}, {"to", &q.To}} {
		if text := r.FormValue(bound.name); text != "" {
			if *bound.time, err = parseTime(text, now); err != nil {
				return q, httperr.BadRequest(bound.name+" must be a time such as 2026-01-31T00:00:00Z, unix seconds, or how long ago, such as -24h or -7d", err)
			}
		}
	}
	if text := r.FormValue("box"); text != "" {
		if q.Box, err = id.ParseBoxID(text); err != nil {
			return q, httperr.BadRequest("box: "+err.Error(), err)
		}
	}
	if q.Publisher = r.FormValue("publisher"); q.Publisher != "" && q.Publisher != ledger.Other {
		if _, err := id.ParsePublisherID(q.Publisher); err != nil {
			return q, httperr.BadRequest("publisher: "+err.Error(), err)
		}
	}
	if q.Stream = r.FormValue("stream"); q.Stream != "" {
		if _, err := id.ParseStreamName(q.Stream); err != nil {
			return q, httperr.BadRequest("stream: "+err.Error(), err)
		}
	}
	return q, nil
}

var (
	daysAgo  = regexp.MustCompile(`^-([0-9]{1,4})d$`)
	errTime  = errors.New("not a time")
	farthest = time.Date(9999, time.January, 1, 0, 0, 0, 0, time.UTC)
)

// parseTime reads RFC 3339, unix seconds, or a span before now: -90m, -24h, -7d.
func parseTime(text string, now time.Time) (time.Time, error) {
	text = strings.ReplaceAll(text, " ", "+") // a zone in a URL that was not escaped
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if m := daysAgo.FindStringSubmatch(text); m != nil {
		days, err := strconv.Atoi(m[1])
		return now.Add(-time.Duration(days) * 24 * time.Hour), err
	}
	if seconds, err := strconv.ParseInt(text, 10, 64); err == nil {
		if t := time.Unix(seconds, 0); seconds >= 0 && t.Before(farthest) {
			return t, nil
		}
		return now, errTime
	}
	ago, err := time.ParseDuration(text)
	if err != nil || ago > 0 {
		return now, errTime
	}
	return now.Add(ago), nil
}
