//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"dandelion/pkg/playlist"
	"dandelion/pkg/wire"
)

// TestBoxKill: a box that serves viewers dies. They go on at once, nobody is sent there any more,
// and when it is back it still has what it acknowledged.
func TestBoxKill(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encode(t, fleet.source, ts, "+delete_segments")
	kept, bytesOf := uploadRandom(t, fleet, 300_000)
	fleet.awaitMore(4)
	viewers := watching(t, fleet.index(), 3)
	awaitPlayed(t, viewers, 4*time.Second)

	holders, _, err := fleet.holders(kept)
	if err != nil || len(holders) != 2 {
		t.Fatalf("%s is held by %s (%v), want two boxes", kept, holders, err)
	}
	dead := fleet.box(host(t, holders[0]))
	path := heldBy(t, fleet, dead)
	dead.kill()
	killed := time.Now()

	eventually(t, soon, func() error {
		urls, _, err := fleet.holders(path)
		if err == nil && names(t, urls, dead) {
			err = fmt.Errorf("viewers are still told of the dead box: %s", urls)
		}
		return err
	})
	t.Logf("the dead box was named for %v", time.Since(killed))
	for range 5 { // each request of one viewer for the same is sent elsewhere, or answered by the origin
		if to, err := redirected(t, fleet.publisher.url()+path); err == nil && host(t, to) == dead.addr {
			t.Errorf("a viewer was sent to the dead box: %s", to)
		}
	}
	eventually(t, soon, func() error { return notOffered(t, fleet, dead) })

	awaitPlayed(t, viewers, 8*time.Second)
	smooth(t, viewers)

	dead.start()
	fleet.awaitBoxes(3)
	eventually(t, soon, func() error {
		urls, _, err := fleet.holders(kept)
		if err == nil && !names(t, urls, dead) {
			err = fmt.Errorf("the box is back and is not named for %s: %s", kept, urls)
		}
		return err
	})
	got, _, err := get(t, holders[0])
	if err != nil || !bytes.Equal(got, bytesOf) {
		t.Errorf("%s: %v, %d bytes of %d as before", holders[0], err, len(got), len(bytesOf))
	}
	awaitPlayed(t, viewers, 2*time.Second)
}

// TestBoxHangs: a box falls silent without a word, as one whose plug is pulled. Viewers who are
// sent there ask again and notice nothing; then it is forgotten, and comes back when it wakes.
func TestBoxHangs(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	viewers := watching(t, fleet.index(), 3)
	awaitPlayed(t, viewers, 4*time.Second)
	silent := fleet.boxes[0]
	path := heldBy(t, fleet, silent)
	silent.signal(syscall.SIGSTOP)
	t.Cleanup(func() { silent.signal(syscall.SIGCONT) })
	fell := time.Now()
	sentThere := 0
	for range 3 { // who asks again is sent elsewhere, at last to the origin
		if to, err := redirected(t, fleet.publisher.url()+path); err == nil && host(t, to) == silent.addr {
			sentThere++
		}
	}
	if sentThere > 1 {
		t.Errorf("a viewer who asked again was sent to the same box %d times", sentThere)
	}
	viewers = append(viewers, watching(t, fleet.index(), 2)...) // these begin with segments that it holds
	fleet.awaitBoxes(2)
	if took := time.Since(fell); took > wire.SilenceLimit { // then its session ends, whatever the publisher thinks of it
		t.Errorf("viewers were sent to a silent box for %v, want 3 s", took)
	} else {
		t.Logf("viewers were sent to the silent box for %v", took)
	}
	eventually(t, soon, func() error { return notOffered(t, fleet, silent) })
	if took := time.Since(fell); took > 20*time.Second { // its lease
		t.Errorf("the entrance offered a silent box for %v, want at most 10 s", took)
	}
	awaitPlayed(t, viewers, 4*time.Second)
	smooth(t, viewers)

	silent.signal(syscall.SIGCONT)
	fleet.awaitBoxes(3)
	heldBy(t, fleet, silent)
}

// TestEntranceKill: without the entrance everything that runs goes on. When it is back it knows
// the boxes again, and new ones are found.
func TestEntranceKill(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	viewers := watching(t, fleet.index(), 2)
	fleet.entrance.kill()
	awaitPlayed(t, viewers, 8*time.Second)
	fleet.awaitBoxes(3)
	smooth(t, viewers)
	boxes, own := share(viewers, fleet.publisher.addr)
	if offload(boxes, own) < 0.9 {
		t.Errorf("boxes sent %d bytes and the origin %d", boxes, own)
	}
	fleet.entrance.start()
	fleet.addBox()
	fleet.awaitBoxes(4)
}

// names reports whether one of the URLs is at the box.
func names(t *testing.T, urls []string, box *daemon) bool {
	return slices.ContainsFunc(urls, func(u string) bool { return host(t, u) == box.public })
}

// heldBy waits for a segment in the playlist that the box holds, and returns its path.
func heldBy(t *testing.T, fleet *fleet, box *daemon) string {
	t.Helper()
	var path string
	eventually(t, soon, func() error {
		media, err := mediaURLs(t, fleet.index())
		if err != nil {
			return err
		}
		body, _, err := get(t, media[0])
		if err != nil {
			return err
		}
		m, err := playlist.ParseMedia(body)
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(m.Entries) {
			path = pathOf(t, media[0], e.URI)
			if urls, _, err := fleet.holders(path); err == nil && names(t, urls, box) {
				return nil
			}
		}
		return fmt.Errorf("%s holds nothing of the playlist", box.name)
	})
	return path
}

// notOffered looks whether the entrance still offers a box to publishers.
func notOffered(t *testing.T, fleet *fleet, box *daemon) error {
	known, err := getJSON[struct {
		Boxes []struct {
			ID         string `json:"id"`
			Searchable bool   `json:"searchable"`
		} `json:"boxes"`
	}](t, fleet.entrance.url()+"/api/v1/boxes")
	if err != nil {
		return err
	}
	for _, b := range known.Boxes {
		if b.ID == box.id && b.Searchable {
			return fmt.Errorf("the entrance still offers %s", box.name)
		}
	}
	return nil
}

// uploadRandom hands a file of random bytes in with the tool and returns its path at the
// publisher and its bytes.
func uploadRandom(t *testing.T, fleet *fleet, size int) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "a film of ours.bin")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	url := upload(t, fleet, name)
	return pathBelow(t, url, fleet.publisher.id), content
}
