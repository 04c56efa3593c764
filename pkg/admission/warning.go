package admission

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// What the API server shows of the warnings of one request, in runes
// (k8s.io/apiserver/pkg/endpoints/filters/warning.go): once they are more than
// maxWarnings together, it cuts each to maxWarning and drops those that are still too
// many, without a word.
const (
	maxWarnings = 4096
	maxWarning  = 256
)

// setWarnings puts right the warnings: one that is no list becomes one, what is no text
// becomes its JSON, and those that the API server would cut or drop are cut here, so that
// the reader sees that there are more.
func setWarnings(response map[string]any) {
	given := response["warnings"]
	delete(response, "warnings")
	if given == nil {
		return
	}
	list, ok := given.([]any)
	if !ok {
		list = []any{given}
	}
	texts := make([]string, 0, len(list))
	for _, warning := range list {
		if s := printable(asText(warning)); s != "" {
			texts = append(texts, s)
		}
	}
	if texts = shortened(texts); len(texts) > 0 {
		response["warnings"] = texts
	}
}

// printable is a text without what makes the API server drop a warning: control
// characters become spaces.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd")))
}

// shortened are texts in the length that is shown.
func shortened(texts []string) []string {
	if runes(texts) <= maxWarnings {
		return texts
	}
	short := make([]string, 0, len(texts))
	for _, s := range texts {
		if all := []rune(s); len(all) > maxWarning {
			s = string(all[:maxWarning-1]) + "…"
		}
		short = append(short, s)
	}
	for n := len(short) - 1; runes(short) > maxWarnings; n-- {
		short = append(short[:n], fmt.Sprintf("… and %d more warnings", len(texts)-n))
	}
	return short
}

func runes(texts []string) int {
	n := 0
	for _, s := range texts {
		n += utf8.RuneCountInString(s)
	}
	return n
}
