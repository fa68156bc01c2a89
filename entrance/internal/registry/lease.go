package registry

import (
	"context"
	"strconv"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
)

// endScript removes members of BOX_SET whose score is still the one that the caller knows, so
// that no process ends a lease which another one has renewed. It touches that key alone, as a
// Redis Cluster demands. ARGV: member, score, member, score…; it returns the members removed.
var endScript = redis.NewScript(`
local ended = {}
for i = 1, #ARGV, 2 do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if score and tonumber(score) == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
    ended[#ended + 1] = ARGV[i]
  end
end
return ended
`)

// endChunk is how many leases one call of the script ends at most: Redis does nothing else
// meanwhile.
const endChunk = 256

// claim is a lease as somebody knows it.
type claim struct {
	box   id.BoxID
	score float64
}

// endLeases ends the leases that are still as claimed and returns those. Repeating it after an
// error does no harm.
func (r *Registry) endLeases(ctx context.Context, claims []claim) (ended []id.BoxID, err error) {
	for len(claims) > 0 {
		n := min(len(claims), endChunk)
		argv := make([]any, 0, 2*n)
		for _, c := range claims[:n] {
			argv = append(argv, string(c.box), strconv.FormatFloat(c.score, 'f', -1, 64))
		}
		claims = claims[n:]
		removed, err := endScript.Run(ctx, r.state, []string{r.keys.BoxSet()}, argv...).StringSlice()
		if err != nil {
			return ended, err
		}
		for _, box := range removed {
			ended = append(ended, id.BoxID(box))
		}
	}
	return ended, nil
}
