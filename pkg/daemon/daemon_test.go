package daemon

import (
	"strings"
	"testing"
)

func TestListenNamesTheCure(t *testing.T) {
	t.Parallel()
	first, err := Listen("box.listen", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for addr, want := range map[string]string{
		first.Addr().String(): "another program uses",
		"192.0.2.1:0":         "an address of this machine",
	} {
		ln, err := Listen("box.listen", addr)
		if err == nil {
			ln.Close()
			t.Errorf("listened on %s", addr)
		} else if !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "box.listen: ") {
			t.Errorf("%s: %v", addr, err)
		}
	}
}
