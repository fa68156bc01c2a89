package box

import (
	"context"
	"sync"
	"time"
)

const (
	leaveReason = "the box shuts down"
	// viewerGrace is how long viewers are still taken after the goodbyes: some were sent here a
	// moment before.
	viewerGrace = 1500 * time.Millisecond
	// viewerDrain is when downloads that are still under way are cut off, so that the whole ends
	// within lifecycle.DefaultDrainLimit.
	viewerDrain = 9500 * time.Millisecond
	// ingestDrain is how long files that are under way may take.
	ingestDrain = 5 * time.Second
	// entranceDrain is how long entrances may take to hear it: they need no time to finish.
	entranceDrain = 2 * time.Second
)

// drain tells everybody at once that the box leaves, and ends when publishers and viewers have
// finished what was under way, or at their limits.
func (b *Box) drain(ctx context.Context) error {
	// Entrances are told beside the rest; one that does not read must not hold the box.
	told := make(chan struct{})
	entrances, cancel := context.WithTimeout(ctx, entranceDrain)
	defer cancel()
	go func() {
		defer close(told)
		b.report.Drain(entrances, leaveReason)
	}()
	var leaving sync.WaitGroup
	leaving.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, ingestDrain)
		defer cancel()
		b.ingest.Drain(ctx, leaveReason)
		b.upload.relay.Drain(ctx)
	})
	leaving.Go(func() { b.drainViewers(ctx) })
	leaving.Wait()
	select {
	case <-told:
	case <-entrances.Done(): // their sessions end with report's Run
	}
	return nil
}

func (b *Box) drainViewers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, viewerDrain)
	defer cancel()
	grace := viewerGrace
	if t := b.Totals(); t.Files == 0 {
		grace = 0 // nobody was sent here
	}
	if cut := b.edge.Drain(ctx, grace); cut > 0 {
		b.log.Warn("answers under way were cut off: the box leaves and they were too slow", "answers", cut)
	}
}
