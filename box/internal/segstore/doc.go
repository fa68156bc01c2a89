// Package segstore keeps the files that publishers give to a box: on disk, visible only when
// complete and correct, within limits, until their TTL. It owns two directories and everything
// below them, and the decision which file goes when room is needed. It knows nothing of
// sockets, messages or HTTP.
//
// The disk is the truth. Below each directory:
//
//	<publisher-id>/<path>                       the file, where a web server may serve it too
//	.committed/<expiry>.<sha256>.<unique>       a hard link to the same inode: its name carries
//	                                            digest and expiry (unix ms; 0: no end; before
//	                                            2024: the ms left, of a clock that was not set)
//	.incoming/<unique>                          files that are being received
//	.boot                                       the boot of the machine that wrote here last
//	.lock                                       held by the process that owns the directory
//
// A commit renames the received file into .committed, then links it at its path, replacing an
// older file in one step, then removes the older file's name in .committed. A removal takes the
// path first and the name in .committed last. So a crash at any moment leaves, besides whole
// files, only: a file in .incoming, a name in .committed without a path, or a path without a
// name in .committed. The scan at start, which matches the two by inode, removes all three.
//
// Lock order: a path's lock, then Store.mu. No file is read or written under Store.mu, no
// file's content under a path's lock, and nobody holds two paths' locks.
package segstore
