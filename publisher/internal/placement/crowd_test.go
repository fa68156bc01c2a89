package placement

import (
	"testing"
	"time"
)

func TestPlannedViewers(t *testing.T) {
	var c crowd
	now := time.Now()
	step := func(viewers int) int {
		now = now.Add(500 * time.Millisecond)
		return c.planned(viewers, now)
	}
	for range 20 {
		step(10)
	}
	if n := step(10); n != 10 {
		t.Errorf("steady: %d", n)
	}
	n := 0
	for i := range 20 { // ten more each second
		n = step(10 + 5*i)
	}
	if n < 105+20 || n > 105+40 {
		t.Errorf("105 and growing by 10 a second: %d", n)
	}
	for range 4 {
		n = step(0)
	}
	if n < 105 {
		t.Errorf("2 s after all left: %d", n)
	}
	for range 8 {
		n = step(0)
	}
	if n != 0 {
		t.Errorf("6 s after all left: %d", n)
	}
}
