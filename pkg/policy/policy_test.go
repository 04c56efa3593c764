package policy_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

func id(namespace, name, key string) policy.ID {
	return policy.ID{Namespace: namespace, Name: name, Key: key}
}

func TestIDIsNamespaceNameAndKey(t *testing.T) {
	if got, want := id("opa", "allowlist", "main.rego").String(), "opa/allowlist/main.rego"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIDsAreOrderedByNamespaceThenNameThenKey(t *testing.T) {
	ordered := []policy.ID{
		id("a", "z", "z"),
		id("b", "a", "z"),
		id("b", "b", "a"),
		id("b", "b", "b"),
		// As text b-c/a/a stands before b/a/a: it is the parts that count.
		id("b-c", "a", "a"),
	}
	for i, a := range ordered {
		for j, b := range ordered {
			want := min(max(i-j, -1), 1)
			if got := a.Compare(b); got != want {
				t.Errorf("%s compared with %s: got %d, want %d", a, b, got, want)
			}
		}
	}
}

func TestParseRegoVersion(t *testing.T) {
	for _, version := range []policy.RegoVersion{policy.RegoAuto, policy.RegoV0, policy.RegoV1} {
		got, err := policy.ParseRegoVersion(string(version))
		if err != nil || got != version {
			t.Errorf("%q: got %q and error %v", version, got, err)
		}
	}
	for _, text := range []string{"", "V1", "v2", "1", " v1", "rego.v1"} {
		got, err := policy.ParseRegoVersion(text)
		if err == nil || got != "" {
			t.Errorf("%q: got %q, want an error", text, got)
			continue
		}
		for _, word := range []string{`"` + text + `"`, "auto", "v0", "v1"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("the error for %q does not say %s: %v", text, word, err)
			}
		}
	}
}

func TestOfTwoModulesTheOneWithTheOlderObjectIsOlder(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	cases := map[string]struct {
		a, b policy.Module
		want int
	}{
		"the time counts before the name": {
			policy.Module{ID: id("z", "z", "z"), Created: early}, policy.Module{ID: id("a", "a", "a"), Created: late}, -1,
		},
		"the name decides between objects of one time": {
			policy.Module{ID: id("a", "b", "k"), Created: early}, policy.Module{ID: id("a", "a", "k"), Created: early}, 1,
		},
		"the same moment in two time zones is one time": {
			policy.Module{ID: id("a", "a", "k"), Created: early.UTC()},
			policy.Module{ID: id("a", "b", "k"), Created: early.In(time.FixedZone("east", 3600))}, -1,
		},
		"the text does not count": {
			policy.Module{ID: id("a", "a", "k"), Source: "b"}, policy.Module{ID: id("a", "a", "k"), Source: "a"}, 0,
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if got := c.a.Older(c.b); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
			if got := c.b.Older(c.a); got != -c.want {
				t.Errorf("the other way round: got %d, want %d", got, -c.want)
			}
		})
	}
}

func TestFingerprintDoesNotDependOnOrder(t *testing.T) {
	a := policy.Module{ID: id("opa", "a", "main"), Source: "package a"}
	b := policy.Module{ID: id("opa", "b", "main"), Source: "package b"}
	c := policy.Module{ID: id("opa", "c", "main"), Source: "package c"}
	want := policy.NewSet(a, b, c).Fingerprint()
	if got := policy.NewSet(c, b, a).Fingerprint(); got != want {
		t.Errorf("the other way round: got %s, want %s", got, want)
	}
	if len(want) != 64 || strings.Trim(want, "0123456789abcdef") != "" {
		t.Errorf("want a SHA-256 in hexadecimal, got %q", want)
	}
}

func TestFingerprintDiffersWithAllThatAModuleMeans(t *testing.T) {
	module := policy.Module{ID: id("opa", "a", "main"), Source: "package a"}
	change := func(edit func(*policy.Module)) policy.Set {
		changed := module
		edit(&changed)
		return policy.NewSet(changed)
	}
	sets := map[string]policy.Set{
		"the module":                  policy.NewSet(module),
		"no module":                   policy.NewSet(),
		"another namespace":           change(func(m *policy.Module) { m.ID.Namespace = "b" }),
		"another name":                change(func(m *policy.Module) { m.ID.Name = "b" }),
		"another key":                 change(func(m *policy.Module) { m.ID.Key = "b" }),
		"another source":              change(func(m *policy.Module) { m.Source = "package b" }),
		"an empty source":             change(func(m *policy.Module) { m.Source = "" }),
		"version v0":                  change(func(m *policy.Module) { m.Version = policy.RegoV0 }),
		"version v1":                  change(func(m *policy.Module) { m.Version = policy.RegoV1 }),
		"a defect":                    change(func(m *policy.Module) { m.Defect = "not text" }),
		"the defect's text as source": change(func(m *policy.Module) { m.Source = "not text" }),
		"a second module":             policy.NewSet(module, policy.Module{ID: id("opa", "b", "main")}),
		"the text split elsewhere between version and source": change(func(m *policy.Module) {
			m.Version, m.Source = "pack", "age a"
		}),
		"the text split elsewhere between source and defect": change(func(m *policy.Module) {
			m.Source, m.Defect = "pack", "age a"
		}),
		"a source that looks like the hash's own separators": change(func(m *policy.Module) {
			m.Source, m.Defect = "", "9:package a"
		}),
	}
	seen := make(map[string]string)
	for name, set := range sets {
		fingerprint := set.Fingerprint()
		if other, ok := seen[fingerprint]; ok {
			t.Errorf("%q and %q have one fingerprint", name, other)
		}
		seen[fingerprint] = name
	}
}

func TestASetHoldsEachModuleOnceAndNamesThemInOrder(t *testing.T) {
	a, b := id("opa", "a", "main"), id("opa", "b", "main")
	set := policy.NewSet(policy.Module{ID: b}, policy.Module{ID: a}, policy.Module{ID: b, Source: "package b"})
	if got, want := set.IDs(), []policy.ID{a, b}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := set[b].Source; got != "package b" {
		t.Errorf("of two modules with one name the last counts: got %q", got)
	}
}
