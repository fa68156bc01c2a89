package demo

import (
	"context"
	"errors"
	"math"
	"testing"
)

func TestOffload(t *testing.T) {
	t.Parallel()
	if _, ok := (Status{PlacingBytes: 5}).Offload(); ok {
		t.Error("an offload without viewers")
	}
	for _, tt := range []struct {
		caster, viewers int64
		want            float64
	}{{0, 10, 1}, {10, 10, 0}, {1, 10, 0.9}, {20, 10, -1}, {20, 100, 0.8}} {
		if got, ok := offload(tt.caster, tt.viewers); !ok || math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("offload(%d, %d) = %v, %v; want %v", tt.caster, tt.viewers, got, ok, tt.want)
		}
	}
}

// TestServices: they stop once, in reverse, and a failure is told, though not the end of a stop.
func TestServices(t *testing.T) {
	t.Parallel()
	s := newServices(t.Context())
	var stopped []string
	for _, name := range []string{"a", "b"} {
		s.start(name, func(ctx context.Context) error {
			<-ctx.Done()
			stopped = append(stopped, name)
			return ctx.Err()
		})
	}
	broken := errors.New("broken")
	s.start("c", func(context.Context) error { return broken })
	if err := <-s.failed; !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := s.stop(); !errors.Is(err, broken) || len(stopped) != 2 || stopped[0] != "b" {
		t.Errorf("%v, %v", err, stopped)
	}
	if err := s.stop(); err != nil || len(stopped) != 2 {
		t.Errorf("stopped twice: %v", err)
	}
}
