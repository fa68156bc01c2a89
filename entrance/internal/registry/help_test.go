package registry

import (
	"github.com/redis/go-redis/v9"

	"dandelion/pkg/id"
)

func redisZ(box id.BoxID, score float64) redis.Z { return redis.Z{Score: score, Member: string(box)} }
