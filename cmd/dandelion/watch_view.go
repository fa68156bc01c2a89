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
)

// watchView shows what viewers see, in words for casters.
type watchView struct {
	out    io.Writer
	origin string
	drawn  int // lines that the next picture replaces
}

// draw replaces the picture.
func (v *watchView) draw(s watch.Summary) {
	columns := usualColumns
	if f, ok := v.out.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
			columns = w
		}
	}
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	lines := v.picture(s)
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
	lines := []string{
		"",
		"  " + s.URL,
		fmt.Sprintf("  %-12s%s  as %s players", clock(time.Duration(s.Seconds*float64(time.Second))), plural(s.Viewers, "viewer"), s.Policy),
		"",
		fmt.Sprintf("  %-12s%d playing, %d stalled, %d starting, %d over", "now", s.Now[watch.Playing], s.Now[watch.Stalled], s.Now[watch.Starting], s.Now[watch.Over]),
		fmt.Sprintf("  %-12s%s", "started in", startText(s)),
		fmt.Sprintf("  %-12s%s", "stalls", stallText(s)),
		fmt.Sprintf("  %-12s%s", "segments", segmentText(s)),
		fmt.Sprintf("  %-12s%s", "failovers", failoverText(s)),
		fmt.Sprintf("  %-12s%s, %s", "errors", plural(s.Retries, "segment asked for again"), plural(s.PlaylistFailures, "playlist that failed")),
		fmt.Sprintf("  %-12s%s", "bytes", v.shareText(s)),
	}
	for _, host := range top(s.Bytes) {
		name := "box   "
		if host == v.origin {
			name = "origin"
		}
		lines = append(lines, fmt.Sprintf("  %-12s%s  %-24s %10s", "", name, host, size(s.Bytes[host])))
	}
	if len(s.Bytes) > topHosts {
		lines = append(lines, fmt.Sprintf("  %-12sand %d more", "", len(s.Bytes)-topHosts))
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

func startText(s watch.Summary) string {
	if s.Playing == 0 {
		return "nobody plays yet"
	}
	if s.Viewers == 1 {
		return fmt.Sprintf("%.2f s", s.Startup.P50)
	}
	return fmt.Sprintf("%.2f s, 95 of 100 viewers within %.2f s", s.Startup.P50, s.Startup.P95)
}

func stallText(s watch.Summary) string {
	text := fmt.Sprintf("%d, together %.1f s", s.Stalls.Count, s.Stalls.Seconds)
	if s.Stalls.Count > 0 {
		text += fmt.Sprintf(", the longest %.1f s", s.Stalls.Longest)
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
	return fmt.Sprintf("%d in %.2f s, 95 of 100 within %.2f s (%s)", s.Failovers.Count, s.Failovers.P50, s.Failovers.P95, strings.Join(causes, ", "))
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
	return fmt.Sprintf("%.0f %% from boxes (%s), %s from the origin", 100*float64(boxes)/float64(all), size(boxes), size(all-boxes))
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
		return fmt.Sprintf("Not all right: %s had other bytes than the publisher promised.", plural(s.Segments.Corrupt, "segment"))
	case s.Stalls.Count > 0 && s.Viewers == 1:
		return fmt.Sprintf("Not all right: the picture stood still %s, %.1f s in all.", times(s.Stalls.Count), s.Stalls.Seconds)
	case s.Stalls.Count > 0:
		return fmt.Sprintf("Not all right: the picture stood still for %d of %d viewers.", s.Playing-s.Stalls.SessionsWithout, s.Viewers)
	case s.Segments.Missed > 0:
		return fmt.Sprintf("Nearly all right: nobody waited, but %s were missing.", plural(s.Segments.Missed, "segment"))
	case s.Playing < s.Viewers:
		return fmt.Sprintf("%d of %d viewers play, none of them with a stall.", s.Playing, s.Viewers)
	case s.Failovers.Count > 0:
		return fmt.Sprintf("All right from here: %s failed on the way, and no viewer noticed.", plural(s.Failovers.Count, "load"))
	}
	return "All right from here: no stall, nothing missing."
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	first, rest, more := strings.Cut(what, " ")
	if more {
		return fmt.Sprintf("%d %ss %s", n, first, rest)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}
