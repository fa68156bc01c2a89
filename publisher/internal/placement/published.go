package placement

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"dandelion/pkg/keys"
)

// publishRankings writes BOX_RANKING and BOX_LIST for other programs at every tick until ctx ends.
func (p *Placement) publishRankings(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			p.publishRanking(ctx)
		}
	}
}

func (p *Placement) publishRanking(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	p.mu.Lock()
	ranked := p.ranked()
	p.mu.Unlock()
	k := keys.Publisher(p.cfg.Own.ID)
	_, err := p.cfg.Redis.TxPipelined(ctx, func(t redis.Pipeliner) error {
		t.Del(ctx, k.BoxRanking())
		for _, r := range ranked {
			t.ZAdd(ctx, k.BoxRanking(), redis.Z{Member: string(r.ID), Score: r.Score})
		}
		return nil
	})
	if err == nil {
		_, err = p.cfg.Redis.TxPipelined(ctx, func(t redis.Pipeliner) error {
			t.Del(ctx, k.BoxList())
			for _, r := range ranked {
				if r.Excluded == "" {
					t.SAdd(ctx, k.BoxList(), string(r.ID))
				}
			}
			return nil
		})
	}
	if err != nil && ctx.Err() == nil {
		p.log.Debug("the ranking is not in Redis", "reason", err)
	}
}
