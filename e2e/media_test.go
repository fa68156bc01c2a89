//go:build e2e

package e2e

import (
	"testing"
	"time"
)

// TestPlayers: what ffmpeg encodes plays in ffmpeg and in a viewer that checks each segment
// against its digest.
func TestPlayers(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			fleet := newFleet(t, plan{})
			encode(t, fleet.source, f, "+delete_segments")
			playlists := len(f.renditions)
			if f.name == ts.name {
				playlists = 1
			}
			follow(t, fleet.index(), playlists)
			fleet.awaitMore(4) // a stream that has just begun has nothing to buffer
			viewers := watching(t, fleet.index(), 2)
			awaitPlayed(t, viewers, 2*time.Second)

			kinds := probe(t, fleet.index())
			if kinds["video"] == 0 || kinds["audio"] == 0 {
				t.Errorf("ffprobe finds %v, want video and audio", kinds)
			}
			decode(t, fleet.index(), 10*time.Second)

			smooth(t, viewers)
			boxes, own := share(viewers, fleet.publisher.addr)
			if boxes <= own {
				t.Errorf("boxes sent %d bytes and the origin %d", boxes, own)
			}
		})
	}
}
