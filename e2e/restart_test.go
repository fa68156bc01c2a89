//go:build e2e

package e2e

import (
	"testing"
	"time"
)

// TestEncoderRestart: an encoder dies and another begins with the same file names. Viewers get a
// discontinuity and play on; sequence numbers do not fall, and no bytes are mixed up.
func TestEncoderRestart(t *testing.T) {
	const seconds = 30
	fleet := newFleet(t, plan{})
	encoder := encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	playlists := follow(t, fleet.index(), 1)
	viewers := watching(t, fleet.index(), 2)
	browser := browse(t, fleet.publisher.url()+"/", seconds)
	awaitPlayed(t, viewers, 8*time.Second)

	encoder.kill()
	encode(t, fleet.source, ts, "+delete_segments")
	playlists.awaitDiscontinuity(t, 0)
	awaitPlayed(t, viewers, 8*time.Second)

	m := seen(t, browser, seconds)
	if list := m.serious(); len(list) > 0 {
		t.Errorf("errors: %q", list)
	}
	smooth(t, viewers)
}

// TestEncoderRestartSameBytes: the second encoder writes what the first wrote, as one does that
// plays a file. The stream begins again, and does not stand still until it is where it was.
func TestEncoderRestartSameBytes(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encoder := encodeScene(t, fleet.source, ts, "+delete_segments", 1)
	fleet.awaitMore(8)
	playlists := follow(t, fleet.index(), 1)

	encoder.kill()
	encodeScene(t, fleet.source, ts, "+delete_segments", 1)
	began := time.Now()
	playlists.awaitDiscontinuity(t, 0)
	fleet.awaitMore(1)
	t.Logf("the next segments were shown %v after the second encoder began", time.Since(began))
}

// TestPublisherRestart: the publisher is killed and started again. What viewers saw stays as it
// was, and playing goes on.
func TestPublisherRestart(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encode(t, fleet.source, fmp4, "+delete_segments")
	fleet.awaitMore(4) // a stream that has just begun has nothing to buffer
	playlists := follow(t, fleet.index(), 3)
	viewers := watching(t, fleet.index(), 2)
	awaitPlayed(t, viewers, 8*time.Second)

	before := playlists.seen()
	fleet.publisher.kill()
	fleet.publisher.start()
	fleet.awaitBoxes(len(fleet.boxes))
	awaitPlayed(t, viewers, 8*time.Second)

	if n := playlists.breaks(); n > 0 {
		t.Errorf("%d discontinuities, want none: the encoder went on all the time", n)
	}
	for u, m := range playlists.seen() {
		if m.Sequence+uint64(len(m.Entries)) <= before[u].Sequence+uint64(len(before[u].Entries)) {
			t.Errorf("%s did not go on", u)
		}
	}
	smooth(t, viewers)
	for _, refusal := range playlists.refused {
		t.Errorf("a playlist that was there was refused: %s", refusal)
	}
}
