package ingest

import (
	"sync"

	"dandelion/pkg/id"
	"dandelion/pkg/wire"
)

// maxUntold is how many files that are gone wait for their publishers to be told. Of more, a
// publisher learns with its next HAVE, or from its viewers.
const maxUntold = 10_000

// gone are files that publishers are to be told of. The zero value is ready; any goroutine.
type gone struct {
	mu      sync.Mutex
	paths   map[id.PublisherID][]string
	untold  int
	telling bool // a goroutine does
}

// Gone tells a publisher that has a session that the box does not hold a file any more. It does not
// block, and may be called from any goroutine.
func (s *Service) Gone(pub id.PublisherID, path id.Path) {
	g := &s.gone
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.untold >= maxUntold {
		return
	}
	if g.paths == nil {
		g.paths = map[id.PublisherID][]string{}
	}
	g.paths[pub] = append(g.paths[pub], string(path))
	g.untold++
	if !g.telling {
		g.telling = true
		go s.tellGone()
	}
}

// tellGone tells what there is to tell, and ends.
func (s *Service) tellGone() {
	for pub, paths := s.gone.next(); len(paths) > 0; pub, paths = s.gone.next() {
		if ses := s.acknowledging(pub); ses != nil {
			_ = ses.send(wire.Gone{Peer: ses.own(), Command: wire.CommandGone, FilePaths: paths})
		}
	}
}

// next takes files of one publisher; none when there are none, and then nobody tells.
func (g *gone) next() (id.PublisherID, []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for pub, all := range g.paths {
		paths := all[:min(len(all), wire.MaxGone)]
		if g.paths[pub] = all[len(paths):]; len(g.paths[pub]) == 0 {
			delete(g.paths, pub)
		}
		g.untold -= len(paths)
		return pub, paths
	}
	g.telling = false
	return "", nil
}

// acknowledging returns a session of the publisher that understands GONE, nil where there is none.
func (s *Service) acknowledging(pub id.PublisherID) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ses := range s.sessions {
		if ses.publisher == pub && ses.features.Has(wire.FeatureAck) {
			return ses
		}
	}
	return nil
}
