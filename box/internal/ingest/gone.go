package ingest

import (
	"sync"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// maxUntold is how many files that are gone wait for their publishers to be told. Of more, a
// publisher learns with its next HAVE, or from its viewers.
const maxUntold = 10_000

// gone are files that publishers are to be told of. The zero value is ready; any goroutine. A
// publisher in paths is being told by a goroutine of its own: one that reads slowly delays no other.
type gone struct {
	mu     sync.Mutex
	paths  map[id.PublisherID][]id.Path
	untold int
}

// Gone tells a publisher that has a session that the box does not hold a file any more. It does not
// block, and may be called from any goroutine.
func (s *Service) Gone(pub id.PublisherID, path id.Path) {
	g := &s.gone
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.untold >= maxUntold {
		s.metrics.untold.Inc()
		return
	}
	if g.paths == nil {
		g.paths = map[id.PublisherID][]id.Path{}
	}
	if _, told := g.paths[pub]; !told {
		go s.tellGone(pub)
	}
	g.paths[pub] = append(g.paths[pub], path)
	g.untold++
}

// tellGone tells a publisher what there is to tell, and ends.
func (s *Service) tellGone(pub id.PublisherID) {
	for paths := s.gone.next(pub); len(paths) > 0; paths = s.gone.next(pub) {
		message := wire.Gone{Command: wire.CommandGone}
		for _, path := range paths {
			if _, again := s.cfg.Store.Get(pub, path); !again { // stored anew meanwhile
				message.FilePaths = append(message.FilePaths, string(path))
			}
		}
		if ses := s.with(pub, wire.FeatureAck); ses != nil && len(message.FilePaths) > 0 {
			message.Peer = ses.own()
			_ = ses.send(message)
		}
	}
}

// next takes files of a publisher; none when there are none, and then nobody tells it.
func (g *gone) next(pub id.PublisherID) []id.Path {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := g.paths[pub]
	if len(all) == 0 {
		delete(g.paths, pub)
		return nil
	}
	paths := all[:min(len(all), wire.MaxGone)]
	g.paths[pub] = all[len(paths):]
	g.untold -= len(paths)
	return paths
}
