package overview

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const (
	// nothing stands in a cell that has nothing to say.
	nothing = "-"
	// maxKeys is how many keys of a revision are named; kubectl names as many
	// images.
	maxKeys = 3
	// shortFingerprint is enough of a fingerprint to tell one from another.
	shortFingerprint = 12
	// indent sets source off from what is said about it.
	indent = "    "
)

// Text is the overview as a table, with a block for each problem and what there is
// to say about replicas. now is what ages are measured by.
func (o Overview) Text(now time.Time) string {
	var parts []string
	if len(o.ConfigMaps) > 0 {
		parts = append(parts, o.table(now))
	}
	for _, c := range o.ConfigMaps {
		for _, p := range c.Problems {
			parts = append(parts, p.block())
		}
		for _, w := range c.Warnings {
			parts = append(parts, c.Namespace+"/"+c.Name+": warning: "+w.block())
		}
		if c.Message != "" {
			parts = append(parts, line(c.Namespace+"/"+c.Name+": "+c.Message))
		}
	}
	parts = append(parts, warningLines(o.Warnings))
	if o.Replicas != nil {
		parts = append(parts, replicaLines(o.Replicas, now))
	}
	return join(parts)
}

func (o Overview) table(now time.Time) string {
	rows := [][]string{{"NAMESPACE", "NAME", "STATUS", "IN-FORCE", "REVISION", "AGE"}}
	for _, c := range o.ConfigMaps {
		status := c.Status
		if status == statusNone {
			status = "none yet"
		}
		revision := nothing
		if c.Revision > 0 {
			revision = fmt.Sprint(c.Revision)
		}
		rows = append(rows, []string{c.Namespace, c.Name, status, cmp.Or(string(c.InForce), nothing), revision, age(c.Recorded, now)})
	}
	return table(rows)
}

// block is a problem, and the line of source that it is about.
func (p Problem) block() string {
	text := line(p.String())
	if p.Source != "" {
		// The tabs of both stay, and clean replaces character for character, so
		// the caret stays below its column.
		text += indent + policy.Printable(p.Source) + "\n" + indent + policy.Printable(p.Caret) + "\n"
	}
	return text
}

// Text is the history as a table. now is what ages are measured by.
func (h History) Text(now time.Time) string {
	rows := [][]string{{"REVISION", "RECORDED", "KEYS", "FINGERPRINT", "STATE"}}
	for _, r := range h.Revisions {
		rows = append(rows, []string{
			fmt.Sprint(r.Number), age(r.Recorded, now), shortKeys(r.Keys), cmp.Or(short(r.Fingerprint), nothing), r.state(),
		})
	}
	if len(h.Revisions) == 0 {
		rows = nil
	}
	return join([]string{table(rows), warningLines(h.Warnings)})
}

// state is in one line whether a revision is in force, or could be.
func (r Revision) state() string {
	var parts []string
	if r.InForce {
		parts = append(parts, "in force")
	}
	if len(r.Problems) > 0 {
		parts = append(parts, "does not compile: "+r.Problems[0].String())
	}
	if r.Error != "" {
		parts = append(parts, "cannot be read: "+r.Error)
	}
	return strings.Join(parts, "; ")
}

// sourceText is the Rego of a revision, each key below a comment with its name. It
// is not exact if clean had to replace something in it.
func sourceText(r configmap.Revision) (text string, exact bool) {
	var parts []string
	exact = true
	for _, id := range r.Modules.IDs() {
		source := r.Modules[id].Source
		shown := cleanSource(source)
		exact = exact && shown == source
		if shown != "" && !strings.HasSuffix(shown, "\n") {
			shown += "\n"
		}
		parts = append(parts, fmt.Sprintf("# %s, revision %d\n%s", id, r.Number, shown))
	}
	return join(parts), exact
}

func shortKeys(keys []string) string {
	text := strings.Join(keys[:min(len(keys), maxKeys)], ",")
	if more := len(keys) - maxKeys; more > 0 {
		text += fmt.Sprintf(" + %d more", more)
	}
	return cmp.Or(text, nothing)
}

func short(fingerprint string) string { return fingerprint[:min(len(fingerprint), shortFingerprint)] }

// replicaLines tell how many replicas are live, whether they agree, and who does
// not or is gone.
func replicaLines(replicas []Replica, now time.Time) string {
	var live, gone []Replica
	for _, r := range replicas {
		if r.Gone {
			gone = append(gone, r)
		} else {
			live = append(live, r)
		}
	}
	var text strings.Builder
	if len(live) == 0 {
		text.WriteString("replicas: none is live in the namespace of kube-rego (--kube-rego-namespace)\n")
	} else {
		common, n := mostFrequent(live)
		fmt.Fprintf(&text, "replicas: %d live, %d with the same policies in force (%s)\n", len(live), n, policy.Printable(short(common)))
		for _, r := range live {
			if r.Fingerprint != common {
				text.WriteString(line(fmt.Sprintf("replica %s has others in force (%s)", r.Identity, short(r.Fingerprint))))
			}
		}
	}
	for _, r := range gone {
		text.WriteString(line(fmt.Sprintf("replica %s is gone: not heard of for %s", r.Identity, age(r.Renewed, now))))
	}
	return text.String()
}

// mostFrequent is the fingerprint that most of the replicas have, and how many do;
// the smallest if there are several.
func mostFrequent(replicas []Replica) (fingerprint string, n int) {
	counts := make(map[string]int)
	for _, r := range replicas {
		counts[r.Fingerprint]++
	}
	for f, count := range counts {
		if count > n || count == n && f < fingerprint {
			fingerprint, n = f, count
		}
	}
	return fingerprint, n
}

func warningLines(warnings []string) string {
	var text strings.Builder
	for _, w := range warnings {
		text.WriteString(line(w))
	}
	return text.String()
}

// table aligns cells as kubectl does. No cell of a row may hold a tab.
func table(rows [][]string) string {
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 6, 4, 3, ' ', 0)
	for _, row := range rows {
		for n, cell := range row {
			row[n] = oneLine(cell)
		}
		_, _ = fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // a buffer takes everything
	var trimmed strings.Builder
	for l := range strings.Lines(text.String()) {
		trimmed.WriteString(strings.TrimRight(l, " \n") + "\n") // the last cell may be empty
	}
	return trimmed.String()
}

// join puts an empty line between parts that are not empty.
func join(parts []string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), "\n")
}

func age(then, now time.Time) string {
	if then.IsZero() {
		return nothing
	}
	return duration.HumanDuration(max(0, now.Sub(then))) // a clock may be a little behind
}

// line is a text as one line.
func line(text string) string { return oneLine(text) + "\n" }

var spaces = strings.NewReplacer("\r\n", " ", "\n", " ", "\t", " ")

func oneLine(text string) string { return policy.Printable(spaces.Replace(text)) }

// cleanSource is policy.Printable for text of many lines, whatever they end with.
func cleanSource(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		body := strings.TrimSuffix(l, "\n")
		end := l[len(body):]
		if end != "" && strings.HasSuffix(body, "\r") {
			body, end = body[:len(body)-1], "\r\n"
		}
		b.WriteString(policy.Printable(body) + end)
	}
	return b.String()
}

// encode is a value as JSON for people and programs. What is unsafe to show is
// written as an escape, which loses nothing.
func encode(value any) (string, error) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(value); err != nil {
		return "", fmt.Errorf("encoding as JSON: %w", err)
	}
	var b strings.Builder
	for _, r := range text.String() {
		if r == '\n' || !policy.Unprintable(r) {
			b.WriteRune(r)
			continue
		}
		for _, unit := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&b, `\u%04x`, unit)
		}
	}
	return b.String(), nil
}
