package admission

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// What the API server would cut or drop without a word is cut here, so that the reader
// sees it.
func TestWarningsAreShortened(t *testing.T) {
	long := strings.Repeat("é", 300)
	for _, test := range []struct {
		name        string
		given       []string
		want, runes int // how many warnings, and how long all are together
		last        string
	}{
		{"what fits is left alone, however long one is", []string{strings.Repeat("x", 4096)}, 1, 4096, strings.Repeat("x", 4096)},
		{"one that is too long is cut", []string{strings.Repeat("é", 4097)}, 1, 256, strings.Repeat("é", 255) + "…"},
		{"of many each is cut first", repeated(long, 14), 14, 14 * 256, strings.Repeat("é", 255) + "…"},
		{"and of too many the rest is counted", repeated(long, 40), 16, 15*256 + 22, "… and 25 more warnings"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := shortened(test.given)
			if len(got) != test.want || runes(got) != test.runes || got[len(got)-1] != test.last {
				t.Errorf("got %d warnings of %d runes, the last is %q; want %d of %d, %q", len(got), runes(got), got[len(got)-1], test.want, test.runes, test.last)
			}
			for _, s := range got {
				if !utf8.ValidString(s) {
					t.Errorf("%q is cut within a character", s)
				}
			}
		})
	}
}

func repeated(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}
