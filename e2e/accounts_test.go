//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"

	"dandelion/pkg/watch"
)

// accounts is what GET /api/v1/traffic?by=box tells.
type accounts struct {
	Rows []accountRow `json:"rows"`
}

type accountRow struct {
	Box             string `json:"box"`
	Bytes           int64  `json:"bytes"`
	FailedBytes     int64  `json:"failed_bytes"`
	RedirectedBytes int64  `json:"redirected_bytes"`
	Dropped         int64  `json:"dropped"`
}

func (f *fleet) accounts() (map[string]accountRow, error) {
	a, err := fetchJSON[accounts](f.t.Context(), client, f.entrance.url()+"/api/v1/traffic?by=box")
	byBox := map[string]accountRow{}
	for _, row := range a.Rows {
		byBox[row.Box] = row
	}
	return byBox, err
}

// awaitOver waits until all viewers have seen the end of the stream, so that no transfer is broken off.
func awaitOver(t *testing.T, players []*watch.Player) {
	t.Helper()
	for i, p := range players {
		eventually(t, patience, func() error {
			if s := p.Report().State; s != watch.Over {
				return fmt.Errorf("viewer %d is still %s after the stream's end", i, s)
			}
			return nil
		})
	}
}

// TestAccounts: what the entrance's accounts say is to the byte what viewers received, also when the
// entrance and a box are killed meanwhile. Of a box that serves viewers itself, what it had not written into its
// journal when it was killed, the deliveries of the last second, is lost, and no more; behind nginx nothing is.
func TestAccounts(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) *fleet{
		"builtin": func(t *testing.T) *fleet { return newFleet(t, plan{boxes: 2}) },
		"nginx": func(t *testing.T) *fleet {
			fleet := newFleet(t, plan{boxes: -1})
			for range 2 {
				fleet.addNginxBox("", "")
			}
			fleet.awaitBoxes(2)
			return fleet
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fleet := start(t)
			encoder := encode(t, fleet.source, ts, "+delete_segments")
			fleet.awaitMore(4)
			viewers := watching(t, fleet.index(), 4)
			awaitPlayed(t, viewers, 4*time.Second)
			fleet.entrance.kill()
			awaitPlayed(t, viewers, 2*time.Second)
			fleet.entrance.start()
			awaitPlayed(t, viewers, 4*time.Second)

			victim := fleet.boxes[0]
			victim.kill()
			mayLose := int64(len(viewers)) * largest(viewers) // each viewer takes a segment in 2 s
			if name == "nginx" {
				mayLose = 0
			}
			awaitPlayed(t, viewers, 2*time.Second)
			victim.start()
			awaitPlayed(t, viewers, 4*time.Second)
			finish(t, encoder)
			awaitOver(t, viewers)
			for _, b := range fleet.boxes[1:] {
				fleet.accounted(viewers, b, 0)
			}
			fleet.accounted(viewers, victim, mayLose)
		})
	}
}

// accounted waits until the entrance's accounts have the bytes that viewers received from a box, but for
// what may be lost.
func (f *fleet) accounted(viewers []*watch.Player, b *daemon, mayLose int64) {
	f.t.Helper()
	want := received(viewers, b)
	var row accountRow
	err := awaiting(f.t, soon, func() error {
		rows, err := f.accounts()
		if row = rows[b.id]; err == nil && row.Bytes-row.FailedBytes != want {
			err = fmt.Errorf("%s: the accounts have %d bytes, viewers received %d", b.name, row.Bytes-row.FailedBytes, want)
		}
		return err
	})
	if lost := want - (row.Bytes - row.FailedBytes); err != nil && (lost <= 0 || lost > mayLose) {
		f.t.Errorf("%v; lost may be %d", err, mayLose)
	}
	if row.Dropped != 0 {
		f.t.Errorf("%s dropped %d deliveries", b.name, row.Dropped)
	}
	f.t.Logf("%s: %d bytes in the accounts, %d received, of which %d may be lost; viewers were sent there for %d",
		b.name, row.Bytes-row.FailedBytes, want, mayLose, row.RedirectedBytes)
}

// received is how many bytes viewers have from a box.
func received(viewers []*watch.Player, b *daemon) (n int64) {
	for _, p := range viewers {
		n += p.Report().Bytes[b.public]
	}
	return n
}

// largest is about the size of a segment: the mean of a viewer's, and as much again.
func largest(viewers []*watch.Player) (n int64) {
	for _, p := range viewers {
		r, sum := p.Report(), int64(0)
		for _, bytes := range r.Bytes {
			sum += bytes
		}
		n = max(n, 2*sum/int64(max(r.Segments, 1)))
	}
	return n
}
