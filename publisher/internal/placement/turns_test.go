package placement

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestTurns: one push at a time, first copies before others and the newest first; who gives up holds up
// nobody.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var turns turns
		now := time.Now()
		order := make(chan string, 10)
		wait := func(ctx context.Context, name string, age time.Duration, copies int) {
			d := &delivery{job: &job{}}
			d.Complete = now.Add(-age)
			if err := turns.take(ctx, d, copies); err != nil {
				order <- name + " gave up"
				return
			}
			order <- name
			turns.give()
		}
		first := &delivery{job: &job{}}
		if err := turns.take(t.Context(), first, 0); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go wait(t.Context(), "second copy", 0, 1)
		go wait(t.Context(), "old", 3*time.Second, 0)
		go wait(ctx, "hasty", 0, 0)
		go wait(t.Context(), "new", time.Second, 0)
		synctest.Wait()
		cancel()
		synctest.Wait()
		turns.give()
		synctest.Wait()
		close(order)
		var got []string
		for name := range order {
			got = append(got, name)
		}
		if want := "[hasty gave up new old second copy]"; fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
		if turns.busy {
			t.Error("nobody's turn, and it is taken")
		}
	})
}
