package compile

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// maxRecovered is how many errors are looked for in one text: a person reads ten
// at a time, and so many does the status show.
const maxRecovered = 10

// maxSections is in how many sections of a text errors are looked for. Each takes
// up to 50 µs, and a text of 1 MiB may have a hundred thousand.
const maxSections = 500

// recoverErrors finds the errors of a text beyond the one at which OPA's parser
// stopped. It parses the sections after that one by one, each below the package
// and the imports: what an unclosed brace does to the rules that follow is no
// error of theirs. A section begins with a line at the margin after an empty one.
func (l *language) recoverErrors(m policy.Module, version policy.RegoVersion, first ast.Errors) ast.Errors {
	if len(first) == 0 || first[0].Location == nil {
		return first
	}
	header, sections := split(m.Source)
	if first[0].Location.Row <= header.rows() {
		return first // without the imports no section makes sense
	}
	sections = slices.DeleteFunc(sections, func(s section) bool { return s.row <= first[0].Location.Row })
	return append(slices.Clone(first), l.sectionErrors(m, version, header, sections)...)
}

// sectionErrors are the first errors of sections.
func (l *language) sectionErrors(m policy.Module, version policy.RegoVersion, header section, sections []section) ast.Errors {
	var found ast.Errors
	for _, s := range sections[:min(len(sections), maxSections)] {
		part := m
		part.Source = header.text + s.text
		_, err := l.parse(part.ID.String(), part.Source, version)
		for _, e := range astErrors(err) {
			if e.Location == nil || e.Location.Row <= header.rows() {
				continue
			}
			moved := *e.Location
			moved.Row += s.row - 1 - header.rows()
			found = append(found, &ast.Error{Code: e.Code, Message: e.Message, Location: &moved})
			break // the others of a section follow from its first
		}
		if len(found) >= maxRecovered {
			break
		}
	}
	return found
}

// likelier is the version in which fewer sections of a text are wrong; v1 if that
// does not tell.
func (l *language) likelier(m policy.Module) policy.RegoVersion {
	header, sections := split(m.Source)
	v0 := l.sectionErrors(m, policy.RegoV0, header, sections)
	v1 := l.sectionErrors(m, policy.RegoV1, header, sections)
	if len(v0) < len(v1) {
		return policy.RegoV0
	}
	return policy.RegoV1
}

// section is a part of a text that stands by itself, and its first row.
type section struct {
	row  int
	text string
}

func (s section) rows() int { return strings.Count(s.text, "\n") }

// split parts a text into its package and imports, and the sections below.
func split(source string) (header section, sections []section) {
	row, offset, afterEmpty := 0, 0, true
	begin := section{row: 1} // of the part that is being read
	start := 0               // its offset
	var parts []section
	for line := range strings.Lines(source) {
		row++
		begins := afterEmpty && atMargin(line) && (len(parts) > 0 || !isHeader(line))
		afterEmpty = strings.TrimSpace(line) == ""
		if begins {
			begin.text = source[start:offset]
			parts = append(parts, begin)
			begin, start = section{row: row}, offset
		}
		offset += len(line)
	}
	begin.text = source[start:]
	parts = append(parts, begin)
	return parts[0], parts[1:]
}

// atMargin reports whether the line can begin a rule: it starts in the first
// column with a name.
func atMargin(line string) bool {
	c := line[0]
	return c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

func isHeader(line string) bool {
	return strings.HasPrefix(line, "package") || strings.HasPrefix(line, "import")
}
