package e2e_test

import (
	"os"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// endlessRule is evaluated for longer than any webhook may take, if the label endless is asked about.
const endlessRule = `package kubernetes.admission

deny contains "found" if {
	input.request.object.metadata.labels.endless
	some x in numbers.range(1, 30000)
	some y in numbers.range(1, 30000)
	x == y + 40000
}
`

// A policy that takes all the time of a webhook is cancelled before the API server gives up: its user reads why, and its
// author finds an event.
func TestARunawayPolicy(t *testing.T) {
	_, instance := install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "endless", "rule", endlessRule))
	for _, name := range []string{"main", "endless"} {
		annotation(t, opa, name, is(statusOK))
	}
	cm := policy(metav1.NamespaceDefault, "asks")
	cm.Labels = map[string]string{"endless": "yes"}
	_, err := cluster.Client().CoreV1().ConfigMaps(cm.Namespace).Create(t.Context(), cm, metav1.CreateOptions{})
	if want := "the policies did not come to a decision in the time that there was"; !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("the user reads %v, want an internal error: %s", err, want)
	}
	told(t, "endless", "Warning PolicyTimeout opa/endless/rule was being evaluated when the time of an admission review was up, called by opa/main/main")
	log, err := os.ReadFile(instance.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	if want := `msg="policy ran out of time"`; !strings.Contains(string(log), want) {
		t.Errorf("the log does not say %s", want)
	}
	// Who does not ask for it is not kept waiting.
	other := policy(metav1.NamespaceDefault, "asks-for-nothing")
	other.Labels = nil
	create(t, other)
}
