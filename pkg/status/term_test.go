package status

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The informer of ConfigMaps may be minutes behind that of revisions. What it shows
// then must not be recorded over what was recorded later.
func TestALaterVersionIsNotRecordedOver(t *testing.T) {
	created := time.Unix(1_700_000_000, 0)
	recorded := func(version uint64) []configmap.Revision {
		module := policy.Module{ID: policy.ID{Namespace: "opa", Name: "rules", Key: "main"}, Created: created, ObjectVersion: version}
		return []configmap.Revision{configmap.NewRevision("opa", "opa", "rules", 2, policy.NewSet(module))}
	}
	seen := func(version string, created time.Time) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{ResourceVersion: version, CreationTimestamp: metav1.NewTime(created)}}
	}
	for sentence, c := range map[string]struct {
		desired desired
		want    bool
	}{
		"recorded in a later version":             {desired{configMap: seen("100", created), revisions: recorded(200)}, true},
		"recorded in this version":                {desired{configMap: seen("200", created), revisions: recorded(200)}, false},
		"recorded in an earlier version":          {desired{configMap: seen("300", created), revisions: recorded(200)}, false},
		"recorded of another object of this name": {desired{configMap: seen("100", created.Add(time.Hour)), revisions: recorded(200)}, false},
		"not recorded yet":                        {desired{configMap: seen("100", created)}, false},
		"gone":                                    {desired{revisions: recorded(200)}, false},
	} {
		if got := c.desired.behind(written{}); got != c.want {
			t.Errorf("%s: behind is %t, want %t", sentence, got, c.want)
		}
	}
}

// Somebody who takes the status away gets it back at once, and a tool that goes on
// doing so gets it ever more slowly.
func TestTheSameStatusIsWrittenEverMoreSlowly(t *testing.T) {
	var w writes
	var got []time.Duration
	for range 10 {
		got = append(got, w.delay("ok", "f").Round(time.Second))
		w = w.with("ok", "f", "1")
	}
	want := []time.Duration{0, 0, 10, 20, 40, 80, 160, 320, 600, 600}
	for i := range want {
		if got[i] != want[i]*time.Second {
			t.Errorf("before write %d it waits %s, want %s", i+1, got[i], want[i]*time.Second)
		}
	}
	if d := w.delay("error", "f"); d > 0 {
		t.Errorf("another text waits %s", d)
	}
	if d := w.delay("ok", "g"); d > 0 {
		t.Errorf("the same text of another version waits %s", d)
	}
}
