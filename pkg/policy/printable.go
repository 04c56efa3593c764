package policy

import (
	"strings"
	"unicode"
)

// Printable is a text of somebody else's for a terminal: each character that would do
// something to it other than to show is replaced by one that does not. Tabs stay.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\t' && Unprintable(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// Unprintable reports whether a character moves a terminal's cursor, colours it, answers
// for its user, turns the direction of writing round, or formats text unseen.
func Unprintable(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
