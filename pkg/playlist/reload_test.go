package playlist

import (
	"strings"
	"testing"
)

func TestCheckReload(t *testing.T) {
	t.Parallel()
	parse := func(sequence, discontinuities string, rest ...string) *Media {
		return mustMedia(t, text(append([]string{
			"#EXTM3U", "#EXT-X-VERSION:6", "#EXT-X-TARGETDURATION:4", "#EXT-X-MEDIA-SEQUENCE:" + sequence,
			"#EXT-X-DISCONTINUITY-SEQUENCE:" + discontinuities,
		}, rest...)...))
	}
	const key = `#EXT-X-KEY:METHOD=AES-128,URI="k"`
	old := parse("5", "1", "#EXT-X-DISCONTINUITY", "#EXTINF:4,", "5", key, "#EXT-X-CUE-OUT", "#EXTINF:4,title", "6",
		"#EXTINF:4,", "#EXT-X-BYTERANGE:1@2", "7")
	six := []string{key, "#EXT-X-CUE-OUT", "#EXTINF:4,title", "6"}
	seven := []string{"#EXTINF:4,", "#EXT-X-BYTERANGE:1@2", "7"}
	eight := []string{"#EXTINF:4,", "8"}
	lines := func(parts ...[]string) (all []string) {
		for _, p := range parts {
			all = append(all, p...)
		}
		return all
	}
	with := func(line string, replaced string) *Media { // old from 6 on, with one line changed
		all := lines(six, seven, eight)
		for i := range all {
			if all[i] == line {
				all[i] = replaced
			}
		}
		return parse("6", "2", all...)
	}
	ended := parse("5", "1", "#EXTINF:4,", "5", "#EXT-X-ENDLIST")
	grown := parse("6", "2", lines(six, seven, eight)...)
	grown.TargetDuration, grown.Version = 5, 7
	older := parse("6", "2", lines(six, seven, eight)...)
	older.Version = 5
	shrunk := parse("6", "2", lines(six, seven, eight)...)
	shrunk.TargetDuration = 3

	for name, c := range map[string]struct {
		old, next *Media
		want      string
	}{
		"the same":                         {old, old, ""},
		"one more, one less":               {old, with("", ""), ""},
		"all new after a long pause":       {old, parse("50", "7", "#EXTINF:4,", "50", "#EXTINF:4,", "51", "#EXTINF:4,", "52"), ""},
		"target duration and version grow": {old, grown, ""},
		"an end comes":                     {parse("5", "1", "#EXTINF:4,", "5"), ended, ""},
		"it goes on behind its end":        {ended, parse("5", "1", "#EXTINF:4,", "5", "#EXT-X-DISCONTINUITY", "#EXTINF:4,", "6"), ""},
		"it ends a second time":            {ended, parse("5", "1", "#EXTINF:4,", "5", "#EXT-X-DISCONTINUITY", "#EXTINF:4,", "6", "#EXT-X-ENDLIST"), ""},
		"the init segment of a gap": {
			parse("5", "1", `#EXT-X-MAP:URI="i"`, "#EXTINF:4,", "5", "#EXT-X-GAP", "#EXTINF:4,", "6", "#EXTINF:4,", "7"),
			parse("6", "1", "#EXT-X-GAP", "#EXTINF:4,", "6", `#EXT-X-MAP:URI="i"`, "#EXTINF:4,", "7", "#EXTINF:4,", "8"), "",
		},
		"few remain, for it ended":            {parse("5", "1", "#EXTINF:4,", "5", "#EXTINF:4,", "6"), parse("6", "1", "#EXTINF:4,", "6", "#EXT-X-ENDLIST"), ""},
		"target duration falls":               {old, shrunk, "TARGETDURATION fell"},
		"version falls":                       {old, older, "VERSION fell"},
		"sequence falls":                      {old, parse("4", "1", "#EXTINF:4,", "4"), "MEDIA-SEQUENCE fell"},
		"last one gone":                       {old, parse("5", "1", "#EXT-X-DISCONTINUITY", "#EXTINF:4,", "5"), "last segments left"},
		"another URI":                         {old, with("6", "x"), "URI changed"},
		"another duration":                    {old, with("#EXTINF:4,title", "#EXTINF:3,title"), "duration changed"},
		"another title":                       {old, with("#EXTINF:4,title", "#EXTINF:4,"), "title changed"},
		"another byte range":                  {old, with("#EXT-X-BYTERANGE:1@2", "#EXT-X-BYTERANGE:1@3"), "byte range changed"},
		"another key":                         {old, with(key, strings.Replace(key, "k", "l", 1)), "keys changed"},
		"another tag":                         {old, with("#EXT-X-CUE-OUT", "#EXT-X-CUE-IN"), "tags changed"},
		"a date":                              {old, with("#EXT-X-CUE-OUT", "#EXT-X-CUE-OUT\n#EXT-X-PROGRAM-DATE-TIME:2026-01-02T03:04:05Z"), "date changed"},
		"a gap":                               {old, with("#EXT-X-CUE-OUT", "#EXT-X-CUE-OUT\n#EXT-X-GAP"), "gap changed"},
		"another init segment":                {old, with("#EXTINF:4,title", "#EXT-X-MAP:URI=\"i\"\n#EXTINF:4,title"), "init segment changed"},
		"a discontinuity more":                {old, with("#EXT-X-CUE-OUT", "#EXT-X-CUE-OUT\n#EXT-X-DISCONTINUITY"), "discontinuity changed"},
		"a discontinuity not counted":         {old, parse("6", "1", lines(six, seven, eight)...), "must be 2"},
		"a discontinuity counted twice":       {old, parse("6", "3", lines(six, seven, eight)...), "must be 2"},
		"fewer discontinuities after a pause": {old, parse("50", "1", "#EXTINF:4,", "50", "#EXTINF:4,", "51", "#EXTINF:4,", "52"), "must be 2"},
		"too long a segment":                  {old, parse("6", "2", lines(six, seven, []string{"#EXTINF:4.5,", "8"})...), "more than TARGETDURATION"},
		"too few remain":                      {old, parse("6", "2", lines(six, seven)...), "three target durations are 12s"},
	} {
		err := CheckReload(c.old, c.next)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
