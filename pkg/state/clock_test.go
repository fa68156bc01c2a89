package state

import (
	"testing"
	"time"
)

func TestClock(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC)
	boot := time.Unix(3, 0).UTC()
	type step struct {
		passes time.Duration // of real time
		jump   time.Duration // of the system's clock, beyond that
		want   time.Time
	}
	for _, test := range []struct {
		name        string
		wall, saved time.Time
		steps       []step
	}{
		{"steady", noon, time.Time{}, []step{
			{0, 0, noon}, {time.Second, 0, noon.Add(time.Second)}, {time.Hour, 0, noon.Add(time.Hour + time.Second)},
		}},
		{"an hour forward", noon, time.Time{}, []step{
			{time.Second, time.Hour, noon.Add(1050 * time.Millisecond)},
			{time.Second, 0, noon.Add(2100 * time.Millisecond)},
			{30 * time.Hour, 0, noon.Add(31*time.Hour + 2*time.Second)}, // made up for
		}},
		{"an hour back", noon, time.Time{}, []step{
			{time.Second, -time.Hour, noon.Add(950 * time.Millisecond)},
			{30 * time.Hour, 0, noon.Add(29*time.Hour + time.Second)},
		}},
		{"set after the start", boot, time.Time{}, []step{
			{time.Second, 0, boot.Add(time.Second)},
			{time.Second, noon.Sub(boot), noon.Add(2 * time.Second)},
			{time.Second, time.Hour, noon.Add(3050 * time.Millisecond)}, // only once
		}},
		{"unset, with a snapshot", boot, noon, []step{
			{0, 0, noon},
			{time.Second, 0, noon.Add(time.Second)},
			{time.Second, noon.Add(time.Hour).Sub(boot), noon.Add(time.Hour + 2*time.Second)},
		}},
		{"set, with a snapshot from the future", noon, noon.Add(time.Hour), []step{{0, 0, noon}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var mono time.Duration
			wall := test.wall
			c := &clock{mono: func() time.Duration { return mono }, wall: func() time.Time { return wall }}
			c.start(test.saved)
			for i, s := range test.steps {
				mono += s.passes
				wall = wall.Add(s.passes + s.jump)
				now, passed := c.advance()
				if !now.Equal(s.want) || passed != s.passes || !c.current().Equal(s.want) || !c.moved().Equal(s.want) {
					t.Errorf("step %d: got %v after %v, want %v after %v", i, now, passed, s.want, s.passes)
				}
				mono += time.Second
				wall = wall.Add(time.Second)
				if got := c.current(); !got.Equal(s.want.Add(time.Second)) {
					t.Errorf("step %d: a second later it is %v, want %v", i, got, s.want.Add(time.Second))
				}
				mono -= time.Second
				wall = wall.Add(-time.Second)
			}
		})
	}
}
