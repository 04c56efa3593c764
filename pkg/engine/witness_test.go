package engine_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// entrypoint is one as they are found in the field.
var entrypoint = module("main", 1, "package system",
	`main := {"response": response}`,
	`default response := {"allowed": true}`,
	`response := {"allowed": false, "status": {"message": reason}} if reason`,
	`reason := concat(", ", data.kubernetes.admission.deny) if not data.kubernetes.admission.deny == set()`,
)

func TestSpeakers(t *testing.T) {
	library := module("library", 1, "package library", `images contains image if some image in input.images`)
	images := module("images", 1, "package kubernetes.admission",
		`deny contains sprintf("no %s", [image]) if { some image in data.library.images; startswith(image, "bad") }`)
	names := module("names", 1, "package kubernetes.admission",
		`deny contains "no name" if { names_known; input.name == "" }`, `names_known if input.name != null`)
	// Asked for twice: the second time there is no evaluation to see.
	cached := module("cached", 1, "package kubernetes.admission",
		`deny contains "seen" if { not nothing; something }`, `nothing if not something`, `something if input.seen`)
	other := module("other", 1, "package elsewhere", `deny contains "never asked for"`)
	for _, test := range []struct {
		name  string
		input map[string]any
		want  string
	}{
		{"who denies has a say, and what it calls", map[string]any{"name": "a", "images": []any{"bad"}}, "[opa/images/main opa/library/main opa/main/main]"},
		{"a helper of a rule that was not true has none", map[string]any{"name": "", "images": []any{"good"}}, "[opa/main/main opa/names/main]"},
		{"of two both have one", map[string]any{"name": "", "images": []any{"bad"}}, "[opa/images/main opa/library/main opa/main/main opa/names/main]"},
		{"what was found in the cache counts too", map[string]any{"name": "a", "images": []any{"good"}, "seen": true}, "[opa/cached/main opa/main/main]"},
		{"where nobody denies it is the entrypoint alone", map[string]any{"name": "a", "images": []any{"good"}}, "[opa/main/main]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := enforcing(t, entrypoint, library, images, names, other, cached)
			decision, err := e.Decide(t.Context(), "system/main", test.input)
			if err != nil {
				t.Fatal(err)
			}
			activate(e, e.InForce().Snapshot()) // what is in force by then has no part in it
			got, err := decision.Witness.Speakers(t.Context())
			if err != nil || fmt.Sprint(got) != test.want {
				t.Errorf("got  %v, %v\nwant %s", got, err, test.want)
			}
		})
	}
}

// A policy that runs for ever is found, whoever called it.
func TestSuspects(t *testing.T) {
	const endless = `count([1 | some x in numbers.range(1, 30000); some y in numbers.range(1, 30000); x == y + 40000])`
	for _, test := range []struct {
		name    string
		modules []policy.Module
		want    string
	}{
		{"a rule", []policy.Module{module("slow", 1, "package kubernetes.admission", `deny contains "x" if `+endless+` > 0`)}, "opa/slow/main opa/main/main"},
		{
			"a function, and who calls it",
			[]policy.Module{
				module("library", 1, "package library", `slow(_) := `+endless),
				module("caller", 1, "package kubernetes.admission", `deny contains "x" if data.library.slow(1) > 0`),
			},
			"opa/library/main opa/caller/main opa/main/main",
		},
		{
			"a rule that calls another very often",
			[]policy.Module{module("often", 1, "package kubernetes.admission",
				`deny contains "x" if { some x in numbers.range(1, 30000); some y in numbers.range(1, 30000); same(x, y + 40000) }`, `same(x, y) if x == y`)},
			"opa/often/main opa/main/main",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := enforcing(t, append(test.modules, entrypoint, module("quick", 1, "package kubernetes.admission", `deny contains "quick"`))...)
			// Already over: what is looked for is who is slow, not how long that takes.
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			decision, err := e.Decide(ended, "system/main", map[string]any{})
			if err == nil || decision.Witness == nil {
				t.Fatalf("got %+v, %v; want no result, and somebody to ask", decision, err)
			}
			soon, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if got := strings.Join(decision.Witness.Suspects(soon), " "); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestNobodyIsSuspectedOfADecisionThatEnds(t *testing.T) {
	decision, err := enforcing(t, entrypoint).Decide(t.Context(), "system/main", map[string]any{})
	if err != nil {
		t.Fatal(err)
	}
	if got := decision.Witness.Suspects(t.Context()); got != nil {
		t.Errorf("suspected are %v", got)
	}
}
