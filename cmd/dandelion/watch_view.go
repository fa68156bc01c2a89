package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"dandelion/pkg/watch"
)

const (
	topHosts     = 5
	usualColumns = 80
	usualRows    = 24
)

// watchView shows what viewers see, in words for casters.
type watchView struct {
	out    io.Writer
	origin string
	drawn  int // lines that the next picture replaces
}

// draw replaces the picture.
func (v *watchView) draw(s watch.Summary) {
	columns, rows := usualColumns, usualRows
	if f, ok := v.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			columns, rows = w, h
		}
	}
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	lines := v.picture(s)
	if over := len(lines) - (rows - 1); over > 0 { // what scrolls away cannot be drawn over
		lines = lines[min(over, len(lines)-1):]
	}
	for _, line := range lines {
		fmt.Fprintf(&b, "\r\x1b[K%s\n", cut(line, columns-1))
	}
	b.WriteString("\x1b[J")
	v.drawn = len(lines)
	_, _ = io.WriteString(v.out, b.String())
}

// cut shortens a line to so many columns, so that it stays one.
func cut(s string, columns int) string {
	r := []rune(s)
	if len(r) <= columns {
		return s
	}
	return string(r[:max(columns-1, 0)]) + "…"
}

func (v *watchView) picture(s watch.Summary) []string {
	row := func(what, text string) string { return fmt.Sprintf("  %-12s%s", what, text) }
	lines := []string{
		"",
		"  " + s.URL,
		row(clock(time.Duration(s.Seconds*float64(time.Second))), plural(s.Viewers, "viewer", "")+", "+manner(s.Policy)),
		"",
		row("now", nowText(s)),
		row("started in", startText(s)),
		row("stalls", stallText(s)),
		row("segments", segmentText(s)),
		row("failovers", failoverText(s)),
		row("errors", errorText(s)),
		row("bytes", v.shareText(s)),
	}
	for _, host := range top(s.Bytes) {
		name := "box   "
		if host == v.origin {
			name = "origin"
		}
		lines = append(lines, row("", fmt.Sprintf("%s  %-24s %10s", name, host, human(s.Bytes[host]))))
	}
	if len(s.Bytes) > topHosts {
		lines = append(lines, row("", fmt.Sprintf("and %d more", len(s.Bytes)-topHosts)))
	}
	return append(lines, "", "  "+verdict(s))
}

// line is all in one line.
func (v *watchView) line(s watch.Summary) string {
	return fmt.Sprintf("%s  playing %d/%d  stalled now %d  stall-free %.0f %%  failovers %d  missed %d  %s",
		clock(time.Duration(s.Seconds*float64(time.Second))), s.Now[watch.Playing], s.Viewers, s.Now[watch.Stalled],
		100*s.Stalls.ShareWithout, s.Failovers.Count, s.Segments.Missed, v.shareText(s))
}

// end writes the summary where no picture shows it.
func (v *watchView) end(s watch.Summary, shown bool) {
	if shown {
		fmt.Fprintln(v.out)
		return
	}
	for _, line := range v.picture(s) {
		fmt.Fprintln(v.out, line)
	}
}

// manner says how the viewers behave.
func manner(policy string) string {
	if policy == watch.HLSJS.Name {
		return "as hls.js plays by default"
	}
	return "as Dandelion's page plays"
}

func nowText(s watch.Summary) string {
	text := fmt.Sprintf("%d playing, %d stalled", s.Now[watch.Playing], s.Now[watch.Stalled])
	if n := s.Now[watch.Starting]; n > 0 {
		text += fmt.Sprintf(", %d starting", n)
	}
	if n := s.Now[watch.Over]; n > 0 {
		text += fmt.Sprintf(", %d at the end", n)
	}
	return text
}

func startText(s watch.Summary) string {
	switch s.Playing {
	case 0:
		return "nobody plays yet"
	case 1:
		return brief(s.Startup.P50)
	}
	return fmt.Sprintf("%s, 95 of 100 viewers within %s", brief(s.Startup.P50), brief(s.Startup.P95))
}

// brief writes a time for the eye.
func brief(seconds float64) string {
	if seconds < 0.9995 {
		return fmt.Sprintf("%.0f ms", 1000*seconds)
	}
	return fmt.Sprintf("%.1f s", seconds)
}

func errorText(s watch.Summary) string {
	if s.Retries+s.PlaylistFailures == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, %s", plural(s.Retries, "segment", " asked for again"), plural(s.PlaylistFailures, "playlist", " not loaded"))
}

func stallText(s watch.Summary) string {
	if s.Stalls.Count == 0 {
		return "none"
	}
	text := fmt.Sprintf("%d, together %s, the longest %s", s.Stalls.Count, brief(s.Stalls.Seconds), brief(s.Stalls.Longest))
	if s.Viewers == 1 {
		return text
	}
	return text + fmt.Sprintf("; %.1f %% of viewers had none", 100*s.Stalls.ShareWithout)
}

func segmentText(s watch.Summary) string {
	text := fmt.Sprintf("%d received, %d missed, %d corrupt, %d twice", s.Segments.Received, s.Segments.Missed, s.Segments.Corrupt, s.Segments.Duplicated)
	if s.Segments.Unverified > 0 {
		text += fmt.Sprintf(", %d not checked", s.Segments.Unverified)
	}
	return text
}

func failoverText(s watch.Summary) string {
	if s.Failovers.Count == 0 {
		return "none"
	}
	var causes []string
	for _, c := range watch.Causes {
		if n := s.Failovers.ByCause[c].Count; n > 0 {
			causes = append(causes, fmt.Sprintf("%d %s", n, c))
		}
	}
	why := strings.Join(causes, ", ")
	if s.Failovers.Count == 1 {
		return fmt.Sprintf("%s: another host had sent within %s", why, brief(s.Failovers.P50))
	}
	return fmt.Sprintf("%s: half within %s, 95 of 100 within %s", why, brief(s.Failovers.P50), brief(s.Failovers.P95))
}

func (v *watchView) shareText(s watch.Summary) string {
	var all int64
	for _, n := range s.Bytes {
		all += n
	}
	if all == 0 {
		return "none yet"
	}
	boxes := all - s.Bytes[v.origin]
	return fmt.Sprintf("%.0f %% from boxes (%s), %s from the origin", 100*float64(boxes)/float64(all), human(boxes), human(all-boxes))
}

// top are the hosts that sent most.
func top(bytes map[string]int64) []string {
	hosts := slices.SortedFunc(maps.Keys(bytes), func(a, b string) int {
		return cmp.Or(cmp.Compare(bytes[b], bytes[a]), cmp.Compare(a, b))
	})
	return hosts[:min(len(hosts), topHosts)]
}

// verdict answers: is my stream all right from here?
func verdict(s watch.Summary) string {
	switch {
	case s.Playing == 0 && s.Trouble != "":
		return "Nothing plays yet: " + s.Trouble
	case s.Playing == 0:
		return "Nothing plays yet."
	case s.Segments.Corrupt > 0:
		return fmt.Sprintf("Not all right: %s had other bytes than the publisher promised.", plural(s.Segments.Corrupt, "segment", ""))
	case s.Stalls.Count > 0 && s.Viewers == 1:
		return fmt.Sprintf("Not all right: the picture stood still %s, %s in all.", times(s.Stalls.Count), brief(s.Stalls.Seconds))
	case s.Stalls.Count > 0:
		return fmt.Sprintf("Not all right: the picture stood still for %d of %d viewers.", s.Playing-s.Stalls.SessionsWithout, s.Viewers)
	case s.Segments.Missed > 0:
		return fmt.Sprintf("Nearly all right: nobody waited, but the picture jumped over %s.", plural(s.Segments.Missed, "missing segment", ""))
	case s.Playing < s.Viewers:
		return fmt.Sprintf("%d of %d viewers play, none of them with a stall.", s.Playing, s.Viewers)
	case s.Failovers.Count > 0:
		return fmt.Sprintf("All right from here: %s failed on the way, and no viewer noticed.", plural(s.Failovers.Count, "load", ""))
	}
	return "All right from here: no stall, nothing missing."
}

// plural counts nouns whose plural ends in s; rest stands behind the noun.
func plural(n int, noun, rest string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s%s", n, noun, rest)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
