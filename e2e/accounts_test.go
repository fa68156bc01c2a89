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
// entrance and a box are killed meanwhile. What a box had not written into its journal when it was killed, the
// deliveries of the last second, is lost, and no more.
func TestAccounts(t *testing.T) {
	t.Parallel()
	fleet := newFleet(t, plan{})
	encoder := encode(t, fleet.source, ts, "+delete_segments")
	fleet.awaitMore(4)
	viewers := watching(t, fleet.index(), 4)
	awaitPlayed(t, viewers, 6*time.Second)
	fleet.entrance.kill()
	awaitPlayed(t, viewers, 2*time.Second)
	fleet.entrance.start()
	awaitPlayed(t, viewers, 6*time.Second)

	victim := fleet.boxes[0]
	victim.kill()
	lately := received(viewers, victim) // at most the last of it was not in the journal yet
	awaitPlayed(t, viewers, 2*time.Second)
	victim.start()
	awaitPlayed(t, viewers, 6*time.Second)
	finish(t, encoder)
	awaitOver(t, viewers)

	for _, b := range fleet.boxes {
		want := received(viewers, b)
		var row accountRow
		short := func() error {
			rows, err := fleet.accounts()
			if row = rows[b.id]; err == nil && row.Bytes-row.FailedBytes != want {
				err = fmt.Errorf("%s: the accounts have %d bytes, viewers received %d", b.name, row.Bytes-row.FailedBytes, want)
			}
			return err
		}
		if b != victim {
			eventually(t, soon, short)
		} else if err := awaiting(t, soon, short); err != nil {
			// Each viewer takes a segment in 2 s, and the killed box cut off what it was sending.
			lost, most := want-(row.Bytes-row.FailedBytes), int64(len(viewers))*largest(viewers)
			if lost < 0 || lost > min(most, lately) {
				t.Errorf("%v; a kill may lose %d", err, min(most, lately))
			}
			t.Logf("the kill of %s lost the account of %d bytes, of %d that it may", b.name, lost, most)
		}
		if row.Dropped != 0 {
			t.Errorf("%s dropped %d deliveries", b.name, row.Dropped)
		}
		t.Logf("%s: %d bytes in the accounts, %d received, %d that viewers were sent there for", b.name, row.Bytes-row.FailedBytes, want, row.RedirectedBytes)
	}
}

// received is how many bytes viewers have from a box.
func received(viewers []*watch.Player, b *daemon) (n int64) {
	for _, p := range viewers {
		n += p.Report().Bytes[b.addr]
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
