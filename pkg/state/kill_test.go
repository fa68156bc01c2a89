package state

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
)

const childEnv = "STATE_TEST_CHILD_DIR"

// writeAndAcknowledge is the child of TestKilledProcessLosesNothingSynced: writers add numbers to
// all kinds of values, Sync, and print each number that is thereby acknowledged.
func writeAndAcknowledge(dir string) {
	ctx := context.Background()
	s, err := Open(ctx, Default(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error:", err)
		return
	}
	var start int64 // beyond every number of earlier lives
	for _, field := range s.HKeys(ctx, "hash").Val() {
		n, _ := strconv.ParseInt(field, 10, 64)
		start = max(start, n+1)
	}
	var out sync.Mutex
	for writer := range 4 {
		go func() {
			for i := int64(writer); ; i += 4 {
				n := start + i
				p := s.Pipeline()
				p.HSet(ctx, "hash", n, n)
				p.RPush(ctx, "list", n)
				p.SAdd(ctx, "set", n)
				_, err := p.Exec(ctx)
				if err == nil {
					err = s.Sync(ctx)
				}
				out.Lock()
				if err != nil {
					fmt.Println("error:", err)
				} else {
					fmt.Println(n)
				}
				out.Unlock()
			}
		}()
	}
	select {}
}

func TestKilledProcessLosesNothingSynced(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	for range 8 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+dir)
		stdout, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		killAfter := rand.IntN(60)
		for n := 0; lines.Scan(); n++ {
			if _, err := strconv.Atoi(lines.Text()); err != nil {
				t.Errorf("the child printed %q", lines.Text())
			}
			acknowledged[lines.Text()] = true
			if n == killAfter {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		child.Wait()

		var log logs
		s, err := Open(t.Context(), Default(), dir, log.logger())
		if err != nil {
			t.Fatal(err)
		}
		hash, list, set := s.HGetAll(t.Context(), "hash").Val(), s.LRange(t.Context(), "list", 0, -1).Val(), s.SMembersMap(t.Context(), "set").Val()
		inList := map[string]bool{}
		for _, n := range list {
			inList[n] = true
		}
		for n := range acknowledged {
			if _, ok := set[n]; hash[n] != n || !inList[n] || !ok {
				t.Errorf("%s was acknowledged and is lost: hash %q, list %v, set %v", n, hash[n], inList[n], ok)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			t.Fatalf("after %d acknowledged writes; log:\n%s", len(acknowledged), log.String())
		}
	}
	if len(acknowledged) < 8 {
		t.Errorf("only %d writes were acknowledged: the test did not test", len(acknowledged))
	}
}
