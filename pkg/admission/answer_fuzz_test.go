package admission_test

import (
	"bytes"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/admission"
)

// FuzzAnswer has policies answer anything. What is made of it is either an error or an
// answer that the API server takes, and yes only where they said so.
func FuzzAnswer(f *testing.F) {
	const pod = `{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c"}]}}`
	for _, answer := range []string{
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u1","allowed":true}}`,
		`{"apiVersion":"admission.k8s.io/v1beta1","response":{"allowed":false,"status":{"reason":"no"}}}`,
		`{"kind":"AdmissionReveiw","response":{"uid":7,"allowed":false,"status":{"code":"418","message":"\u0000","details":{"causes":[{}]}}}}`,
		`{"response":{"allowed":true,"Allowed":false,"warnings":["a\nb","",7,{"msg":"x"}],"auditAnnotations":{"a b":1,"decision-id":null,"é":"x"}}}`,
		`{"response":{"allowed":true,"warnings":"one","patch":[{"op":"replace","path":"/metadata/labels/x","value":null}]}}`,
		`{"response":{"allowed":true,"patchType":"MergePatch","patch":{"metadata":{"labels":null}}}}`,
		`{"response":{"allowed":true,"patch":{"apiVersion":"v1","kind":"Pod","spec":{}}}}`,
		`{"response":{"allowed":true,"patchType":"JSONPatch","patch":"W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL3NwZWMifV0="}}`,
		`{"response":{"allowed":true,"patchType":"JSONPatch","patch":"[{\"op\":\"remove\",\"path\":\"/spec/x\"}]"}}`,
		`{"response":{"allowed":true,"patchType":"JSONPatch"}}`,
		`{"response":{"allowed":false,"patch":[{"op":"remove","path":"/spec"}],"status":{"code":200,"status":"Success"}}}`,
		`{"response":{"allowed":true,"auditAnnotations":"two things","status":"are wrong"}}`, // a newline in a warning drops it
		`{"response":{"allowed":"true"}}`, `{"response":{"allowed":1}}`, `{"response":true}`, `{"allowed":true}`, `[]`, `null`, `true`, `1e400`, `""`,
	} {
		f.Add([]byte(answer), []byte(pod), false, uint8(0))
		f.Add([]byte(answer), []byte("null"), true, uint8(8))
		f.Add([]byte(answer), []byte(pod), false, uint8(3))
	}
	f.Fuzz(func(t *testing.T, given, object []byte, old bool, flags uint8) {
		if json.Valid(given) && json.Valid(object) {
			checkAnswer(t, given, object, old, flags)
		}
	})
}

// Random bytes seldom are an answer. These are: each field is one of what policies put
// there, rightly or not.
func TestRandomAnswers(t *testing.T) {
	fields := map[string][]string{
		"uid":     {`"u1"`, `"u2"`, `""`, `7`, `null`},
		"allowed": {`true`, `true`, `false`, `false`, `"true"`, `null`},
		"status": {
			`{"reason":"no"}`, `{"message":"no","code":409}`, `{"code":0}`, `{"code":"404","reason":""}`, `{"code":6.5}`, `{"code":1000}`, `{"message":7}`,
			`{"message":["a","b"],"reason":"x"}`, `{"details":{"causes":[{"field":"x"}]},"metadata":{}}`, `{"details":"x"}`, `{}`, `"no"`, `null`,
			`{"status":"Success","message":"a\u0000b"}`, `{"code":-1,"reason":{"a":1},"message":null}`,
		},
		"patch": {
			`[]`, `{}`, `""`, `null`, `7`, `[{"op":"add","path":"/metadata/annotations","value":{}}]`, `[{"op":"remove","path":"/x"}]`,
			`"W3sib3AiOiJyZW1vdmUiLCJwYXRoIjoiL3NwZWMifV0"`, `"e30="`, `{"spec":{"a":1}}`, `{"apiVersion":"v1","kind":"Pod"}`, `{"op":"remove","path":"/spec"}`,
			`[{"op":"replace","path":"/spec/new","value":"<&>"}]`, `[{"op":"test","path":"/kind","value":"Pod"}]`, `[[{"op":"remove","path":"/spec"}]]`,
		},
		"patchType":        {`"JSONPatch"`, `"MergePatch"`, `"Object"`, `""`, `"x"`, `null`, `1`},
		"warnings":         {`["a"]`, `[]`, `"a"`, `[7,null,{"a":"é"},"\n","\u0085\u200b"]`, `{"a":1}`, `null`, quote(strings.Repeat("é", 5000)), `[` + strings.Repeat(quote(strings.Repeat("w", 300))+",", 30) + `""]`},
		"auditAnnotations": {`{"a":"b"}`, `{"a/b":1,"-":"x","":"y","decision-id":"z"}`, `{"a b":null,"a.b":[1],"a_b":"` + strings.Repeat("v", 999) + `"}`, `{}`, `"x"`, `null`, `{"` + strings.Repeat("k", 99) + `":""}`},
		"extra":            {`1`, `{"allowed":true}`},
		"Allowed":          {`true`, `false`},
	}
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(of []string) string { return of[random.IntN(len(of))] }
	for range 5_000 {
		var response []string
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if name == "allowed" || random.IntN(3) == 0 {
				response = append(response, quote(name)+":"+pick(fields[name]))
			}
		}
		answer := `{"apiVersion":` + pick([]string{`"admission.k8s.io/v1"`, `"admission.k8s.io/v1beta1"`, `"v1"`, `null`}) +
			`,"kind":` + pick([]string{`"AdmissionReview"`, `"AdmissionReveiw"`, `1`}) + `,"response":{` + strings.Join(response, ",") + `}}`
		object := pick([]string{`null`, `{"apiVersion":"v1","kind":"Pod","metadata":{},"spec":{"a":9007199254740993}}`})
		checkAnswer(t, []byte(answer), []byte(object), random.IntN(2) == 0, uint8(random.IntN(256)))
		if t.Failed() {
			t.Fatalf("the policies answered %s\nabout %s", answer, object)
		}
	}
}

// quote is a text in JSON.
func quote(s string) string {
	encoded, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

// checkAnswer holds what is made of an answer about an object against the API server.
// The flags are those of the command line.
func checkAnswer(t *testing.T, given, object []byte, old bool, flags uint8) {
	t.Helper()
	version := "v1"
	if old {
		version = "v1beta1"
	}
	config := admission.Config{
		Entrypoint: "system/main",
		Strict:     flags&1 != 0,
		Validating: flags&2 != 0,
		OnError:    []admission.Action{admission.Fail, admission.Deny, admission.Allow}[flags>>2%3],
	}
	value, body := fromJSON(t, given), []byte(asked(version, `"uid":"u1","object":`+string(object)))
	answer, err := admission.NewReviewer(constant{value}, config).Review(t.Context(), body)
	if !reflect.DeepEqual(value, fromJSON(t, given)) {
		t.Errorf("what the policy gave is now %v", value)
	}
	if err != nil {
		if answer.Body != nil || answer.Allowed || config.OnError != admission.Fail {
			t.Errorf("the answer %+v stands beside the error %v", answer, err)
		}
		return
	}
	accept(t, answer.Body, "admission.k8s.io/"+version, "AdmissionReview", "u1")
	var review admissionv1.AdmissionReview // the two versions have the same fields
	if err := json.Unmarshal(answer.Body, &review); err != nil {
		t.Fatal(err)
	}
	want := saysYes(value)
	if answer.Cause != nil {
		want = config.OnError == admission.Allow
	}
	if answer.Allowed != want || review.Response.Allowed != want {
		t.Errorf("Allowed is %v, and the answer %s, want %v", answer.Allowed, answer.Body, want)
	}
	checkResponse(t, review.Response)
	checkPatch(t, review.Response, object, config.Validating)
	if answer.Cause == nil {
		checkRight(t, answer.Body, body, config)
	}
}

// fromJSON is a value as a decider gives it.
func fromJSON(t *testing.T, content []byte) any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatalf("%v: %s", err, content)
	}
	return value
}

// saysYes reports whether an answer allows, in the one word that does.
func saysYes(answer any) bool {
	review, _ := answer.(map[string]any)
	response, _ := review["response"].(map[string]any)
	return response["allowed"] == true
}

// checkResponse holds a response against the code of the API server that reads it.
func checkResponse(t *testing.T, response *admissionv1.AdmissionResponse) {
	t.Helper()
	if !response.Allowed {
		if status := response.Result; status == nil || status.Code < 400 || status.Code > 599 || status.Message == "" {
			t.Errorf("the denial does not say why, or with no code of an error: %+v", status)
		}
	}
	runes, longest := 0, 0
	for _, warning := range response.Warnings {
		if _, err := utilnet.NewWarningHeader(299, "-", warning); err != nil {
			t.Errorf("the API server drops the warning %q: %v", warning, err)
		}
		runes += utf8.RuneCountInString(warning)
		longest = max(longest, utf8.RuneCountInString(warning))
	}
	if runes > 4096 {
		t.Errorf("the API server drops some of %d runes of warnings, the longest of %d", runes, longest)
	}
	for key := range response.AuditAnnotations {
		if faults := validation.IsQualifiedName("webhook.example.org/" + key); len(faults) > 0 {
			t.Errorf("the API server takes no audit annotation %q: %v", key, faults)
		}
	}
}

// checkPatch does with the patch what the API server does.
func checkPatch(t *testing.T, response *admissionv1.AdmissionResponse, object []byte, validating bool) {
	t.Helper()
	if response.Patch == nil && response.PatchType == nil {
		return
	}
	if validating || !response.Allowed || response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Errorf("there is a patch in %+v", response)
	}
	patch, err := jsonpatch.DecodePatch(response.Patch)
	if err != nil || len(patch) == 0 {
		t.Fatalf("%v: %s", err, response.Patch)
	}
	encoded, err := json.Marshal(fromJSON(t, object)) // as the API server encodes it
	if err != nil {
		t.Fatal(err)
	}
	if _, err := patch.Apply(encoded); err != nil {
		t.Errorf("the patch %s does not apply to %s: %v", response.Patch, encoded, err)
	}
}

// checkRight gives an answer that was made right back, as that of a policy: strictly
// there is nothing wrong with it, and nothing left to do.
func checkRight(t *testing.T, answer, asked []byte, config admission.Config) {
	t.Helper()
	config.Strict = true
	again, err := admission.NewReviewer(constant{fromJSON(t, answer)}, config).Review(t.Context(), asked)
	if err != nil || again.Cause != nil || !bytes.Equal(again.Body, answer) {
		t.Errorf("the answer   %s\nbecomes      %s, %v, %v", answer, again.Body, again.Cause, err)
	}
}
