package e2e_test

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// entrypointForm is an entrypoint as it is written in clusters, or as somebody gets it wrong.
type entrypointForm struct {
	sentence string
	// modules are what there is in package system, each in a ConfigMap of its own: main, second, …
	modules []string
	// good is what becomes of an object that the policies want, bad of one that they do not want.
	good, bad verdict
	// strict is the field that --strict-review names when it is asked about a good object, in v1 and in v1beta1;
	// empty: it is passed as it is.
	strict strictly
	// strictBad is the field that it names about a bad object in v1; empty: that is not looked at.
	strictBad string
}

// strictly is by version of AdmissionReview.
type strictly struct{ v1, v1beta1 string }

// inBoth is for answers that are right in no version.
func inBoth(field string) strictly { return strictly{field, field} }

// verdict is what an answer means.
type verdict struct {
	// undefined and trouble say that there is no decision; trouble are parts of what is told of it.
	undefined bool
	trouble   []string
	// denied, with this code, reason, message and details, as the user reads them.
	denied  bool
	code    int32
	reason  metav1.StatusReason
	message string
	// silent says that the policies deny without a word: the message is ours then.
	silent  bool
	details *metav1.StatusDetails
	// patched says that the object has the label team=platform then.
	patched bool
	// warnings are all that the client hears, told are audit annotations that there are.
	warnings []string
	told     map[string]string
}

var (
	accepted   = verdict{}
	changedIt  = verdict{patched: true}
	refused403 = refusesWith(notWanted)
	silently   = verdict{denied: true, code: 403, reason: metav1.StatusReasonForbidden, silent: true}
	noDecision = verdict{undefined: true}
)

func refusesWith(message string) verdict {
	return verdict{denied: true, code: 403, reason: metav1.StatusReasonForbidden, message: message}
}

// troubled is no decision, for a reason that names this and the ConfigMap.
func troubled(parts ...string) verdict { return verdict{trouble: append(parts, "opa/main/main")} }

// denyRule is the policy beside all entrypoints.
const denyRule = `package kubernetes.admission

deny[message] {
    startswith(input.request.name, "bad")
    message := "` + notWanted + `"
}
`

// v1Answer is an entrypoint in Rego v1 that answers with this response, and with uid and allowed unless it has them.
func v1Answer(response string) []string {
	return []string{`package system

import data.kubernetes.admission

main := {
	"apiVersion": "admission.k8s.io/v1",
	"kind": "AdmissionReview",
	"response": object.union({"uid": input.request.uid, "allowed": allowed}, response),
}

allowed := count(admission.deny) == 0

response := ` + response + "\n"}
}

// denialStatus is an entrypoint whose denials have this status.
func denialStatus(rego string) []string {
	return []string{`package system

import data.kubernetes.admission

main := {
	"apiVersion": "admission.k8s.io/v1",
	"kind": "AdmissionReview",
	"response": response,
}

response := {"uid": input.request.uid, "allowed": true} if count(admission.deny) == 0

response := {"uid": input.request.uid, "allowed": false, "status": ` + rego + `} if count(admission.deny) > 0
`}
}

// inside is an entrypoint that is this value.
func inside(main string) []string {
	return []string{"package system\n\nmain := " + main + "\n"}
}

// patchAnswer is an entrypoint that puts this beside a yes and a no.
func patchAnswer(fields string) []string {
	return v1Answer(fields + `

operations := [
	{"op": "test", "path": "/metadata/labels/app", "value": "demo"},
	{"op": "add", "path": "/metadata/labels/team", "value": "platform"},
]

changed := object.union(input.request.object, {"metadata": {"labels": {"team": "platform"}}})

url_safe(text) := replace(replace(base64.encode(text), "+", "-"), "/", "_")

# With characters that the two alphabets write differently.
spoken := array.concat(operations, [{"op": "add", "path": "/metadata/annotations", "value": {"a": "??>>~~\u00ff\u00fe"}}])
`)
}

var entrypointForms = []entrypointForm{
	// Versions, kinds and uids.
	{
		sentence: "v1beta1 without a uid, allowing by default, the denials in reason",
		modules: []string{`package system

import data.kubernetes.admission

main = {
    "apiVersion": "admission.k8s.io/v1beta1",
    "kind": "AdmissionReview",
    "response": response,
}

default response = {"allowed": true}

response = {
    "allowed": false,
    "status": {
        "reason": reason,
    },
} {
    reason = concat(", ", admission.deny)
    reason != ""
}
`},
		good: accepted, bad: refused403, strict: strictly{"apiVersion", "response.uid"},
	},
	{
		sentence: "v1beta1 with the uid on the allowing branch only",
		modules: []string{`package system

import data.kubernetes.admission

main = {
    "apiVersion": "admission.k8s.io/v1beta1",
    "kind": "AdmissionReview",
    "response": response,
}

response = {"allowed": true, "uid": input.request.uid} {
    count(admission.deny) == 0
}

response = {"allowed": false, "status": {"reason": concat("; ", admission.deny)}} {
    count(admission.deny) > 0
}
`},
		good: accepted, bad: refused403, strict: strictly{v1: "apiVersion"},
	},
	{
		sentence: "v1 with a uid that is empty by default, and code and message",
		modules: []string{`package system

import data.kubernetes.admission

main = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "response": response,
}

default uid = ""

uid = input.request.uid

response = {
    "allowed": false,
    "uid": uid,
    "status": {
        "code": 403,
        "message": message,
    },
} {
    message := concat(", ", admission.deny)
    message != ""
} else = {"allowed": true, "uid": uid}
`},
		good: accepted, bad: refused403, strict: strictly{v1beta1: "apiVersion"},
	},
	{
		sentence: "v1, allowing by default without a uid",
		modules: []string{`package system

import data.kubernetes.admission

main := {
	"apiVersion": "admission.k8s.io/v1",
	"kind": "AdmissionReview",
	"response": response,
}

default response := {"allowed": true}

response := {"uid": input.request.uid, "allowed": false, "status": {"message": concat(", ", admission.deny)}} if count(admission.deny) > 0
`},
		good: accepted, bad: refused403, strict: strictly{"response.uid", "apiVersion"},
	},
	{
		sentence: "the version and the uid of the request",
		modules: inside(`{
	"apiVersion": input.apiVersion,
	"kind": input.kind,
	"response": {
		"uid": input.request.uid,
		"allowed": count(data.kubernetes.admission.deny) == 0,
		"status": {"code": 403, "reason": "Forbidden", "message": concat(", ", data.kubernetes.admission.deny)},
	},
}`),
		good: accepted, bad: refused403,
	},
	{sentence: "neither version nor kind", modules: inside(`{"response": {"allowed": count(data.kubernetes.admission.deny) == 0}}`),
		good: accepted, bad: silently, strict: inBoth("apiVersion")},
	{sentence: "no kind", modules: inside(`{"apiVersion": input.apiVersion, "response": {"uid": input.request.uid, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("kind")},
	{sentence: "no version", modules: inside(`{"kind": "AdmissionReview", "response": {"uid": input.request.uid, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("apiVersion")},
	{sentence: "a kind that is misspelt", modules: inside(`{"apiVersion": input.apiVersion, "kind": "AdmissionReveiw", "response": {"uid": input.request.uid, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("kind")},
	{sentence: "the kind of something else", modules: inside(`{"apiVersion": input.apiVersion, "kind": "SubjectAccessReview", "response": {"uid": input.request.uid, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("kind")},
	{sentence: "a version that is misspelt", modules: inside(`{"apiVersion": "admision.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": input.request.uid, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("apiVersion")},
	{sentence: "a version that never was", modules: inside(`{"apiVersion": "admission.k8s.io/v2alpha1", "kind": "AdmissionReview", "response": {"allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("apiVersion")},
	{sentence: "a version that is a number", modules: inside(`{"apiVersion": 1, "kind": ["AdmissionReview"], "response": {"allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("apiVersion")},
	{sentence: "the uid of another request", modules: inside(`{"apiVersion": input.apiVersion, "kind": "AdmissionReview", "response": {"uid": "0b4c0e1d", "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("response.uid")},
	{sentence: "a uid that is null", modules: inside(`{"apiVersion": input.apiVersion, "kind": "AdmissionReview", "response": {"uid": null, "allowed": true}}`),
		good: accepted, bad: accepted, strict: inBoth("response.uid")},
	{sentence: "the request beside the response", modules: inside(`object.union(input, {"response": {"uid": input.request.uid, "allowed": true, "mood": "good"}})`),
		good: accepted, bad: accepted},

	{sentence: "no entrypoint at all: the one that is built in", good: accepted, bad: refused403},

	// How a denial is told.
	{sentence: "a denial with a reason only", modules: denialStatus(`{"reason": concat(", ", admission.deny)}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial with a reason beside an empty message", modules: denialStatus(`{"reason": concat(", ", admission.deny), "message": ""}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial with code, reason and message", modules: denialStatus(`{"code": 422, "reason": "Invalid", "message": concat(", ", admission.deny)}`), good: accepted,
		bad:    verdict{denied: true, code: 422, reason: metav1.StatusReasonInvalid, message: notWanted},
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a denial with a code only", modules: denialStatus(`{"code": 429}`), good: accepted, bad: verdict{denied: true, code: 429, silent: true},
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial without a status", modules: v1Answer(`{}`), good: accepted, bad: silently, strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial whose status is null", modules: v1Answer(`{"status": null}`), good: accepted, bad: silently, strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial whose status is empty", modules: v1Answer(`{"status": {}}`), good: accepted, bad: silently, strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "a denial that calls itself a success", modules: denialStatus(`{"status": "Success", "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a denial with code 200", modules: denialStatus(`{"code": 200, "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with code 0", modules: denialStatus(`{"code": 0, "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with a code that is no HTTP status", modules: denialStatus(`{"code": 1000, "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with a negative code", modules: denialStatus(`{"code": -1, "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with a code as a text", modules: denialStatus(`{"code": "403", "message": "` + notWanted + `"}`), good: accepted, bad: refused403,
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with a code in words", modules: denialStatus(`{"code": "forbidden", "message": "` + notWanted + `"}`), good: accepted, bad: troubled("response.status.code"),
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial with a broken code", modules: denialStatus(`{"code": 403.5, "message": "` + notWanted + `"}`), good: accepted, bad: troubled("response.status.code"),
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.code"},
	{sentence: "a denial whose status is a text", modules: denialStatus(`"` + notWanted + `"`), good: accepted, bad: troubled("response.status"),
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status"},
	{sentence: "a denial whose message is a set", modules: denialStatus(`{"message": admission.deny}`), good: accepted, bad: troubled("response.status.message"),
		strict: strictly{v1beta1: "apiVersion"}, strictBad: "response.status.message"},
	{sentence: "two things that are wrong", modules: v1Answer(`{"status": "no", "auditAnnotations": "none"}`),
		good: troubled("response.status", "response.auditAnnotations"), bad: troubled("response.status", "response.auditAnnotations"),
		strict: strictly{"response.status", "apiVersion"}},
	{
		sentence: "a denial with details",
		modules: denialStatus(`{
	"code": 422, "reason": "Invalid", "message": "` + notWanted + `",
	"details": {"name": input.request.name, "kind": "ConfigMap", "causes": [{"reason": "FieldValueInvalid", "field": "metadata.name", "message": "` + notWanted + `"}]},
}`),
		good: accepted,
		bad: verdict{denied: true, code: 422, reason: metav1.StatusReasonInvalid, message: notWanted, details: &metav1.StatusDetails{
			Kind: "ConfigMap", Causes: []metav1.StatusCause{{Type: metav1.CauseTypeFieldValueInvalid, Field: "metadata.name", Message: notWanted}}}},
		strict: strictly{v1beta1: "apiVersion"},
	},
	{sentence: "a message of several lines, in any script", modules: denialStatus(`{"message": "no:\n\t\"Straße\" <b> & 名前 🚫\u0007"}`), good: accepted,
		bad:    refusesWith("no:\n\t\"Straße\" <b> & 名前 🚫\u0007"),
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a message that is a hundred thousand characters long", modules: denialStatus(`{"message": replace(sprintf("%100000d", [0]), " ", "0")}`), good: accepted,
		bad:    refusesWith(strings.Repeat("0", 100000)),
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "the reason of a yes", modules: v1Answer(`{"status": {"reason": "because", "code": 1000}}`), good: accepted,
		bad: refusesWith("because"), strict: strictly{v1beta1: "apiVersion"}},

	// No answer.
	{sentence: "nothing", modules: inside(`{"response": {"allowed": true}} if input.request.operation == "NEVER"`), good: noDecision, bad: noDecision, strict: inBoth("undefined")},
	{sentence: "a division by zero", modules: inside(`{"response": {"allowed": 1 / (count(input.request.name) - count(input.request.name)) > 0}}`),
		good: noDecision, bad: noDecision, strict: inBoth("undefined")},
	{sentence: "no response", modules: inside(`{"apiVersion": input.apiVersion, "kind": "AdmissionReview"}`), good: troubled("response"), bad: troubled("response"), strict: inBoth("response")},
	{sentence: "a response that is a list", modules: inside(`{"response": ["allowed"]}`), good: troubled("response"), bad: troubled("response"), strict: inBoth("response")},
	{sentence: "true", modules: inside(`true`), good: troubled("boolean"), bad: troubled("boolean"), strict: inBoth("boolean")},
	{sentence: "false", modules: inside(`false`), good: troubled("boolean"), bad: troubled("boolean"), strict: inBoth("boolean")},
	{sentence: "a number", modules: inside(`1`), good: troubled("number"), bad: troubled("number"), strict: inBoth("number")},
	{sentence: "a text", modules: inside(`"allowed"`), good: troubled("string"), bad: troubled("string"), strict: inBoth("string")},
	{sentence: "null", modules: inside(`null`), good: troubled("main"), bad: troubled("main"), strict: inBoth("main")},
	{sentence: "a set of denials", modules: []string{"package system\n\nmain contains message if some message in data.kubernetes.admission.deny\n"},
		good: troubled("array"), bad: troubled("array"), strict: inBoth("array")},
	{sentence: "no allowed", modules: inside(`{"response": {"uid": input.request.uid}}`), good: troubled("response.allowed"), bad: troubled("response.allowed"), strict: inBoth("apiVersion")},
	{sentence: "allowed in words", modules: inside(`{"response": {"allowed": "true"}}`), good: troubled("response.allowed"), bad: troubled("response.allowed"), strict: inBoth("apiVersion")},
	{sentence: "allowed as a number", modules: inside(`{"response": {"allowed": 1}}`), good: troubled("response.allowed"), bad: troubled("response.allowed"), strict: inBoth("apiVersion")},
	{sentence: "allowed is null", modules: inside(`{"response": {"allowed": null}}`), good: troubled("response.allowed"), bad: troubled("response.allowed"), strict: inBoth("apiVersion")},
	{
		sentence: "two complete rules that disagree",
		modules: []string{`package system

main := {"response": {"allowed": true}} if input.request.uid
`, `package system

main := {"response": {"allowed": false}} if input.request.name
`},
		good: troubled("conflict", "data.system.main", "opa/second/main"), bad: troubled("conflict", "data.system.main", "opa/second/main"), strict: inBoth("conflict"),
	},
	{
		sentence: "a function that is two things",
		modules: []string{`package system

main := {"response": {"allowed": verdict(input.request.name)}}

verdict(name) if startswith(name, "bad")

verdict(name) := false if count(name) > 0

verdict(name) := true if startswith(name, "good")
`},
		good: troubled("conflict"), bad: troubled("conflict"), strict: inBoth("conflict"),
	},
	{sentence: "an object with a key twice", modules: inside(`{"response": {"allowed": verdicts.x}}

verdicts := {"x": v | v := [true, false][_]}`),
		good: troubled("conflict"), bad: troubled("conflict"), strict: inBoth("conflict")},

	// Beside the answer.
	{sentence: "warnings, on a yes and on a no", modules: v1Answer(`{"warnings": ["first", "second"]}`),
		good: verdict{warnings: []string{"first", "second"}},
		bad:  warned(silently, "first", "second"), strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a set of warnings", modules: v1Answer(`{"warnings": {w | some w in ["b", "a"]}}`),
		good: verdict{warnings: []string{"a", "b"}}, bad: warned(silently, "a", "b"), strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a warning that is no list", modules: v1Answer(`{"warnings": "careful"}`),
		good: verdict{warnings: []string{"careful"}}, bad: warned(silently, "careful"), strict: strictly{"response.warnings", "apiVersion"}},
	{sentence: "a warning of several lines, in any script", modules: v1Answer(`{"warnings": ["one\n\ttwo \"Straße\" \\ 名前 ⚠️"]}`),
		good: verdict{warnings: []string{`one  two "Straße" \ 名前 ⚠️`}}, bad: warned(silently, `one  two "Straße" \ 名前 ⚠️`),
		strict: strictly{"response.warnings", "apiVersion"}},
	{sentence: "no warnings, twice over", modules: v1Answer(`{"warnings": [], "auditAnnotations": {}}`), good: accepted, bad: silently, strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "warnings that are null", modules: v1Answer(`{"warnings": null, "auditAnnotations": null, "patch": null, "patchType": null}`), good: accepted, bad: silently,
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "audit annotations", modules: v1Answer(`{"auditAnnotations": {"policy": "images", "rule": "a \"b\"\nc"}}`),
		good:   verdict{told: map[string]string{"policy": "images", "rule": "a \"b\"\nc"}},
		bad:    verdict{denied: true, silent: true, code: 403, reason: metav1.StatusReasonForbidden, told: map[string]string{"policy": "images", "rule": "a \"b\"\nc"}},
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "audit annotations that are no texts", modules: v1Answer(`{"auditAnnotations": {"count": 2, "list": ["a", "b"], "text": "t"}}`),
		good:   verdict{told: map[string]string{"count": "2", "list": `["a","b"]`, "text": "t"}},
		bad:    verdict{denied: true, silent: true, code: 403, reason: metav1.StatusReasonForbidden, told: map[string]string{"count": "2", "list": `["a","b"]`, "text": "t"}},
		strict: strictly{"response.auditAnnotations", "apiVersion"}},
	{sentence: "audit annotations under names that an API server does not take", modules: v1Answer(`{"auditAnnotations": {"a/b": "1", "with space": "2", "": "3", "text": "t"}}`),
		good:   verdict{told: map[string]string{"a-b": "1", "with-space": "2", "text": "t"}},
		bad:    verdict{denied: true, silent: true, code: 403, reason: metav1.StatusReasonForbidden, told: map[string]string{"a-b": "1", "with-space": "2", "text": "t"}},
		strict: strictly{"response.auditAnnotations", "apiVersion"}},

	{sentence: "a warning of all the characters that there are for warnings", modules: v1Answer(`{"warnings": [replace(sprintf("%4096d", [0]), " ", "é")]}`),
		good: verdict{warnings: []string{strings.Repeat("é", 4095) + "0"}}, bad: warned(silently, strings.Repeat("é", 4095)+"0"), strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a warning that is too long", modules: v1Answer(`{"warnings": [replace(sprintf("%4097d", [0]), " ", "é")]}`),
		good: verdict{warnings: []string{strings.Repeat("é", 255) + "…"}}, bad: warned(silently, strings.Repeat("é", 255)+"…"),
		strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "more warnings than there is room for", modules: v1Answer(`{"warnings": [sprintf("%d%299s", [100 + n, "x"]) | some n in numbers.range(1, 40)]}`),
		good: verdict{warnings: manyWarnings()}, bad: warned(silently, manyWarnings()...), strict: strictly{v1beta1: "apiVersion"}},

	// Patches. Beside a denial each of them is nothing.
	{sentence: "a patch in base64, with its type", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": base64.encode(json.marshal(operations))}`),
		good: changedIt, bad: silently, strict: strictly{v1beta1: "apiVersion"}},
	{sentence: "a patch in base64, without a type", modules: patchAnswer(`{"patch": base64.encode(json.marshal(operations))}`),
		good: changedIt, bad: silently, strict: strictly{"response.patchType", "apiVersion"}},
	{sentence: "a patch in URL-safe base64", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": url_safe(json.marshal(spoken))}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch in base64 without padding", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": trim_right(base64.encode(concat("", [json.marshal(operations), pad])), "=")}

pad := [s | some s in ["", " "]; (count(json.marshal(operations)) + count(s)) % 3 != 0][0]
`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch in JSON text", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": json.marshal(operations)}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that is an array", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": operations}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that is a set", modules: patchAnswer(`{"patch": {o | some o in operations}}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that is one operation", modules: patchAnswer(`{"patch": operations[1]}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a merge patch", modules: patchAnswer(`{"patch": {"metadata": {"labels": {"team": "platform"}}}}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a merge patch that says so", modules: patchAnswer(`{"patchType": "MergePatch", "patch": {"metadata": {"labels": {"team": "platform"}}}}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "the whole changed object", modules: patchAnswer(`{"patch": changed}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "the whole changed object, and it says so", modules: patchAnswer(`{"patchType": "Object", "patch": changed}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "the object as it is", modules: patchAnswer(`{"patchType": "Object", "patch": input.request.object}`),
		good: accepted, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "an empty patch", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": []}`),
		good: accepted, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that changes nothing", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": [operations[0]]}`),
		good: accepted, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a type without a patch", modules: patchAnswer(`{"patchType": "JSONPatch"}`),
		good: accepted, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "an empty text and a type", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": ""}`),
		good: accepted, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that replaces what is not there", modules: patchAnswer(`{"patch": [{"op": "replace", "path": "/metadata/labels/team", "value": "platform"}]}`),
		good: changedIt, bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that removes what is not there", modules: patchAnswer(`{"patch": array.concat(operations, [{"op": "remove", "path": "/spec/x"}])}`),
		good: troubled("response.patch", "operation 3", "remove /spec/x"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch whose test fails", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": base64.encode(json.marshal([{"op": "test", "path": "/metadata/labels/app", "value": "x"}]))}`),
		good: troubled("response.patch", "operation 1", "test /metadata/labels/app"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch to nowhere", modules: patchAnswer(`{"patch": [{"op": "add", "path": "/a/b/c", "value": 1}]}`),
		good: troubled("response.patch", "operation 1", "add /a/b/c"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch with an operation that there is not", modules: patchAnswer(`{"patch": [{"op": "upsert", "path": "/metadata/labels/team", "value": "platform"}]}`),
		good: troubled("response.patch", "operation 1"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that makes another kind of it", modules: patchAnswer(`{"patch": [{"op": "replace", "path": "/kind", "value": "Secret"}]}`),
		good: troubled("response.patch", "kind"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that is no JSON", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": "team: platform"}`),
		good: troubled("response.patch"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch that is a number", modules: patchAnswer(`{"patchType": "JSONPatch", "patch": 1}`),
		good: troubled("response.patch"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
	{sentence: "a patch of a type that there is not", modules: patchAnswer(`{"patchType": "StrategicMergePatch", "patch": {"metadata": {"labels": {"team": "platform"}}}}`),
		good: troubled("response.patchType"), bad: silently, strict: strictly{"response.patch", "apiVersion"}},
}

// manyWarnings are those that are left of forty with 302 characters each.
func manyWarnings() []string {
	var all []string
	for n := range 15 {
		all = append(all, fmt.Sprintf("%d%s…", 101+n, strings.Repeat(" ", 252)))
	}
	return append(all, "… and 25 more warnings")
}

// warned adds what the client hears.
func warned(v verdict, warnings ...string) verdict {
	v.warnings = warnings
	return v
}
