// Package lifecycle starts and stops the parts of one peer: a named group whose parts are
// started in the order they were added and stopped in the reverse order, within a limit. It
// owns no goroutine between runs and has no package-level state, so several peers may live in
// one process. It must not know what the parts are.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"time"
)

// DefaultDrainLimit is how long a Group takes to stop at most, when it says nothing else.
const DefaultDrainLimit = 10 * time.Second

// stragglerGrace is how long a part may still take to return once the drain limit is over and
// its context is cancelled, before it is given up.
const stragglerGrace = 500 * time.Millisecond

// Group is the parts of one peer. The zero value is ready to use. Fields and parts are set
// before Run; a Group is run once, by one goroutine.
type Group struct {
	// Log gets a line for each part that starts, ends by itself or does not stop. Nil: none.
	Log *slog.Logger
	// DrainLimit is how long all parts together may take to stop. 0: DefaultDrainLimit.
	DrainLimit time.Duration
	// Stacks gets the stacks of all goroutines when a part does not stop. Nil: os.Stderr.
	Stacks io.Writer

	parts         []*part
	stacksPrinted bool
}

type part struct {
	name  string
	run   func(context.Context) error
	close func(context.Context) error

	cancel context.CancelFunc
	done   chan struct{} // closed when run returned
	err    error         // what run returned; read after done
}

// Add adds a part. Either function may be nil.
//
// run works until its context ends and then returns nil or the context's error; it may return
// nil earlier, when its work is done. Any other error stops the whole group. Its context ends
// only when it is this part's turn to stop, not when the group's context ends: the parts added
// before it are then still running.
//
// close is called once, even when run has already returned, and before run's context ends. It
// drains: stops admitting, tells peers, finishes, and returns early when its context ends. A
// part that needs no drain leaves it nil. After it, run is waited for.
func (g *Group) Add(name string, run, close func(ctx context.Context) error) {
	g.parts = append(g.parts, &part{name: name, run: run, close: close})
}

// Run starts the parts in order and works until ctx ends, a part fails, or every part that has
// a run function has returned nil. Then it stops all parts, the last one first.
//
// It returns nil when nothing went wrong; else the error that ended the group, joined with what
// went wrong while stopping, each with its part's name in front. A part that does not stop
// within the limit is named in the error, its goroutine left behind.
func (g *Group) Run(ctx context.Context) error {
	var errs []error
	failed := g.work(ctx)
	if failed != nil {
		g.logger().Error("part failed, stopping the others", "error", failed.err)
		errs = append(errs, failed.err)
	}
	return errors.Join(append(errs, g.stop(context.WithoutCancel(ctx), failed)...)...)
}

// work starts the parts and returns the one whose failure ends the group: nil when ctx ended or
// no work is left.
func (g *Group) work(ctx context.Context) (failed *part) {
	ended := make(chan *part, len(g.parts))
	running := 0
	for _, p := range g.parts {
		var partCtx context.Context
		partCtx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
		p.done = make(chan struct{})
		if p.run == nil {
			close(p.done)
			continue
		}
		running++
		g.logger().Debug("part starts", "part", p.name)
		go func() {
			p.err = p.failure(p.run(partCtx))
			close(p.done)
			ended <- p
		}()
	}
	if running == 0 {
		<-ctx.Done()
		return nil
	}
	for ; running > 0; running-- {
		select {
		case <-ctx.Done():
			return nil
		case p := <-ended:
			if p.err != nil {
				return p
			}
		}
	}
	return nil
}

// stop stops all parts in reverse order and returns what went wrong, without the error of the
// part that failed before.
func (g *Group) stop(ctx context.Context, failed *part) []error {
	limit := g.DrainLimit
	if limit == 0 {
		limit = DefaultDrainLimit
	}
	drain, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// Past the limit nothing is waiting for its turn any more.
	forget := context.AfterFunc(drain, func() {
		for _, p := range g.parts {
			p.cancel()
		}
	})
	defer forget()
	var errs []error
	for _, p := range slices.Backward(g.parts) {
		begin := time.Now()
		err := g.stopPart(drain, p)
		if err != nil {
			g.logger().Error("part did not stop well", "part", p.name, "error", err)
			errs = append(errs, err)
		} else {
			g.logger().Debug("part stopped", "part", p.name, "took", time.Since(begin))
		}
		if p != failed && p.ended() && p.err != nil {
			errs = append(errs, p.err)
		}
	}
	return errs
}

// stopPart drains one part and waits until its run function returned, or until the drain limit
// and the grace behind it are over.
func (g *Group) stopPart(drain context.Context, p *part) error {
	stopped := make(chan error, 1)
	go func() {
		var err error
		if p.close != nil {
			err = p.failure(p.close(drain))
		}
		p.cancel()
		<-p.done
		stopped <- err
	}()
	select {
	case err := <-stopped:
		return err
	case <-drain.Done():
	}
	grace := time.NewTimer(stragglerGrace)
	defer grace.Stop()
	select {
	case err := <-stopped:
		return err
	case <-grace.C:
		g.printStacks()
		return fmt.Errorf("%s: did not stop within the drain limit and was left behind", p.name)
	}
}

// ended reports whether run has returned; only then may err be read.
func (p *part) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// failure puts the part's name before an error. The end of a context is not a failure.
func (p *part) failure(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// printStacks writes the stacks of all goroutines, once: the second straggler's are in them.
func (g *Group) printStacks() {
	if g.stacksPrinted {
		return
	}
	g.stacksPrinted = true
	out := g.Stacks
	if out == nil {
		out = os.Stderr
	}
	buf := make([]byte, 1<<20)
	fmt.Fprintf(out, "goroutines that are still there:\n%s\n", buf[:runtime.Stack(buf, true)])
}

func (g *Group) logger() *slog.Logger {
	if g.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return g.Log
}
