package main

import (
	"testing"

	"github.com/go-json-experiment/json"

	"dandelion/publisher"
)

func TestShortOf(t *testing.T) {
	t.Parallel()
	for upload, want := range map[string]string{
		`[]`:                    "",
		`[{"short": 0}]`:        "",
		`[{"short": 40012345}]`: ", upload short by 40Mbit/s",
		`[{"short": 30000000, "short_in": [{"place": "TW", "short": 30000000}]}, {"short": 10000000, "short_in": [{"place": "TW"}, {"place": "Bavaria, DE"}]}]`: ", upload short by 40Mbit/s in TW; Bavaria, DE",
	} {
		var s publisher.StreamStatus
		if err := json.Unmarshal([]byte(`{"upload": `+upload+`}`), &s); err != nil {
			t.Fatal(err)
		}
		if got := shortOf(s); got != want {
			t.Errorf("%s: %q, want %q", upload, got, want)
		}
	}
}
