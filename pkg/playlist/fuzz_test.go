package playlist

import (
	"bytes"
	"testing"
)

// Whatever is parsed is written so that it parses again to the same text, and never holds a
// line that was not one before.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, in []byte) {
		media, multi, err := Parse(in)
		if err != nil {
			if media != nil || multi != nil {
				t.Fatalf("an error and a playlist: %v", err)
			}
			return
		}
		if (media == nil) == (multi == nil) {
			t.Fatal("want exactly one of the two kinds")
		}
		if multi != nil {
			out := multi.AppendTo(nil)
			again, err := ParseMultivariant(out)
			if err != nil {
				t.Fatalf("%v in what was written of %q:\n%s", err, in, out)
			}
			if second := again.AppendTo(nil); !bytes.Equal(out, second) {
				t.Fatalf("written as\n%s\nthen as\n%s", out, second)
			}
			multi.Rewrite(func(uri string) (string, bool) { return "x", len(uri)%2 == 0 })
			return
		}
		out := media.AppendTo(nil)
		again, err := ParseMedia(out)
		if err != nil {
			t.Fatalf("%v in what was written of %q:\n%s", err, in, out)
		}
		if second := again.AppendTo(nil); !bytes.Equal(out, second) {
			t.Fatalf("written as\n%s\nthen as\n%s", out, second)
		}
		if len(again.Entries) != len(media.Entries) {
			t.Fatalf("%d entries became %d", len(media.Entries), len(again.Entries))
		}
	})
}

func FuzzAttributes(f *testing.F) {
	f.Fuzz(func(t *testing.T, in string) {
		list, err := ParseAttributes(in)
		if err != nil {
			return
		}
		text := list.String()
		again, err := ParseAttributes(text)
		if err != nil || again.String() != text {
			t.Fatalf("%q became %q, then %q, %v", in, text, again.String(), err)
		}
	})
}
