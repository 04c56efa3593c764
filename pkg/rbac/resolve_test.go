package rbac

import (
	"strings"
	"testing"
)

// served are all resources that the API server of Kubernetes 1.37 lets anybody list and
// watch unless it is told otherwise, by group. A test beside a real one holds them
// against it.
var served = map[string][]string{
	"": {
		"configmaps", "endpoints", "events", "limitranges", "namespaces", "nodes", "persistentvolumeclaims", "persistentvolumes", "pods",
		"podtemplates", "replicationcontrollers", "resourcequotas", "secrets", "serviceaccounts", "services",
	},
	"admissionregistration.k8s.io": {
		"mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "mutatingwebhookconfigurations",
		"validatingadmissionpolicies", "validatingadmissionpolicybindings", "validatingwebhookconfigurations",
	},
	"apiextensions.k8s.io":         {"customresourcedefinitions"},
	"apiregistration.k8s.io":       {"apiservices"},
	"apps":                         {"controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"},
	"autoscaling":                  {"horizontalpodautoscalers"},
	"batch":                        {"cronjobs", "jobs"},
	"certificates.k8s.io":          {"certificatesigningrequests", "clustertrustbundles", "podcertificaterequests"},
	"coordination.k8s.io":          {"leases"},
	"discovery.k8s.io":             {"endpointslices"},
	"flowcontrol.apiserver.k8s.io": {"flowschemas", "prioritylevelconfigurations"},
	"networking.k8s.io":            {"ingressclasses", "ingresses", "ipaddresses", "networkpolicies", "servicecidrs"},
	"node.k8s.io":                  {"runtimeclasses"},
	"policy":                       {"poddisruptionbudgets"},
	"rbac.authorization.k8s.io":    {"clusterrolebindings", "clusterroles", "rolebindings", "roles"},
	"resource.k8s.io":              {"deviceclasses", "devicetaintrules", "resourceclaims", "resourceclaimtemplates", "resourceslices"},
	"scheduling.k8s.io":            {"priorityclasses"},
	"storage.k8s.io":               {"csidrivers", "csinodes", "csistoragecapacities", "storageclasses", "volumeattachments", "volumeattributesclasses"},
	"storagemigration.k8s.io":      {"storageversionmigrations"},
}

func TestEveryResourceOfKubernetesIsKnownByItsGroup(t *testing.T) {
	resolver := builtin()
	for group, names := range served {
		for _, name := range names {
			resource, _, err := resolver.Resolve(name)
			if err != nil || resource.Group != group || resource.Resource != name {
				t.Errorf("%s of the group %q: got %s of the group %q, error %v", name, group, resource.Resource, resource.Group, err)
			}
		}
	}
}

func TestWhatIsNoResourceIsNotKnown(t *testing.T) {
	resolver := builtin()
	for reason, names := range map[string]string{
		"misspelt":                          "pod Pods endpoint endpointses networkpolicys * Ingress",
		"listed, but never watched":         "componentstatuses",
		"asked, not kept":                   "subjectaccessreviews selfsubjectreviews tokenreviews bindings evictions scales tokenrequests",
		"lists, options and other messages": "podlists lists listoptions deleteoptions watchevents apigroups apiversions statuses podexecoptions rangeallocations",
		"of an API that is gone":            "podsecuritypolicies podpresets",
		"not served by default, and perhaps somebody else's in the cluster": "workloads podgroups leasecandidates storageversions",
	} {
		for _, name := range strings.Fields(names) {
			if resource, _, err := resolver.Resolve(name); err == nil {
				t.Errorf("%s (%s): got %s", name, reason, resource)
			}
		}
	}
}
