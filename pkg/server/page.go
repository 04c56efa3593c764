package server

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // the page and its style
	"encoding/base64"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The page is the status for a person with a browser. It has no script and loads
// nothing: all texts on it are of others, and html/template escapes each for its place.
var (
	//go:embed page.html
	pageText string
	//go:embed page.css
	pageStyle string

	pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
		"text":  printable,
		"words": words,
	}).Parse(pageText))

	// pagePolicy has the browser refuse all that is not on the page, should a text get
	// around the escaping.
	pagePolicy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
		hash(pageStyle))
)

// printable is a text of somebody else's on one line, as all are but for the source.
func printable(text any) string {
	return policy.Printable(strings.ReplaceAll(fmt.Sprint(text), "\n", " "))
}

// words is a state as people write it: in_force is "in force".
func words(state any) string { return strings.ReplaceAll(printable(state), "_", " ") }

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// page is what the template reads.
type page struct {
	status
	Style template.CSS
	Now   time.Time
	// Held are the modules that are held, and Counts says how many modules there are in
	// each state.
	Held    []moduleStatus
	InForce int
}

func newPage(body status, now time.Time) page {
	p := page{status: body, Style: template.CSS(pageStyle), Now: now} //nolint:gosec // G203: the style is ours
	p.Modules = slices.Clone(body.Modules)
	slices.SortStableFunc(p.Modules, func(a, b moduleStatus) int { return a.urgency() - b.urgency() })
	for _, m := range p.Modules {
		if m.State == policy.StateHeld {
			p.Held = append(p.Held, m)
		}
		if m.InForce != policy.None {
			p.InForce++
		}
	}
	return p
}

// urgency orders the modules for who looks for what is wrong.
func (m moduleStatus) urgency() int {
	switch {
	case m.State == policy.StateHeld && m.InForce == policy.None:
		return 0
	case m.State == policy.StateHeld:
		return 1
	case len(m.Warnings) > 0:
		return 2
	}
	return 3
}

// Notes are the problems and warnings.
func (m moduleStatus) Notes() []policy.Problem { return slices.Concat(m.Problems, m.Warnings) }

// Enforced is what is in force instead of a change that is held.
func (m moduleStatus) Enforced() string {
	switch {
	case m.Deleted:
		return "the deletion is held: it is in force still"
	case m.InForce == policy.None:
		return "nothing of it is in force"
	}
	return "the version before is in force"
}

// Ago says how long ago a time is, in a few characters.
func (p page) Ago(t time.Time) string { return duration.HumanDuration(max(0, p.Now.Sub(t))) }

// At is a time for machines.
func (p page) At(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// On is a time for people.
func (p page) On(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + " UTC" }

// InStep counts the replicas that have the policy set of the writer in force.
func (p page) InStep() int {
	n := 0
	for _, r := range p.Replicas {
		if r.State == policy.ReplicaInStep {
			n++
		}
	}
	return n
}

// serveStatus answers in JSON, or with the page if that is asked for.
func serveStatus(w http.ResponseWriter, r *http.Request, body status) {
	header := w.Header()
	header.Set("Vary", "Accept")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	switch format := r.URL.Query().Get("format"); {
	case format == "html", format == "" && wantsHTML(r.Header.Values("Accept")):
		writePage(w, newPage(body, time.Now()))
	case format == "json", format == "":
		writeJSON(w, http.StatusOK, body)
	default:
		writeError(w, http.StatusBadRequest, fmt.Sprintf("format=%q is neither json nor html", format))
	}
}

func writePage(w http.ResponseWriter, p page) {
	var text bytes.Buffer
	if err := pageTemplate.Execute(&text, p); err != nil {
		writeError(w, http.StatusInternalServerError, internalError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(text.Bytes()) // a client that is gone hears nothing
}

// wantsHTML reports whether a client names HTML and likes it better than JSON, as
// browsers do. Programs that take anything get JSON.
func wantsHTML(accept []string) bool {
	like := make(map[string]float64)
	for _, header := range accept {
		for part := range strings.SplitSeq(header, ",") {
			kind, parameters, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			quality, err := strconv.ParseFloat(parameters["q"], 64)
			if err != nil {
				quality = 1
			}
			like[kind] = max(like[kind], quality)
		}
	}
	return like["text/html"] > like["application/json"]
}
