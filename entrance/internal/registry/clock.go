package registry

import (
	"sync"
	"time"
)

// clock turns local times into Redis' time, which all processes of an entrance share, and back.
// Between two measurements it runs with the monotonic clock. It may be used concurrently.
type clock struct {
	mu     sync.RWMutex
	local0 time.Time // a local moment, with its monotonic reading
	redis0 time.Time // what Redis said then
}

// start takes the local moment and Redis' time at it.
func (c *clock) start(local, redis time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.local0, c.redis0 = local, redis.Round(0)
}

// at returns Redis' time at a local moment.
func (c *clock) at(local time.Time) time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.redis0.Add(local.Sub(c.local0))
}

// local returns the local moment of a time of Redis.
func (c *clock) local(redis time.Time) time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.local0.Add(redis.Sub(c.redis0))
}

// unset is a time before which no clock that was ever set can be: small devices start in 1970
// until the network tells them better. No lease is ended by such a clock.
var unset = time.Date(2024, time.January, 1, 0, 0, 0, 0, time.UTC)
