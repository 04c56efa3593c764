package apitest

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// discover answers the paths that say which resources there are.
func discover(resources []Resource, path string) (any, error) {
	path = strings.Trim(path, "/")
	groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}}
	core := metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}}
	known := make(map[string]bool)
	for _, r := range resources {
		version := r.GroupVersion().String()
		at := "apis/" + version
		if r.Group == "" {
			at = "api/" + version
			core.Versions = []string{r.Version}
		} else if !known[version] {
			groups.Groups = addVersion(groups.Groups, r.Group, metav1.GroupVersionForDiscovery{GroupVersion: version, Version: r.Version})
		}
		known[version] = true
		if at != path {
			continue
		}
		verbs := r.Verbs
		if verbs == nil {
			verbs = []string{"create", "delete", "get", "list", "patch", "update", "watch"}
		}
		list.GroupVersion = version
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: r.Resource, Kind: r.Kind, Namespaced: r.Namespaced, Verbs: verbs})
	}
	switch {
	case path == "api":
		return core, nil
	case path == "apis":
		return groups, nil
	case list.GroupVersion != "":
		return list, nil
	}
	return nil, pageNotFound()
}

// addVersion adds a version to its group, which prefers the one that was first.
func addVersion(groups []metav1.APIGroup, group string, version metav1.GroupVersionForDiscovery) []metav1.APIGroup {
	for n := range groups {
		if groups[n].Name == group {
			groups[n].Versions = append(groups[n].Versions, version)
			return groups
		}
	}
	return append(groups, metav1.APIGroup{
		Name: group, Versions: []metav1.GroupVersionForDiscovery{version}, PreferredVersion: version,
	})
}
