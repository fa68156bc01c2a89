package stream

import (
	"testing"
	"time"
)

// An encoder that plays a file writes, after its restart, what it wrote before.
func TestEncoderRestartsWithTheSameBytes(t *testing.T) {
	t.Parallel()
	r := newRig(t).start()
	r.boxes = 0
	r.segments("a", "0.ts", "1.ts", "2.ts", "3.ts")
	r.media("index.m3u8", 1, "1.ts", "2.ts", "3.ts")
	r.step(0)
	r.segments("a", "0.ts", "1.ts")
	r.media("index.m3u8", 0, "0.ts", "1.ts")
	r.step(time.Second)
	r.want("index", "a 3.ts | a 0.ts a 1.ts")

	// Before its playlist was full, the first number does not fall.
	r.segments("a", "0.ts")
	r.media("index.m3u8", 0, "0.ts")
	r.step(2 * time.Second)
	r.want("index", "| a 0.ts a 1.ts | a 0.ts")
}
