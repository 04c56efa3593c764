package replication

import (
	"slices"
	"strings"
	"testing"
)

func TestParseResource(t *testing.T) {
	base := []string{"kubernetes"}
	for _, test := range []struct {
		text       string
		want, path string // path empty: an error that begins with want
	}{
		{"v1/pods", "v1/pods", "kubernetes/pods"},
		{"apps/v1/deployments", "apps/v1/deployments", "kubernetes/deployments"},
		{"networking.k8s.io/v1/ingresses", "networking.k8s.io/v1/ingresses", "kubernetes/ingresses"},
		{"example.com/stable/widgets", "example.com/stable/widgets", "kubernetes/widgets"},
		{"events.k8s.io/v1/events=new-events", "events.k8s.io/v1/events", "kubernetes/new-events"},
		{"v1/pods=a/b", "v1/pods", "kubernetes/a/b"},
		{"", `"" is not [group/]version/resource`, ""},
		{"pods", `"pods" is not [group/]version/resource`, ""},
		{"v1/", `"v1/" is not [group/]version/resource`, ""},
		{"/v1/pods/", `"/v1/pods/" is not`, ""},
		{"a/b/c/d", `"a/b/c/d" is not`, ""},
		{"v1/pods/status", `"v1/pods/status" is not`, ""},
		{"apps/v1", `"apps/v1": what has no group has the version v1`, ""},
		{"apps/deployments", `"apps/deployments": what has no group has the version v1`, ""},
		{"apps/deployments/v1", `"apps/deployments/v1" is not`, ""},
		{"v1/Pod", `"v1/Pod": a resource is a plural in small letters`, ""},
		{"apps_x/v1/deployments", `"apps_x/v1/deployments" is not`, ""},
		{"v1/pods=", `"" is not a path in data`, ""},
		{"v1/pods=a//b", `"a//b" is not a path in data`, ""},
	} {
		t.Run(test.text, func(t *testing.T) {
			r, err := parseResource(test.text, true, base)
			if test.path == "" {
				if err == nil || !strings.HasPrefix(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := r.String(); got != test.want || strings.Join(r.Path, "/") != test.path || !r.Namespaced {
				t.Errorf("got %s at %v", got, r.Path)
			}
		})
	}
	if !slices.Equal(base, []string{"kubernetes"}) {
		t.Errorf("the path is %v now", base)
	}
}

func TestParsePath(t *testing.T) {
	for text, want := range map[string]string{"kubernetes": "kubernetes", "/a/b/": "a/b", "": "", "/": "", "a//b": "", "system": "", "system/x": ""} {
		path, err := parsePath(text)
		if got := strings.Join(path, "/"); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

func TestCheckPaths(t *testing.T) {
	for _, test := range []struct {
		name  string
		texts []string
		want  string // empty: they go together
	}{
		{"none", nil, ""},
		{"different ones", []string{"v1/pods", "v1/services"}, ""},
		{"two groups with one plural", []string{"v1/events", "events.k8s.io/v1/events"},
			"v1/events and events.k8s.io/v1/events would both be data.kubernetes.events: give one a path of its own, such as events.k8s.io/v1/events=events-k8s-io-events"},
		{"two groups, one with a path of its own", []string{"v1/events", "events.k8s.io/v1/events=new"}, ""},
		{"one twice", []string{"v1/pods", "v1/pods"}, "v1/pods is named twice"},
		{"one within another", []string{"v1/pods", "v1/services=pods/services"}, "v1/pods and v1/services would both be data.kubernetes.pods"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var resources []Resource
			for _, text := range test.texts {
				r, err := parseResource(text, true, []string{"kubernetes"})
				if err != nil {
					t.Fatal(err)
				}
				resources = append(resources, r)
			}
			err := checkPaths(resources)
			if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
