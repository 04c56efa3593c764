package replication

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Resource is what a flag asks to replicate.
type Resource struct {
	schema.GroupVersionResource
	// Namespaced is true for one whose objects are in namespaces: then their path
	// ends with namespace and name, and else with the name.
	Namespaced bool
	// Path is where in data the objects are.
	Path []string
}

// String is the resource as a flag names it: [group/]version/resource.
func (r Resource) String() string { return name(r.GroupVersionResource) }

func name(gvr schema.GroupVersionResource) string {
	return strings.TrimPrefix(gvr.Group+"/"+gvr.Version+"/"+gvr.Resource, "/")
}

// versionPattern is what the versions of Kubernetes' own APIs look like. Others
// may be called otherwise.
var versionPattern = regexp.MustCompile(`^v[0-9]+((alpha|beta)[0-9]+)?$`)

// parseResource reads [group/]version/resource, and behind = a path below base
// where the name of the resource is not to be its path.
func parseResource(text string, namespaced bool, base []string) (Resource, error) {
	text, own, hasOwn := strings.Cut(text, "=")
	parts := strings.Split(text, "/")
	if len(parts) == 2 {
		parts = append([]string{""}, parts...)
	}
	wrong := fmt.Errorf("%q is not [group/]version/resource, such as v1/pods or apps/v1/deployments", text)
	if len(parts) != 3 {
		return Resource{}, wrong
	}
	r := Resource{
		GroupVersionResource: schema.GroupVersionResource{Group: parts[0], Version: parts[1], Resource: parts[2]},
		Namespaced:           namespaced,
		Path:                 append(slices.Clone(base), parts[2]),
	}
	switch {
	case strings.ToLower(r.Resource) != r.Resource:
		return Resource{}, fmt.Errorf("%q: a resource is a plural in small letters, such as pods for the kind Pod", text)
	case len(validation.IsDNS1035Label(r.Resource)) > 0, len(validation.IsDNS1035Label(r.Version)) > 0,
		r.Group != "" && len(validation.IsDNS1123Subdomain(r.Group)) > 0:
		return Resource{}, wrong
	case r.Group == "" && r.Version != "v1":
		return Resource{}, fmt.Errorf("%q: what has no group has the version v1; others are named group/version/resource, such as apps/v1/deployments", text)
	case versionPattern.MatchString(r.Group) || versionPattern.MatchString(r.Resource):
		return Resource{}, wrong
	}
	if !hasOwn {
		return r, nil
	}
	path, err := parsePath(own)
	if err != nil {
		return Resource{}, err
	}
	r.Path = append(slices.Clone(base), path...)
	return r, nil
}

// ParseFlags reads what --replicate, --replicate-cluster and --replicate-path say: the
// resources, and the path that they are below. An error names the flag.
func ParseFlags(namespaced, cluster []string, path string) ([]Resource, []string, error) {
	base, err := parsePath(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--replicate-path: %w", err)
	}
	var all []Resource
	var errs []error
	for _, f := range []struct {
		flag       string
		texts      []string
		namespaced bool
	}{{"--replicate", namespaced, true}, {"--replicate-cluster", cluster, false}} {
		for _, text := range f.texts {
			resource, err := parseResource(text, f.namespaced, base)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", f.flag, err))
				continue
			}
			all = append(all, resource)
		}
	}
	return all, base, errors.Join(append(errs, checkPaths(all))...)
}

// parsePath reads a path in data: names between slashes.
func parsePath(text string) ([]string, error) {
	parts := strings.Split(strings.Trim(text, "/"), "/")
	if slices.Contains(parts, "") {
		return nil, fmt.Errorf("%q is not a path in data: want names between slashes, such as kubernetes", text)
	}
	if parts[0] == "system" {
		return nil, fmt.Errorf("%q: what is below system decides for the whole cluster", text)
	}
	return parts, nil
}

// checkPaths gathers all pairs of resources that would be in each other's way.
func checkPaths(resources []Resource) error {
	var errs []error
	for i, r := range resources {
		for _, other := range resources[:i] {
			n := min(len(r.Path), len(other.Path))
			if !slices.Equal(r.Path[:n], other.Path[:n]) {
				continue
			}
			if r.GroupVersionResource == other.GroupVersionResource {
				errs = append(errs, fmt.Errorf("%s is named twice", r))
				continue
			}
			errs = append(errs, fmt.Errorf("%s and %s would both be data.%s: give one a path of its own, such as %s=%s-%s",
				other, r, strings.Join(r.Path[:n], "."), r, strings.ReplaceAll(r.Group, ".", "-"), r.Resource))
		}
	}
	return errors.Join(errs...)
}
