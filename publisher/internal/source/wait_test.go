package source

import (
	"os"
	"strings"
	"testing"
	"time"
)

// To wait for an encoder that was not started yet is no trouble; to lose one is.
func TestOnlyALostEncoderIsAWarning(t *testing.T) {
	t.Parallel()
	name := t.TempDir()
	f := follow(t, name, 5*time.Millisecond, time.Hour)
	f.wait("a problem", func(u Update) bool { return strings.Contains(u.Problem, "no playlist") })
	write(t, name+"/index.m3u8", media(0, "0.ts"))
	f.wait("a listing", listsUpTo("index.m3u8", "0.ts"))
	if log := f.logs.String(); strings.Contains(log, "WARN") || !strings.Contains(log, "waiting for the source") {
		t.Errorf("an encoder that comes second is logged as\n%s", log)
	}
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	f.wait("no directory", func(u Update) bool { return strings.Contains(u.Problem, "does not exist") })
	if log := f.logs.String(); !strings.Contains(log, "WARN") {
		t.Errorf("an encoder that is lost is logged as\n%s", log)
	}
}
