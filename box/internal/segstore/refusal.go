package segstore

import (
	"errors"
	"fmt"
	"syscall"

	"dandelion/pkg/wire"
)

// Refusal says why the store does not take a file. The kind crosses the wire, and so may the
// text: it names no directory of this machine.
type Refusal struct {
	Kind wire.Kind
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }

func refuse(kind wire.Kind, format string, args ...any) *Refusal {
	return &Refusal{Kind: kind, Err: fmt.Errorf(format, args...)}
}

// isNoSpace reports whether the file system, not the store's own limit, is out of room.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
