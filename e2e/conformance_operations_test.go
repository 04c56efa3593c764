package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// operationHooks are the webhooks that every operation is tried at. Some list two versions of AdmissionReview: the API
// server takes the first that it knows.
var operationHooks = []hook{
	{mutating: true, versions: bothVersions, server: failing},
	{mutating: true, versions: oldestFirst, server: failing},
	{mutating: false, versions: []string{"v9", "v1"}, server: failing},
	{mutating: false, versions: v1beta1Only, server: failing},
	{mutating: true, versions: v1Only, ignore: true, server: failing},
	{mutating: false, versions: oldestFirst, ignore: true, server: failing},
	{mutating: true, versions: v1beta1Only, server: undefinedDenied},
	{mutating: false, versions: v1Only, server: undefinedAllowed},
}

// seen is what a policy sees of a request.
type seen struct {
	Version     string `json:"version"`
	Operation   string `json:"operation"`
	Resource    string `json:"resource"`
	SubResource string `json:"subResource"`
	Kind        string `json:"kind"`
	Object      string `json:"object"`    // its kind; empty: null
	OldObject   string `json:"oldObject"` // so
	DryRun      bool   `json:"dryRun"`
}

// operation is something that can be done with an API server.
type operation struct {
	sentence string
	// prepare are the path and the body of what there is before, made by somebody who passes unasked; {namespace} and
	// {name} stand for those of the request, here and below.
	prepare []string
	// request is what is done then, and code how the API server answers if admission lets it pass.
	request request
	code    int
	// seen is what the policy sees of it, but for the version.
	seen seen
	// patch is one that changes something, in JSON; empty: there is nothing to patch. patched is then in the API
	// server's answer; empty: it is not seen there.
	patch, patched string
}

const (
	configMapsPath = "/api/v1/namespaces/{namespace}/configmaps"
	podsPath       = "/api/v1/namespaces/{namespace}/pods"
	aConfigMap     = `{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{name}", "labels": {"app": "{name}"}}, "data": {"key": "value"}}`
	aPod           = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "{name}", "labels": {"app": "{name}"}},
		"spec": {"containers": [{"name": "main", "image": "registry.example.com/main"}], "automountServiceAccountToken": false}}`
	aDeployment = `{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "{name}"}, "spec": {"replicas": 0,
		"selector": {"matchLabels": {"app": "{name}"}}, "template": {"metadata": {"labels": {"app": "{name}"}}, "spec": {"containers": [{"name": "main", "image": "registry.example.com/main"}]}}}}`
	aService  = `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "{name}"}, "spec": {"ports": [{"port": 80}]}}`
	addLabel  = `[{"op": "add", "path": "/metadata/labels/team", "value": "platform"}]`
	teamLabel = `"team":"platform"`
	merge     = "application/merge-patch+json"
)

var operations = []operation{
	{
		sentence: "CREATE", request: posted(configMapsPath, aConfigMap), code: http.StatusCreated, patch: addLabel, patched: teamLabel,
		seen: seen{Operation: "CREATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap"},
	},
	{
		sentence: "CREATE by server-side apply", code: http.StatusCreated, patch: addLabel, patched: teamLabel,
		request: request{http.MethodPatch, configMapsPath + "/{name}?fieldManager=test", "application/apply-patch+yaml", aConfigMap},
		seen:    seen{Operation: "CREATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap"},
	},
	{
		sentence: "CREATE as a dry run", request: posted(configMapsPath+"?dryRun=All", aConfigMap), code: http.StatusCreated, patch: addLabel, patched: teamLabel,
		seen: seen{Operation: "CREATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap", DryRun: true},
	},
	{
		sentence: "UPDATE", prepare: []string{configMapsPath, aConfigMap}, code: http.StatusOK, patch: addLabel, patched: teamLabel,
		request: request{http.MethodPut, configMapsPath + "/{name}", "application/json", strings.Replace(aConfigMap, "value", "new", 1)},
		seen:    seen{Operation: "UPDATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap", OldObject: "ConfigMap"},
	},
	{
		sentence: "UPDATE by a patch of the user's own", prepare: []string{configMapsPath, aConfigMap}, code: http.StatusOK, patch: addLabel, patched: teamLabel,
		request: request{http.MethodPatch, configMapsPath + "/{name}", merge, `{"data": {"key": "new"}}`},
		seen:    seen{Operation: "UPDATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap", OldObject: "ConfigMap"},
	},
	{
		sentence: "UPDATE as a dry run", prepare: []string{configMapsPath, aConfigMap}, code: http.StatusOK, patch: addLabel, patched: teamLabel,
		request: request{http.MethodPatch, configMapsPath + "/{name}?dryRun=All", merge, `{"data": {"key": "new"}}`},
		seen:    seen{Operation: "UPDATE", Resource: "configmaps", Kind: "ConfigMap", Object: "ConfigMap", OldObject: "ConfigMap", DryRun: true},
	},
	{
		sentence: "DELETE", prepare: []string{configMapsPath, aConfigMap}, request: request{http.MethodDelete, configMapsPath + "/{name}", "", ""}, code: http.StatusOK,
		seen: seen{Operation: "DELETE", Resource: "configmaps", Kind: "ConfigMap", OldObject: "ConfigMap"},
	},
	{
		sentence: "DELETE as a dry run", prepare: []string{configMapsPath, aConfigMap}, request: request{http.MethodDelete, configMapsPath + "/{name}?dryRun=All", "", ""}, code: http.StatusOK,
		seen: seen{Operation: "DELETE", Resource: "configmaps", Kind: "ConfigMap", OldObject: "ConfigMap", DryRun: true},
	},
	{
		sentence: "DELETE of all with a label", prepare: []string{configMapsPath, aConfigMap}, code: http.StatusOK,
		request: request{http.MethodDelete, configMapsPath + "?labelSelector=app%3D{name}", "", ""},
		seen:    seen{Operation: "DELETE", Resource: "configmaps", Kind: "ConfigMap", OldObject: "ConfigMap"},
	},
	{
		// The connection is never made: no node runs the Pod, and the API server says so to who may connect.
		sentence: "CONNECT to exec", prepare: []string{podsPath, aPod}, request: posted(podsPath+"/{name}/exec?command=ls&stdout=true", ""), code: http.StatusBadRequest,
		seen:  seen{Operation: "CONNECT", Resource: "pods", SubResource: "exec", Kind: "PodExecOptions", Object: "PodExecOptions"},
		patch: `[{"op": "add", "path": "/container", "value": "other"}]`, patched: "container other is not valid for pod",
	},
	{
		sentence: "CONNECT to attach", prepare: []string{podsPath, aPod}, request: posted(podsPath+"/{name}/attach?stdout=true", ""), code: http.StatusBadRequest,
		seen:  seen{Operation: "CONNECT", Resource: "pods", SubResource: "attach", Kind: "PodAttachOptions", Object: "PodAttachOptions"},
		patch: `[{"op": "add", "path": "/container", "value": "other"}]`, patched: "container other is not valid for pod",
	},
	{
		sentence: "CONNECT to a port", prepare: []string{podsPath, aPod}, request: posted(podsPath+"/{name}/portforward?ports=80", ""), code: http.StatusBadRequest,
		seen:  seen{Operation: "CONNECT", Resource: "pods", SubResource: "portforward", Kind: "PodPortForwardOptions", Object: "PodPortForwardOptions"},
		patch: `[{"op": "add", "path": "/ports", "value": [8080]}]`,
	},
	{
		sentence: "CONNECT to a Service", prepare: []string{"/api/v1/namespaces/{namespace}/services", aService}, code: http.StatusServiceUnavailable,
		request: request{http.MethodGet, "/api/v1/namespaces/{namespace}/services/{name}/proxy/", "", ""},
		seen:    seen{Operation: "CONNECT", Resource: "services", SubResource: "proxy", Kind: "ServiceProxyOptions", Object: "ServiceProxyOptions"},
		patch:   `[{"op": "add", "path": "/path", "value": "other"}]`,
	},
	{
		sentence: "pods/status", prepare: []string{podsPath, aPod}, code: http.StatusOK,
		request: request{http.MethodPatch, podsPath + "/{name}/status", merge, `{"status": {"message": "mine"}}`},
		seen:    seen{Operation: "UPDATE", Resource: "pods", SubResource: "status", Kind: "Pod", Object: "Pod", OldObject: "Pod"},
		patch:   `[{"op": "replace", "path": "/status/message", "value": "ours"}]`, patched: `"message":"ours"`,
	},
	{
		sentence: "pods/ephemeralcontainers", prepare: []string{podsPath, aPod}, code: http.StatusOK,
		request: request{http.MethodPatch, podsPath + "/{name}/ephemeralcontainers", "application/strategic-merge-patch+json",
			`{"spec": {"ephemeralContainers": [{"name": "debug", "image": "registry.example.com/debug"}]}}`},
		seen:  seen{Operation: "UPDATE", Resource: "pods", SubResource: "ephemeralcontainers", Kind: "Pod", Object: "Pod", OldObject: "Pod"},
		patch: `[{"op": "replace", "path": "/spec/ephemeralContainers/0/image", "value": "registry.example.com/other"}]`, patched: "registry.example.com/other",
	},
	{
		sentence: "pods/eviction", prepare: []string{podsPath, aPod}, code: http.StatusCreated,
		request: posted(podsPath+"/{name}/eviction", `{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "{name}"}}`),
		seen:    seen{Operation: "CREATE", Resource: "pods", SubResource: "eviction", Kind: "Eviction", Object: "Eviction"},
		patch:   `[{"op": "add", "path": "/metadata/labels", "value": {"team": "platform"}}]`,
	},
	{
		sentence: "pods/binding", prepare: []string{podsPath, aPod}, code: http.StatusCreated,
		request: posted(podsPath+"/{name}/binding", `{"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "{name}"}, "target": {"kind": "Node", "name": "node"}}`),
		seen:    seen{Operation: "CREATE", Resource: "pods", SubResource: "binding", Kind: "Binding", Object: "Binding"},
		patch:   `[{"op": "add", "path": "/metadata/labels", "value": {"team": "platform"}}]`,
	},
	{
		sentence: "deployments/scale", prepare: []string{"/apis/apps/v1/namespaces/{namespace}/deployments", aDeployment}, code: http.StatusOK,
		request: request{http.MethodPatch, "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale?dryRun=All", merge, `{"spec": {"replicas": 2}}`},
		seen:    seen{Operation: "UPDATE", Resource: "deployments", SubResource: "scale", Kind: "Scale", Object: "Scale", OldObject: "Scale", DryRun: true},
		patch:   `[{"op": "replace", "path": "/spec/replicas", "value": 3}]`, patched: `"replicas":3`,
	},
	{
		sentence: "serviceaccounts/token", code: http.StatusCreated,
		prepare: []string{"/api/v1/namespaces/{namespace}/serviceaccounts", `{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "{name}"}}`},
		request: posted("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", `{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}`),
		seen:    seen{Operation: "CREATE", Resource: "serviceaccounts", SubResource: "token", Kind: "TokenRequest", Object: "TokenRequest"},
		patch:   `[{"op": "replace", "path": "/spec/expirationSeconds", "value": 7200}]`, patched: `"expirationSeconds":7200`,
	},
}

// tellsWhatItSees is a policy that sees, with these rules.
func tellsWhatItSees(rules string) string {
	return `package system

seen := {
	"version": input.apiVersion,
	"operation": input.request.operation,
	"resource": input.request.resource.resource,
	"subResource": object.get(input.request, "subResource", ""),
	"kind": input.request.kind.kind,
	"object": kind(input.request.object),
	"oldObject": kind(input.request.oldObject),
	"dryRun": input.request.dryRun,
}

kind(object) := "" if object == null

kind(object) := object.kind if object != null

` + rules
}

// answers are what a policy says to an operation, each in another of the forms that are tried in the other table.
func (o operation) answers() map[string]string {
	patch := o.patch
	if patch == "" {
		patch = addLabel
	}
	return map[string]string{
		"a yes": tellsWhatItSees(`main := {"apiVersion": input.apiVersion, "kind": "AdmissionReview", "response": {
	"uid": input.request.uid, "allowed": true, "auditAnnotations": {"seen": json.marshal(seen)},
}}
`),
		"a no": tellsWhatItSees(`main := {"apiVersion": "admission.k8s.io/v1beta1", "response": {"allowed": false, "status": {"reason": json.marshal(seen)}}}
`),
		"a patch": tellsWhatItSees(`main := {"response": {"allowed": true, "auditAnnotations": {"seen": seen}, "patch": ` + patch + `}}
`),
		"no decision": tellsWhatItSees(`main := {"response": {"allowed": true}} if seen.operation == "NEVER"
`),
		"a conflict": tellsWhatItSees(`main := {"response": {"allowed": true}} if seen.operation

main := {"response": {"allowed": false}} if seen.resource
`),
	}
}

// Whatever is done with an API server, a policy sees it as it is and decides it.
func TestEveryOperationIsDecided(t *testing.T) {
	s := newStage(t, operationHooks)
	for _, h := range s.hooks {
		waitServiceAccount(t, s.namespace(h))
	}
	count := 0
	for _, o := range operations {
		t.Run(o.sentence, func(t *testing.T) {
			for what, source := range o.answers() {
				s.enforce(policy(opa, "main", "main", source))
				names, requests := s.prepare(o)
				for n, a := range s.sendAll(requests) {
					count++
					if err := o.judge(s, s.hooks[n], names[n], what, a); err != nil {
						t.Errorf("%s at %s: %v; got %s", what, s.hooks[n], err, a)
					}
				}
			}
		})
	}
	t.Logf("%d operations at %d webhooks: %d requests", len(operations), len(s.hooks), count)
}

// filled has the names in it.
func filled(text, namespace, name string) string {
	return strings.NewReplacer("{namespace}", namespace, "{name}", name).Replace(text)
}

// waitServiceAccount waits until Pods can be created in a namespace.
func waitServiceAccount(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, "the service account of "+namespace, func(ctx context.Context) error {
		_, err := cluster.Client().CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// prepare makes what there is to be before the operation at each webhook, under a name of its own, and tells the requests.
func (s *stage) prepare(o operation) (names []string, requests []request) {
	s.t.Helper()
	for _, h := range s.hooks {
		name, r := s.fresh("x"), o.request
		r.path, r.body = filled(r.path, s.namespace(h), name), filled(r.body, s.namespace(h), name)
		names, requests = append(names, name), append(requests, r)
	}
	if o.prepare == nil {
		return names, requests
	}
	errs := make([]error, len(names))
	eachAtOnce(len(names), func(n int) {
		namespace := s.namespace(s.hooks[n])
		errs[n] = cluster.Client().CoreV1().RESTClient().Post().AbsPath(filled(o.prepare[0], namespace, names[n])).
			SetHeader("Content-Type", "application/json").Body([]byte(filled(o.prepare[1], namespace, names[n]))).Do(s.t.Context()).Error()
	})
	if err := errors.Join(errs...); err != nil {
		s.t.Fatal(err)
	}
	return names, requests
}

// judge says what is wrong with what the API server did.
func (o operation) judge(s *stage, h hook, name, what string, a reaction) error {
	wanted := o.seen
	wanted.Version = "admission.k8s.io/" + h.version()
	c := formCell{hook: h, name: name, module: "opa/main/main"}
	sight := a.event.Annotations[h.name()+"/seen"]
	switch {
	case what == "no decision":
		c.verdict = noDecision
		return c.judgeWithoutDecision(a, o.code)
	case what == "a conflict":
		c.verdict = troubled("conflict", "data.system.main")
		return c.judgeWithoutDecision(a, o.code)
	case what == "a patch" && o.seen.Object == "":
		// There is nothing to patch, but a validating webhook does not patch anyway.
		if c.mutating {
			c.verdict = troubled("response.patch")
			return c.judgeWithoutDecision(a, o.code)
		}
	case what == "a no":
		message, found := strings.CutPrefix(a.told.Message, fmt.Sprintf("admission webhook %q denied the request: ", h.name()))
		if !found || a.code != http.StatusForbidden {
			return fmt.Errorf("it was not denied")
		}
		sight = message
	}
	var got seen
	if err := json.Unmarshal([]byte(sight), &got); err != nil {
		return fmt.Errorf("what the policy saw: %w", err)
	}
	if got != wanted {
		return fmt.Errorf("the policy saw %+v, want %+v", got, wanted)
	}
	if what == "a no" {
		return c.judgeAnnotations(s, a, true)
	}
	return o.judgeAcceptance(a, what == "a patch" && h.mutating)
}

// judgeAcceptance looks for the answer to a request that admission let pass.
func (o operation) judgeAcceptance(a reaction, patched bool) error {
	for _, part := range []string{"admission webhook", "calling webhook"} {
		if strings.Contains(a.told.Message, part) {
			return fmt.Errorf("admission refused it")
		}
	}
	if a.code != o.code {
		return fmt.Errorf("the status is not %d", o.code)
	}
	body := strings.NewReplacer(" ", "", "\n", "").Replace(a.body)
	if o.patched != "" && strings.Contains(body, strings.ReplaceAll(o.patched, " ", "")) != patched {
		return fmt.Errorf("that %q is in the answer is not %t", o.patched, patched)
	}
	if applied := a.event.annotation(patchAnnotation); o.patch != "" && (applied != "") != patched {
		return fmt.Errorf("the patch in the audit log is %q", applied)
	}
	return nil
}
