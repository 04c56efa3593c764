package opa

import (
	"testing"

	"github.com/open-policy-agent/opa/v1/bundle"
)

func TestModulesHaveTheNameOfTheirBundle(t *testing.T) {
	for name, test := range map[string]struct{ paths, raw, want []string }{
		"from disk":                              {[]string{"/main.rego", "/a/b.rego"}, []string{"/main.rego", "/a/b.rego"}, []string{"x/main.rego", "x/a/b.rego"}},
		"downloaded":                             {[]string{"/main.rego"}, []string{"x/main.rego"}, []string{"x/main.rego"}},
		"from disk, with data":                   {[]string{"/main.rego"}, []string{"/data.json", "/main.rego"}, []string{"/data.json", "x/main.rego"}},
		"downloaded, with a folder of that name": {[]string{"main.rego", "x/main.rego"}, []string{"x/main.rego", "x/x/main.rego"}, []string{"x/main.rego", "x/x/main.rego"}},
		"nothing":                                {},
	} {
		t.Run(name, func(t *testing.T) {
			var b bundle.Bundle
			for _, path := range test.paths {
				b.Modules = append(b.Modules, bundle.ModuleFile{Path: path})
			}
			for _, path := range test.raw {
				b.Raw = append(b.Raw, bundle.Raw{Path: path})
			}
			for range 2 { // a second attempt changes nothing
				nameModules("x", &b)
			}
			for n, want := range test.want {
				if b.Raw[n].Path != want {
					t.Errorf("got %s, want %s", b.Raw[n].Path, want)
				}
			}
		})
	}
}
