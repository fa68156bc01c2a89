package playlist

import "fmt"

// CheckReload reports how next breaks what a server promises of a media playlist that a
// client saw as old before (RFC 8216 section 6.2.1 and 6.2.2), or nil: sequence numbers never
// fall, the segment at a number stays what it was, segments leave only at the front and come
// only at the back, each discontinuity that left was counted, and the target duration does not
// shrink. It is for tests and for players that watch a server.
func CheckReload(old, next *Media) error {
	if next.Sequence < old.Sequence {
		return fmt.Errorf("MEDIA-SEQUENCE fell from %d to %d", old.Sequence, next.Sequence)
	}
	if next.TargetDuration < old.TargetDuration {
		return fmt.Errorf("TARGETDURATION fell from %d to %d", old.TargetDuration, next.TargetDuration)
	}
	oldEnd, nextEnd := old.Sequence+uint64(len(old.Entries)), next.Sequence+uint64(len(next.Entries))
	if nextEnd < oldEnd {
		return fmt.Errorf("the last segments left: the playlist ended before %d and now ends before %d", oldEnd, nextEnd)
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
	missed := next.Sequence > oldEnd // segments between came and left unseen, perhaps with discontinuities
	if next.DiscontinuitySequence < discontinuities || !missed && next.DiscontinuitySequence != discontinuities {
		return fmt.Errorf("DISCONTINUITY-SEQUENCE is %d and must be %d", next.DiscontinuitySequence, discontinuities)
	}
	for i := range next.Entries {
		if d := next.Entries[i].Duration; d.Rounded() > next.TargetDuration {
			return fmt.Errorf("segment %d lasts %s s, more than TARGETDURATION %d", next.Sequence+uint64(i), d.Text, next.TargetDuration)
		}
	}
	return nil
}

func sameSegment(a, b *Entry) error {
	switch {
	case a.URI != b.URI:
		return fmt.Errorf("its URI changed from %s to %s", quote(a.URI), quote(b.URI))
	case a.Duration.Text != b.Duration.Text:
		return fmt.Errorf("its duration changed from %s to %s", a.Duration.Text, b.Duration.Text)
	case a.Discontinuity != b.Discontinuity:
		return fmt.Errorf("its discontinuity changed to %v", b.Discontinuity)
	case a.DateTime != b.DateTime:
		return fmt.Errorf("its date changed from %s to %s", quote(a.DateTime), quote(b.DateTime))
	case a.Gap != b.Gap:
		return fmt.Errorf("its gap changed to %v", b.Gap)
	case (a.Map == nil) != (b.Map == nil) || a.Map != nil && !a.Map.equal(b.Map):
		return fmt.Errorf("its init segment changed")
	}
	return nil
}
