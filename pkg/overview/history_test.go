package overview

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// recorded is a revision of any ConfigMap with one key.
func recorded(namespace, name string, number int64, source string) configmap.Revision {
	id := policy.ID{Namespace: namespace, Name: name, Key: "main"}
	return configmap.NewRevision("opa", namespace, name, number, policy.NewSet(policy.Module{ID: id, Source: source}))
}

// foundOf are the revisions as the reader for opa/lib finds them.
func foundOf(all ...configmap.Revision) records {
	found := records{all: all, own: make(map[int64]configmap.Revision)}
	for _, r := range all {
		if r.Namespace == "opa" && r.Name == "lib" {
			found.own[r.Number] = r
		}
	}
	return found
}

const (
	lib    = "package lib\n\nf(x) := x\n"
	caller = "package caller\n\ny := data.lib.f(1)\n"
)

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		name  string
		found records
		want  map[int64]string // the state of each revision
	}{
		{
			name:  "the newest is in force, and an older one could be",
			found: foundOf(recorded("opa", "lib", 1, "package lib\n\nf(x) := x + 1\n"), recorded("opa", "lib", 2, lib), recorded("opa", "caller", 1, caller)),
			want:  map[int64]string{1: "", 2: "in force"},
		},
		{
			name:  "one that does not parse says where",
			found: foundOf(recorded("opa", "lib", 1, "package lib\n\nf(x) = {\n"), recorded("opa", "lib", 2, lib)),
			want:  map[int64]string{1: "does not compile: opa/lib/main:4:1: rego_parse_error: ", 2: "in force"},
		},
		{
			name:  "one without what another ConfigMap of another namespace needs",
			found: foundOf(recorded("opa", "lib", 1, "package lib\n"), recorded("opa", "lib", 2, lib), recorded("team-a", "caller", 1, caller)),
			want:  map[int64]string{1: "does not compile: opa/lib/main:1:1: rego_type_error: undefined function data.lib.f", 2: "in force"},
		},
		{
			name: "only the newest revision of the others counts",
			found: foundOf(recorded("opa", "lib", 1, "package lib\n"), recorded("opa", "lib", 2, lib),
				recorded("opa", "caller", 1, caller), recorded("opa", "caller", 2, "package caller\n")),
			want: map[int64]string{1: "", 2: "in force"},
		},
		{
			name:  "others that do not compile here are no fault of this one",
			found: foundOf(recorded("opa", "lib", 1, lib), recorded("opa", "broken", 1, "package"), recorded("opa", "needy", 1, "package n\n\nx := data.none.f(1)\n")),
			want:  map[int64]string{1: "in force"},
		},
		{
			name:  "what is in force and does not compile here is both",
			found: foundOf(recorded("opa", "lib", 1, "package lib\n\nf(x) := no.such(x)\n")),
			want:  map[int64]string{1: "in force; does not compile: opa/lib/main:3:9: rego_type_error: undefined function no.such"},
		},
		{
			name:  "one in which nothing was in force, which the rest needs",
			found: foundOf(configmap.NewRevision("opa", "opa", "lib", 1, nil), recorded("opa", "lib", 2, lib), recorded("opa", "caller", 1, caller)),
			want:  map[int64]string{1: "does not compile: opa/lib/main: rego_type_error: undefined function data.lib.f", 2: "in force"},
		},
		{
			name: "what a flag of serve allows is not known here, and is allowed",
			found: foundOf(recorded("opa", "lib", 1, "package system.lib\n\nx := http.send({\"method\": \"get\", \"url\": \"http://localhost\"})\n"),
				recorded("opa", "lib", 2, lib)),
			want: map[int64]string{1: "", 2: "in force"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			revisions, err := check(t.Context(), test.found)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[int64]string)
			for _, r := range revisions {
				got[r.Number] = r.state()
			}
			if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(test.want))) {
				t.Fatalf("got %v, want %v", got, test.want)
			}
			for number, want := range test.want {
				if got[number] != want && (want == "" || want == "in force" || !strings.HasPrefix(got[number], want)) {
					t.Errorf("revision %d: got %q, want %q", number, got[number], want)
				}
			}
		})
	}
}

func TestCheckStopsWhenItIsToldTo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := check(ctx, foundOf(recorded("opa", "lib", 1, lib))); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}

func TestManifest(t *testing.T) {
	id := func(key string) policy.ID { return policy.ID{Namespace: "opa", Name: "lib", Key: key} }
	r := configmap.NewRevision("opa", "opa", "lib", 1, policy.NewSet(
		policy.Module{ID: id("a"), Source: "package a\n", Version: policy.RegoV0},
		policy.Module{ID: id("b"), Source: "package b\n", Version: policy.RegoV0},
	))
	got, err := json.Marshal(manifest(r, map[string]string{"l": "v"}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"lib","namespace":"opa","labels":{"l":"v"},` +
		`"annotations":{"openpolicyagent.org/rego-version":"v0"}},"data":{"a":"package a\n","b":"package b\n"}}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
