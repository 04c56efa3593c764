package configmap_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/configmap"
)

func TestCheckLabels(t *testing.T) {
	const (
		badKey = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
		badVal = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
	)
	for _, test := range []struct {
		name                                           string
		policyLabel, policyValue, dataLabel, dataValue string
		want                                           string
	}{
		{name: "labels that Kubernetes takes", policyLabel: "openpolicyagent.org/policy", policyValue: "rego", dataLabel: "data", dataValue: "opa"},
		{name: "values may be empty", policyLabel: "policy", dataLabel: "data"},
		{
			name: "no labels", want: `--policy-label: "": name part must be non-empty` + "\n" + `--data-label: "": name part must be non-empty`,
		},
		{
			name: "everything is wrong", policyLabel: "a b", policyValue: "{}", dataLabel: "a/-b", dataValue: "-",
			want: `--policy-label: "a b": ` + badKey + "\n" + `--policy-value: "{}": ` + badVal + "\n" +
				`--data-label: "a/-b": ` + badKey + "\n" + `--data-value: "-": ` + badVal,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := ""
			if err := configmap.CheckLabels(test.policyLabel, test.policyValue, test.dataLabel, test.dataValue); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestCheckFlag(t *testing.T) {
	if err := configmap.CheckFlag("--namespace", "opa", validation.IsDNS1123Label); err != nil {
		t.Error(err)
	}
	const want = `--namespace: "OPA": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', ` +
		`and must start and end with an alphanumeric character`
	if err := configmap.CheckFlag("--namespace", "OPA", validation.IsDNS1123Label); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
