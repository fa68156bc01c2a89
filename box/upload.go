package box

import (
	"context"
	"slices"

	"dandelion/box/internal/grants"
	"dandelion/box/internal/ingest"
	"dandelion/box/internal/relay"
	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// upload gives the box's upload away: promised to publishers, and used for other boxes. It is what
// ingest knows as Uplink.
type upload struct {
	grants *grants.Service
	relay  *relay.Service
}

func (u upload) Open(pub id.PublisherID, knows bool) wire.Terms { return u.grants.Open(pub, knows) }
func (u upload) Close(pub id.PublisherID, knows bool)           { u.grants.Close(pub, knows) }
func (u upload) Terms(pub id.PublisherID) wire.Terms            { return u.grants.Terms(pub) }
func (u upload) Demand(pub id.PublisherID, rate int64)          { u.grants.Demand(pub, rate) }
func (u upload) Pass(f relay.File, nodes []wire.RelayNode)      { u.relay.Pass(f, nodes) }

func (b *Box) newUpload() upload {
	favoured := wishes(b.cfg.Favour)
	return upload{
		grants: grants.New(grants.Config{
			Available: b.available,
			Tell:      func(pub id.PublisherID) { b.ingest.Tell(pub) },
			Favours:   func(pub id.PublisherID) bool { return favoured.of(pub) != nil },
		}),
		relay: relay.New(relay.Config{Own: b.own, Uplink: b.limiter, Line: b.line, Registerer: b.metrics, Log: b.log}),
	}
}

// available is what of the upload may be promised now, bytes/s: what else the household sends
// comes first.
func (b *Box) available() int64 { return max(0, b.limiter.Rate()-b.report.OtherUpload()) }

func (b *Box) owner() ingest.Owner {
	refused, favoured := wishes(b.cfg.Refuse), wishes(b.cfg.Favour)
	return ingest.Owner{
		Refuses: refused.has,
		Favours: favoured.of,
		Seed:    int64(b.cfg.SeedLimit),
	}
}

type wishList []wish

// wishes reads what Validate has checked.
func wishes(texts []string) (list wishList) {
	for _, text := range texts {
		if w, err := parseWish(text); err == nil {
			list = append(list, w)
		}
	}
	return list
}

// has reports whether the list names the stream, or its publisher. With "" it must name the publisher.
func (l wishList) has(pub id.PublisherID, stream id.StreamName) bool {
	return slices.Contains(l, wish{publisher: pub}) || stream != "" && slices.Contains(l, wish{pub, stream})
}

// of lists the streams of a publisher that are named; "*" is all of them.
func (l wishList) of(pub id.PublisherID) (streams []string) {
	for _, w := range l {
		switch {
		case w.publisher != pub:
		case w.stream == "":
			return []string{"*"}
		default:
			streams = append(streams, string(w.stream))
		}
	}
	return streams
}

// runUpload keeps grants and relaying sessions until ctx ends.
func (b *Box) runUpload(ctx context.Context) error {
	relaying := make(chan error, 1)
	go func() { relaying <- b.upload.relay.Run(ctx) }()
	err := b.upload.grants.Run(ctx)
	if relayErr := <-relaying; err == nil {
		err = relayErr
	}
	return err
}
