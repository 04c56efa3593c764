package configmap_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestParseStatusReadsWhatIsWritten(t *testing.T) {
	problem := policy.Problem{Code: "rego_parse_error", Message: "unexpected <eof>", Row: 3, Col: 14}
	told := configmap.ModuleProblem{Module: "opa/rules/main", Problem: problem}
	many := make([]policy.Problem, 12)
	for i := range many {
		many[i] = problem
	}
	for _, test := range []struct {
		name, text string
		want       configmap.ParsedStatus
	}{
		{"ok", configmap.OK, configmap.ParsedStatus{Status: "ok"}},
		{"pending says what it waits for", configmap.Pending, configmap.ParsedStatus{Status: "pending", Message: "not yet in force on every replica"}},
		{
			"an error with its problems and nothing beside them",
			configmap.Status([]policy.Status{status("main", policy.Previous, problem)}),
			configmap.ParsedStatus{Status: "error", InForce: policy.Previous, Problems: []configmap.ModuleProblem{told}},
		},
		{
			"an error that shows ten of twelve problems says so",
			configmap.Status([]policy.Status{status("main", policy.None, many...)}),
			configmap.ParsedStatus{
				Status: "error", InForce: policy.None, Message: "12, of which the first 10 are shown",
				Problems: []configmap.ModuleProblem{told, told, told, told, told, told, told, told, told, told},
			},
		},
		{
			"kube-mgmt does not say what is in force",
			`{"status":"error","error":{"code":"invalid_parameter","message":"error(s) occurred while compiling module(s)",` +
				`"errors":[{"code":"rego_parse_error","message":"unexpected <eof>","location":{"file":"opa/rules/main","row":3,"col":14}}]}}`,
			configmap.ParsedStatus{Status: "error", Problems: []configmap.ModuleProblem{told}},
		},
		{
			"an error without problems keeps its message",
			`{"status":"error","error":{"code":"internal_error","message":"no connection"}}`,
			configmap.ParsedStatus{Status: "error", Message: "no connection"},
		},
		{"an error that says nothing", `{"status":"error"}`, configmap.ParsedStatus{Status: "error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := configmap.ParseStatus(test.text)
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v and error %v\nwant %+v", got, err, test.want)
			}
		})
	}
}

func TestParseStatusRefusesOtherTexts(t *testing.T) {
	for text, want := range map[string]string{
		"":                  "unexpected end of JSON input",
		"ok":                "invalid character 'o'",
		`{}`:                `unknown status ""`,
		`{"status":"fine"}`: `unknown status "fine"`,
		`{"status":"error","inForce":"\u001b[2J"}`: `unknown version in force "\x1b[2J"`,
	} {
		_, err := configmap.ParseStatus(text)
		if err == nil || !strings.HasPrefix(err.Error(), "reading the status: "+want) {
			t.Errorf("%s: got error %v, want %s", text, err, want)
		}
	}
}
