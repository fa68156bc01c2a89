package state

import (
	"context"
	"errors"
	"slices"

	"github.com/redis/go-redis/v9"
)

// sendOnce is a hook that keeps a client of a Redis Cluster from sending a command again whose answer did not
// come, as it does by itself; MaxRetries has no say in that. Where a node answers that the key is
// elsewhere (MOVED, ASK), the command was not carried out and goes on to the right node.
type sendOnce struct{ client *redis.ClusterClient }

func (sendOnce) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h sendOnce) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, once{cmd})
		h.failed(ctx, err)
		return err
	}
}

func (h sendOnce) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		wrapped := slices.Clone(cmds)
		for i, cmd := range wrapped {
			wrapped[i] = once{cmd}
		}
		err := next(ctx, wrapped)
		h.failed(ctx, err)
		return err
	}
}

// failed has the client ask the nodes, in the background, who has which slots: a replica may have taken over.
func (h sendOnce) failed(ctx context.Context, err error) {
	var answer redis.Error
	if err != nil && !errors.As(err, &answer) && ctx.Err() == nil {
		h.client.ReloadState(ctx)
	}
}

// once is a command that is sent once.
type once struct{ redis.Cmder }

func (once) NoRetry() bool { return true }
