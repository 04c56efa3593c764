package story

import (
	"fmt"
	"path/filepath"

	"github.com/kube-rego/kube-rego/e2e/istio"
)

// The clusters, called after their regions. The region rule keeps the analytics service in the first.
const (
	frankfurt  = "eu-central-1"
	eemshaven  = "europe-west4"
	allowlist  = "opa/opa-pod-allowlist/main"
	entrypoint = "opa/opa-main/main"
)

// Regions are the names of the clusters.
func Regions() []string { return []string{frankfurt, eemshaven} }

// onBoth makes the commands for one cluster after the other.
func onBoth(commands func(region string) []Command) []Command {
	var both []Command
	for _, region := range Regions() {
		both = append(both, commands(region)...)
	}
	return both
}

// Steps is the story.
func (s *Stage) Steps() []Step {
	return []Step{
		{
			Title: "Two clusters start, in two regions",
			Text: "Each has etcd, kube-apiserver and kube-controller-manager, with RBAC on. There are no nodes: pods are " +
				"created and stay Pending.",
			Do: startClusters,
			Commands: onBoth(func(region string) []Command {
				return []Command{{On: region, Line: "kubectl version", Want: []Expectation{
					Says("Server Version: " + s.cfg.Programs.KubernetesVersion)}}}
			}),
		},
		{
			Title: "A service with restricted data, and the rule of the mesh",
			Text: "Only what runs as service account analytics may call the data service. (Of the mesh there is only the " +
				"definition of its AuthorizationPolicy.)",
			Do:       writeMeshDefinitions,
			Commands: onBoth(s.mesh),
		},
		{
			Title: "What the mesh cannot see",
			Text:  "Anything may run in the name of the service account: here a shell with curl, an honest mistake or worse.",
			Commands: []Command{
				{On: frankfurt, Line: "kubectl create -f examples/demo/pod-curl.yaml", Want: []Expectation{
					Is("pod/test-pod-with-analytics created")}},
				{On: frankfurt, Line: "kubectl delete -f examples/demo/pod-curl.yaml", Want: []Expectation{
					Is(`pod "test-pod-with-analytics" deleted from analytics namespace`)}},
			},
		},
		{
			Title: "kube-rego is installed",
			Text: "The overlay changes three things in manifests/ for a cluster without nodes: the Service leads to this " +
				"machine, the webhook to a port that is free here, and the Deployment has no pods.",
			Do:       prepareInstallations,
			Commands: onBoth(s.install),
		},
		{
			Title: "kube-rego starts, as the service account that its pod would have",
			Text: "The arguments are those of the Deployment; the last three make it a process on this machine. It makes its " +
				"certificate and puts the CA into the webhook configuration.",
			Do:       startKubeRego,
			Commands: onBoth(s.rights),
		},
		{
			Title: "As long as there is no policy, the answer is no",
			Text:  "Without a decision nothing is allowed. (Set failurePolicy Ignore to roll out on a cluster that others work on.)",
			Commands: []Command{
				{On: frankfurt, Line: "kubectl create -f examples/demo/pod-allowed.yaml", Fails: true, Want: []Expectation{
					Says(`failed calling webhook "webhook.openpolicyagent.org"`),
					Says(`no policy in force defines data.system.main`)}},
			},
		},
		{
			Title: "The entrypoint and the allowlist come into force",
			Text: "The same policy twice: in eu-central-1 in Rego v0 with a v1beta1 answer, as it is found in the field; in " +
				"europe-west4 in Rego v1.",
			Commands: onBoth(func(region string) []Command { return policies(region, "pod-allowlist", "created", "created") }),
		},
		{
			Title:    "A shell in the name of the analytics service is refused",
			Commands: onBoth(func(region string) []Command { return []Command{refused(region, curlRefused)} }),
		},
		{
			Title:    "The analytics service itself is accepted, and so is a shell in nobody's name",
			Commands: onBoth(accepted),
		},
		{
			Title: "The policy learns where the analytics service may run",
			Text:  "Now its pods need a nodeSelector for the region eu-central-1. Both clusters get the rule.",
			Commands: onBoth(func(region string) []Command {
				return policies(region, "pod-allowlist-region", "unchanged", "configured")
			}),
		},
		{
			Title:    "In the wrong region the Deployment is accepted, its pods are not",
			Commands: wrongRegion(),
		},
		{
			Title:    "In the right region the Deployment gets its pod",
			Commands: rightRegion(),
		},
		{
			Title: "An edit of the policy goes wrong: a comma is missing",
			Text: "It is held, and the annotation says where the error is. What was in force stays in force: the shell is " +
				"refused by the rules of the version before, both of them.",
			Commands: brokenEdit(),
		},
		{
			Title: "The policy is repaired",
			Commands: []Command{
				{On: eemshaven, Line: "kubectl apply -f examples/pod-allowlist-region/opa-pod-allowlist.yaml", Want: []Expectation{
					Is("configmap/opa-pod-allowlist configured")}},
				status(eemshaven, Is(`{"status":"ok"}`)),
				refused(eemshaven, curlRefused+", "+curlMisplaced),
			},
		},
	}
}

// mesh sets up the services as the mesh knows them.
func (s *Stage) mesh(region string) []Command {
	return []Command{
		{On: region, Line: "kubectl apply -f examples/demo/data-service.yaml", Want: []Expectation{Is(
			"namespace/data created",
			"serviceaccount/data created",
			"deployment.apps/data created",
			"service/data created")}},
		{On: region, Line: "kubectl apply -f examples/demo/analytics-namespace.yaml", Want: []Expectation{Is(
			"namespace/analytics created",
			"serviceaccount/analytics created")}},
		{On: region, Line: "kubectl apply -f " + s.typed(s.crdFile()), Want: []Expectation{Is(
			"customresourcedefinition.apiextensions.k8s.io/" + istio.AuthorizationPolicyCRDName + " created")}},
		{On: region, Line: "kubectl wait --for=condition=Established crd/" + istio.AuthorizationPolicyCRDName,
			Want: []Expectation{Says("condition met")}},
		{On: region, Line: "kubectl apply -f examples/demo/authorization-policy.yaml", Want: []Expectation{Is(
			"authorizationpolicy.security.istio.io/data created")}},
	}
}

func (s *Stage) install(region string) []Command {
	overlay := filepath.Join(s.clusters[region].kubeRegoDir(), "overlay")
	return []Command{{On: region, Line: "kubectl apply -k " + s.typed(overlay), Want: []Expectation{
		Says("namespace/opa created"),
		Says("serviceaccount/kube-rego created"),
		Says("deployment.apps/kube-rego created"),
		Says("validatingwebhookconfiguration.admissionregistration.k8s.io/kube-rego created"),
	}}}
}

// rights shows who kube-rego is, and that it is not the admin.
func (s *Stage) rights(region string) []Command {
	kubectl := "kubectl --kubeconfig " + s.typed(filepath.Join(s.clusters[region].kubeRegoDir(), "kubeconfig"))
	return []Command{
		{On: region, Line: kubectl + " auth whoami", Want: []Expectation{
			HasRow("Username", "system:serviceaccount:opa:kube-rego")}},
		{On: region, Line: kubectl + " auth can-i list secrets -n opa", Fails: true, Want: []Expectation{Is("no")}},
	}
}

// policies applies an example in the Rego version that the region has, and reads the annotation.
func policies(region, example, main, rule string) []Command {
	folder, version := example, "v1"
	if region == frankfurt {
		folder, version = example+"-rego-v0", "v0"
	}
	return []Command{
		{
			On:        region,
			Line:      "kubectl apply -f examples/" + folder,
			Want:      []Expectation{Is("configmap/opa-main "+main, "configmap/opa-pod-allowlist "+rule)},
			Activates: []string{entrypoint + " " + version, allowlist + " " + version},
		},
		status(region, Is(`{"status":"ok"}`)),
	}
}

// status reads the annotation of the allowlist.
func status(region string, want ...Expectation) Command {
	const line = `kubectl -n opa get cm opa-pod-allowlist \
    -o jsonpath='{.metadata.annotations.openpolicyagent\.org/policy-status}'`
	return Command{On: region, Line: line, Want: want, Later: true}
}

// What the rules say about the shell.
const (
	curlRefused   = `pod with serviceAccount "analytics", image "curlimages/curl:7.72.0" is not allowed`
	curlMisplaced = curlRefused + " at the specified location"
)

// refusal is how the API server passes on what the policies say.
const refusal = `admission webhook "webhook.openpolicyagent.org" denied the request: `

// refused creates the shell, and hears exactly this. What kubectl puts before it depends on the reason: an
// entrypoint need not give one.
func refused(region, message string) Command {
	const file = "examples/demo/pod-curl.yaml"
	said := fmt.Sprintf("error when creating %q: %s%s", file, refusal, message)
	return Command{On: region, Line: "kubectl create -f " + file, Fails: true, Want: []Expectation{
		IsOneOf("Error from server (Forbidden): "+said, "Error from server: "+said)}}
}

func accepted(region string) []Command {
	return []Command{
		{On: region, Line: "kubectl create -f examples/demo/pod-allowed.yaml", Want: []Expectation{
			Is("pod/analytics-allowed created")}},
		{On: region, Line: "kubectl create -f examples/demo/pod-other-serviceaccount.yaml", Want: []Expectation{
			Is("pod/test-pod created")}},
	}
}

func wrongRegion() []Command {
	const misplaced = `pod with serviceAccount "analytics", image %q is not allowed at the specified location`
	message := "Error creating: " + refusal + fmt.Sprintf(misplaced+", "+misplaced,
		"banzaicloud/allspark:0.1.2", "banzaicloud/istio-proxyv2:1.7.0-bzc")
	return []Command{
		{On: eemshaven, Line: "kubectl apply -f examples/demo/analytics-deployment.yaml", Want: []Expectation{
			Is("deployment.apps/analytics created")}},
		{On: eemshaven, Line: "kubectl -n analytics get events", Later: true, Want: []Expectation{
			Says("FailedCreate"), Says(message)}},
		{On: eemshaven, Line: "kubectl -n analytics get replicasets", Later: true, Want: []Expectation{
			HasRow("NAME", "DESIRED", "CURRENT"), HasRow("analytics-*", "1", "0")}},
	}
}

func rightRegion() []Command {
	return []Command{
		{On: frankfurt, Line: "kubectl apply -f examples/demo/analytics-deployment-eu.yaml", Want: []Expectation{
			Says("deployment.apps/analytics created")}},
		{On: frankfurt, Line: "kubectl -n analytics get replicasets", Later: true, Want: []Expectation{
			HasRow("NAME", "DESIRED", "CURRENT"), HasRow("analytics-*", "1", "1")}},
	}
}

func brokenEdit() []Command {
	return []Command{
		{On: eemshaven, Line: "kubectl apply -f examples/demo/opa-pod-allowlist-broken.yaml", Want: []Expectation{
			Is("configmap/opa-pod-allowlist configured")}},
		status(eemshaven,
			Says(`"status":"error"`),
			Says(`"location":{"file":"`+allowlist+`","row":8,"col":9}`),
			Says(`"inForce":"previous"`)),
		refused(eemshaven, curlRefused+", "+curlMisplaced),
	}
}
