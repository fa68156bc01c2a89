//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dandelion/pkg/playlist"
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
	if took := time.Since(killed); took > 2*time.Second {
		t.Errorf("the dead box was named for %v, want at most 2 s", took)
	} else {
		t.Logf("the dead box was named for %v", took)
	}
	for range 5 { // each request of one viewer for the same is sent elsewhere, or answered by the origin
		if to, err := redirected(t, fleet.publisher.url()+path); err == nil && host(t, to) == dead.addr {
			t.Errorf("a viewer was sent to the dead box: %s", to)
		}
	}
	eventually(t, soon, func() error { return notOffered(t, fleet, dead) })

	awaitPlayed(t, viewers, 8*time.Second)
	for i, v := range viewers {
		r := v.Report()
		if r.Corrupt > 0 || r.Missed > 0 {
			t.Errorf("viewer %d: %d corrupt and %d missed segments", i, r.Corrupt, r.Missed)
		}
		if r.Stalls > 0 {
			t.Errorf("viewer %d: %d stalls of %v together: a box that is unplugged must not be seen", i, r.Stalls, r.Stalled)
		}
		t.Logf("viewer %d: %+v", i, r)
	}

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

// names reports whether one of the URLs is at the box.
func names(t *testing.T, urls []string, box *daemon) bool {
	return slices.ContainsFunc(urls, func(u string) bool { return host(t, u) == box.addr })
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
