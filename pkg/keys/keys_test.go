package keys

import (
	"strings"
	"testing"

	"dandelion/pkg/id"
)

// TestNamesAreDeclared checks each constructor against the pattern that is declared for it.
func TestNamesAreDeclared(t *testing.T) {
	var digest id.Digest
	made := map[string]bool{
		Entrance("<entrance>").OwnInfo(): true, Entrance("<entrance>").EntranceURLs(): true,
		Entrance("<entrance>").BoxSet(): true, Entrance("<entrance>").Exchange("<box>"): true,
		Entrance("<entrance>").Accounts(): true, Entrance("<entrance>").AccountDay("<box>", "<yyyymmdd>"): true,
		Entrance("<entrance>").AccountMarks("<box>"): true, Entrance("<entrance>").AccountSeen("<box>"): true,
		Box("<box>").SelfExchange(): true, Box("<box>").Exchange("<peer>"): true,
		Box("<box>").Subscribe("<publisher>"): true, Box("<box>").ExpireFiles(): true,
		Box("<box>").TrafficFlow("<uuid>"):  true,
		Publisher("<publisher>").SelfInfo(): true, Publisher("<publisher>").Search("<box>"): true,
		Publisher("<publisher>").BoxRanking(): true, Publisher("<publisher>").SendingQueue(): true,
		Publisher("<publisher>").Taken(): true, Publisher("<publisher>").BoxList(): true,
		Publisher("<publisher>").ProcessedFile("<path>"):                                                     true,
		strings.Replace(Publisher("<publisher>").Holders("<path>", digest), digest.Short(), "<digest12>", 1): true,
	}
	for _, k := range All {
		if !made[k.Pattern] {
			t.Errorf("no constructor makes %s", k.Pattern)
		}
		delete(made, k.Pattern)
	}
	for name := range made {
		t.Errorf("%s is not declared in All", name)
	}
}
