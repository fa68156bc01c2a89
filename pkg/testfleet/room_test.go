package testfleet

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"

	"dandelion/box"
	"dandelion/pkg/config"
	"dandelion/publisher"
)

// TestFilesThatMadeRoom: a box that lets a file go for room says so; nobody is sent there for it any
// more, the origin serves it, and it does not drive out what drove it out.
func TestFilesThatMadeRoom(t *testing.T) {
	t.Parallel()
	const size = 5 << 20
	f := Start(t, Options{Boxes: 1, Replicas: 1, Box: func(_ int, c *box.Config) {
		c.StorageLimit = config.Fixed(17 * config.MB)
	}})
	var files []publisher.Upload
	for n := range 4 {
		status, u := f.upload(fmt.Sprintf("%d.bin", n), "&ttl=0", bytes.Repeat([]byte{byte(n)}, size))
		if status != http.StatusCreated || !u.Placed {
			t.Fatalf("upload %d: %d, %+v", n, status, u)
		}
		files = append(files, u)
	}
	held := func(n int) bool { return len(f.Locate(files[n].Path).Holders()) == 1 }
	f.Await("the first is not offered at the box", func() bool { return !held(0) })
	if status, body := f.Get(files[0].URL); status != http.StatusOK || len(body) != size || body[0] != 0 {
		t.Errorf("the first: %d, %d bytes", status, len(body))
	}
	if !held(3) {
		t.Error("the last is not offered")
	}
}
