package box

import (
	"log/slog"

	"golang.org/x/sys/unix"

	"dandelion/box/internal/edge"
	"dandelion/box/internal/ingest"
)

const (
	// ownFiles is what the process keeps open besides viewers and publishers: listeners, directories,
	// the database, sessions with entrances and Redis, and answers to connections that are too many.
	ownFiles = 160
	// A publisher takes its connection, the file that comes in, and the directories that a commit
	// walks through; a viewer its connection and the file.
	perPublisher = 4
	perViewer    = 2
	// leastConnections is taken of each kind also where the limit is too low for it.
	leastConnections = 8
)

// shares divides the files that the process may have open among publishers and viewers, so that
// viewers, however many come, never take what a publisher or the store needs.
func shares(files uint64) (publishers, viewers int) {
	free := int(min(files, 1<<20)) - ownFiles
	publishers = min(max(free/4/perPublisher, leastConnections), ingest.DefaultLimits().Connections)
	viewers = min(max((free-publishers*perPublisher)/perViewer, leastConnections), edge.DefaultMaxConns)
	return publishers, viewers
}

// openFiles is how many files the process may have open.
func openFiles(log *slog.Logger) uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	if least := uint64(ownFiles + leastConnections*(perPublisher+perViewer)); uint64(limit.Cur) < least {
		log.Warn("the process may open very few files; raise the limit (ulimit -n, LimitNOFILE=)", "limit", limit.Cur, "want", least)
	}
	return uint64(limit.Cur)
}
