package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	v1Only, v1beta1Only = []string{"v1"}, []string{"v1beta1"}
	bothVersions        = []string{"v1", "v1beta1"}
	oldestFirst         = []string{"v1beta1", "v1"}
)

// Of the dimensions these pairs are all tried: every form of an answer with both versions of AdmissionReview, with both
// kinds of webhooks, with both failure policies, and with each thing that a server can do without a decision
// (TestEveryAnswerIsOneThatTheAPIServerTakes); every operation with the same, and with a yes, a no, a patch and no decision
// (TestEveryOperationIsDecided). Not every form with every operation: an answer is made right without a look at the
// operation, except for a patch where there is no object.
var formHooks = []hook{
	{mutating: true, versions: v1Only, server: failing},
	{mutating: true, versions: v1beta1Only, server: failing},
	{mutating: false, versions: v1Only, server: failing},
	{mutating: false, versions: v1beta1Only, server: failing},
	{mutating: true, versions: v1Only, ignore: true, server: failing},
	{mutating: false, versions: v1beta1Only, ignore: true, server: failing},
	{mutating: true, versions: v1Only, server: undefinedDenied},
	{mutating: false, versions: v1beta1Only, server: undefinedDenied},
	{mutating: true, versions: v1beta1Only, ignore: true, server: undefinedAllowed},
	{mutating: false, versions: v1Only, server: undefinedAllowed},
	{mutating: true, versions: v1Only, server: strictReview},
	{mutating: true, versions: v1beta1Only, server: strictReview},
}

// policies are the ConfigMaps of a form.
func (f entrypointForm) policies() []*corev1.ConfigMap {
	all := []*corev1.ConfigMap{policy(opa, "rules", "main", denyRule)}
	for n, module := range f.modules {
		all = append(all, policy(opa, []string{"main", "second"}[n], "main", module))
	}
	return all
}

// formCell is one object that is to be created while a form of an answer is in force.
type formCell struct {
	hook
	name    string
	verdict verdict
	// module is one that has a say in it.
	module string
}

// cells are the objects, good and bad, at all webhooks.
func (f entrypointForm) cells(s *stage) []formCell {
	var all []formCell
	module := "opa/main/main"
	if len(f.modules) == 0 {
		module = "opa/rules/main"
	}
	for _, h := range s.hooks {
		good, bad := formCell{h, s.fresh("good"), f.good, module}, formCell{h, s.fresh("bad"), f.bad, module}
		if f.good.inPatch() && !h.mutating {
			good.verdict = accepted // it is not looked at
		}
		if h.server == strictReview {
			if field := map[string]string{"v1": f.strict.v1, "v1beta1": f.strict.v1beta1}[h.version()]; field != "" {
				good.verdict = strictTrouble(field)
			}
			all = append(all, good)
			if f.strictBad != "" && h.version() == "v1" {
				bad.verdict = strictTrouble(f.strictBad)
				all = append(all, bad)
			}
			continue
		}
		all = append(all, good, bad)
	}
	return all
}

// inPatch says that it is the patch that cannot be made right.
func (v verdict) inPatch() bool {
	return len(v.trouble) > 0 && strings.HasPrefix(v.trouble[0], "response.patch")
}

// strictTrouble is what becomes of an answer of which --strict-review names this field.
func strictTrouble(field string) verdict {
	if field == "undefined" {
		return noDecision
	}
	return troubled(field)
}

// What a policy answers, the API server takes, and does what the policy meant.
func TestEveryAnswerIsOneThatTheAPIServerTakes(t *testing.T) {
	s := newStage(t, formHooks)
	stored := map[string]map[string]bool{} // by namespace and name: whether a patch is in it
	for _, h := range s.hooks {
		stored[s.namespace(h)] = map[string]bool{}
	}
	objects := 0
	for _, f := range entrypointForms {
		t.Run(f.sentence, func(t *testing.T) {
			s.enforce(f.policies()...)
			cells := f.cells(s)
			var requests []request
			for _, c := range cells {
				requests = append(requests, posted("/api/v1/namespaces/"+s.namespace(c.hook)+"/configmaps",
					fmt.Sprintf(`{"metadata": {"name": %q, "labels": {"app": "demo"}}, "data": {"key": "value"}}`, c.name)))
			}
			for n, a := range s.sendAll(requests) {
				objects++
				c := cells[n]
				if err := c.judge(s, a, http.StatusCreated); err != nil {
					t.Errorf("%s, a %s: %v; got %s", c.hook, strings.Split(c.name, "-")[0], err, a)
				}
				if a.code < http.StatusBadRequest {
					stored[s.namespace(c.hook)][c.name] = c.verdict.patched && c.mutating
				}
			}
		})
	}
	for namespace, wanted := range stored {
		if got := s.storedIn(namespace); !maps.Equal(got, wanted) {
			t.Errorf("in %s there are, with and without patch, %v, want %v", namespace, got, wanted)
		}
	}
	t.Logf("%d forms of answers at %d webhooks: %d objects", len(entrypointForms), len(s.hooks), objects)
}

// storedIn are the names of the ConfigMaps in a namespace, and whether a patch was stored with them.
func (s *stage) storedIn(namespace string) map[string]bool {
	s.t.Helper()
	list, err := cluster.Client().CoreV1().ConfigMaps(namespace).List(s.t.Context(), metav1.ListOptions{FieldSelector: "metadata.name!=kube-root-ca.crt"})
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, cm := range list.Items {
		names[cm.Name] = cm.Labels["team"] == "platform"
	}
	return names
}

// judge says what is wrong with what the API server did; code is the one that it answers with when all is well.
func (c formCell) judge(s *stage, a reaction, code int) error {
	v := c.verdict
	switch {
	case v.undefined || v.trouble != nil:
		return c.judgeWithoutDecision(a, code)
	case v.denied:
		return c.judgeDenial(s, a)
	}
	if a.code != code {
		return fmt.Errorf("it was not accepted")
	}
	if !slices.Equal(a.warnings, v.warnings) {
		return fmt.Errorf("the warnings are not %q", v.warnings)
	}
	said := len(v.warnings) > 0 || v.patched && c.mutating
	if err := c.judgeAnnotations(s, a, said); err != nil {
		return err
	}
	return c.judgePatch(a, v.patched && c.mutating)
}

func (c formCell) judgeDenial(s *stage, a reaction) error {
	v := c.verdict
	message, denied := strings.CutPrefix(a.told.Message, fmt.Sprintf("admission webhook %q denied the request: ", c.hook.name()))
	if !denied || !v.silent && message != v.message || v.silent && !contains("the policies gave no reason", "opa/main/main")(message) {
		return fmt.Errorf("it was not denied with the message %.200q", v.message)
	}
	if a.code != int(v.code) || a.told.Code != v.code || a.told.Reason != v.reason || a.told.Status != metav1.StatusFailure {
		return fmt.Errorf("it is not a failure with code %d and reason %q", v.code, v.reason)
	}
	if d := v.details; d != nil && (a.told.Details == nil || a.told.Details.Name != c.name || a.told.Details.Kind != d.Kind || !slices.Equal(a.told.Details.Causes, d.Causes)) {
		return fmt.Errorf("the details are not %+v", d)
	}
	if !slices.Equal(a.warnings, v.warnings) {
		return fmt.Errorf("the warnings are not %q", v.warnings)
	}
	return c.judgeAnnotations(s, a, true)
}

// judgeAnnotations looks for what leads from the audit log to the decision; said is whether the answer says anything.
func (c formCell) judgeAnnotations(s *stage, a reaction, said bool) error {
	told := maps.Clone(c.verdict.told)
	if told == nil {
		told = map[string]string{}
	}
	if said {
		told["fingerprint"] = s.fingerprints[c.server]
	}
	for key, value := range told {
		if got, found := a.event.Annotations[c.hook.name()+"/"+key]; !found || got != value {
			return fmt.Errorf("the audit annotation %s is %q, want %q", key, got, value)
		}
	}
	if a.event.Annotations[c.hook.name()+"/decision-id"] == "" {
		return fmt.Errorf("there is no audit annotation decision-id")
	}
	modules := strings.Split(a.event.Annotations[c.hook.name()+"/modules"], ",")
	if said && !slices.Contains(modules, c.module) {
		return fmt.Errorf("the audit annotation modules does not have %s", c.module)
	}
	return nil
}

// judgePatch looks at what the API server says that it did to the object.
func (c formCell) judgePatch(a reaction, patched bool) error {
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal([]byte(a.body), &object); err != nil {
		return err
	}
	if got := object.Labels["team"] == "platform"; got != patched || object.Labels["app"] != "demo" {
		return fmt.Errorf("its labels are %v", object.Labels)
	}
	return c.judgeAppliedPatch(a, patched)
}

// judgeAppliedPatch looks into the audit log.
func (c formCell) judgeAppliedPatch(a reaction, patched bool) error {
	var applied struct {
		Webhook, PatchType string
		Patch              []struct{ Op, Path string }
	}
	text := a.event.annotation(patchAnnotation)
	if !patched {
		if text != "" {
			return fmt.Errorf("a patch was applied: %s", text)
		}
		return nil
	}
	if err := json.Unmarshal([]byte(text), &applied); err != nil {
		return fmt.Errorf("the patch in the audit log: %w", err)
	}
	if applied.Webhook != c.hook.name() || applied.PatchType != "JSONPatch" || len(applied.Patch) == 0 {
		return fmt.Errorf("the patch in the audit log is %s", text)
	}
	return nil
}

// withoutDecision is what the server does then: fail, deny or allow.
func (c formCell) withoutDecision() string {
	switch {
	case c.server == undefinedDenied && c.verdict.undefined, c.server == undefinedAllowed && !c.verdict.undefined:
		return "deny"
	case c.server == undefinedDenied, c.server == undefinedAllowed:
		return "allow"
	}
	return "fail"
}

// judgeWithoutDecision looks for a reason that the user can read, wherever there is one.
func (c formCell) judgeWithoutDecision(a reaction, code int) error {
	parts := c.verdict.trouble
	if c.verdict.undefined {
		parts = []string{"system", "main", "undefined"}
	}
	switch what := c.withoutDecision(); {
	case what == "deny":
		if a.code != http.StatusForbidden || a.told.Reason != metav1.StatusReasonForbidden ||
			!strings.HasPrefix(a.told.Message, fmt.Sprintf("admission webhook %q denied the request: ", c.hook.name())) || !contains(parts...)(a.told.Message) {
			return fmt.Errorf("it was not denied with words such as %q", parts)
		}
		return nil
	case what == "allow":
		if a.code != code || len(a.warnings) != 1 || !contains(parts...)(a.warnings[0]) {
			return fmt.Errorf("it was not accepted with a warning such as %q", parts)
		}
		return c.judgeAppliedPatch(a, false)
	case c.ignore:
		if a.code != code || a.event.annotation("failed-open.") != c.hook.name() || len(a.warnings) > 0 {
			return fmt.Errorf("it was not accepted because of failurePolicy Ignore")
		}
		return c.judgeAppliedPatch(a, false)
	}
	want := fmt.Sprintf("failed calling webhook %q: failed to call webhook: ", c.hook.name())
	if a.code != http.StatusInternalServerError || a.told.Reason != metav1.StatusReasonInternalError || !contains(append(parts, want, " (decision ")...)(a.told.Message) {
		return fmt.Errorf("it was not refused because of failurePolicy Fail, with words such as %q", parts)
	}
	return nil
}
