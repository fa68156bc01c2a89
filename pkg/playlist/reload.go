package playlist

import (
	"fmt"
	"slices"
	"time"
)

// CheckReload reports how next breaks what a server promises of a media playlist that a
// client saw as old before, however long before (RFC 8216 section 6.2.1 and 6.2.2), or nil:
// sequence numbers never fall, a segment with all that applies to it stays what it was,
// segments leave only at the front and while three target durations remain, they come only
// at the back, each discontinuity that left was counted, and the target duration is never
// exceeded.
//
// Two things that the RFC forbids are allowed, because an encoder that restarts makes them
// true: the target duration and the version may grow, and a playlist that had ended may go on
// when it says so no more. It is for tests and for players that watch a server.
func CheckReload(old, next *Media) error {
	if err := checkNumbers(old, next); err != nil {
		return err
	}
	discontinuities := old.DiscontinuitySequence
	for i := range old.Entries {
		number := old.Sequence + uint64(i)
		if number < next.Sequence {
			if old.Entries[i].Discontinuity {
				discontinuities++
			}
			continue
		}
		if err := sameSegment(&old.Entries[i], &next.Entries[number-next.Sequence]); err != nil {
			return fmt.Errorf("segment %d: %w", number, err)
		}
	}
	missed := next.Sequence > old.end() // segments between came and left unseen, perhaps with discontinuities
	if next.DiscontinuitySequence < discontinuities || !missed && next.DiscontinuitySequence != discontinuities {
		return fmt.Errorf("DISCONTINUITY-SEQUENCE is %d and must be %d", next.DiscontinuitySequence, discontinuities)
	}
	return checkDurations(old, next)
}

func (m *Media) end() uint64 { return m.Sequence + uint64(len(m.Entries)) }

// checkNumbers compares the numbers of the playlists themselves.
func checkNumbers(old, next *Media) error {
	switch {
	case next.Sequence < old.Sequence:
		return fmt.Errorf("MEDIA-SEQUENCE fell from %d to %d", old.Sequence, next.Sequence)
	case next.TargetDuration < old.TargetDuration:
		return fmt.Errorf("TARGETDURATION fell from %d to %d", old.TargetDuration, next.TargetDuration)
	case next.Version < old.Version:
		return fmt.Errorf("VERSION fell from %d to %d", old.Version, next.Version)
	case next.end() < old.end():
		return fmt.Errorf("the last segments left: the playlist ended before %d and now ends before %d", old.end(), next.end())
	}
	return nil
}

func checkDurations(old, next *Media) error {
	var all time.Duration
	for i := range next.Entries {
		d := next.Entries[i].Duration
		all += d.Value
		if d.Rounded() > next.TargetDuration {
			return fmt.Errorf("segment %d lasts %s s, more than TARGETDURATION %d", next.Sequence+uint64(i), d.Text, next.TargetDuration)
		}
	}
	// The target duration may have grown since the segments left.
	need := 3 * time.Duration(old.TargetDuration) * time.Second
	if next.Sequence > old.Sequence && all < need && !next.Ended {
		return fmt.Errorf("segments left, and only %v remain where three target durations are %v", all, need)
	}
	return nil
}

func sameSegment(a, b *Entry) error {
	switch {
	case a.URI != b.URI:
		return fmt.Errorf("its URI changed from %s to %s", quote(a.URI), quote(b.URI))
	case a.Duration.Text != b.Duration.Text:
		return fmt.Errorf("its duration changed from %s to %s", a.Duration.Text, b.Duration.Text)
	case a.Title != b.Title:
		return fmt.Errorf("its title changed from %s to %s", quote(a.Title), quote(b.Title))
	case a.Discontinuity != b.Discontinuity:
		return fmt.Errorf("its discontinuity changed to %v", b.Discontinuity)
	case a.DateTime != b.DateTime:
		return fmt.Errorf("its date changed from %s to %s", quote(a.DateTime), quote(b.DateTime))
	case a.Gap != b.Gap:
		return fmt.Errorf("its gap changed to %v", b.Gap)
	case (a.Range == nil) != (b.Range == nil) || a.Range != nil && *a.Range != *b.Range:
		return fmt.Errorf("its byte range changed")
	case !slices.Equal(a.Tags, b.Tags):
		return fmt.Errorf("its tags changed from %q to %q", a.Tags, b.Tags)
	case a.Gap: // nobody loads it, so that what would apply to it does not matter
		return nil
	case (a.Map == nil) != (b.Map == nil) || a.Map != nil && !a.Map.equal(b.Map):
		return fmt.Errorf("its init segment changed")
	case !slices.EqualFunc(a.Keys, b.Keys, slices.Equal[Attributes]):
		return fmt.Errorf("its keys changed")
	}
	return nil
}
