package status_test

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/status"
)

func TestReplicaOf(t *testing.T) {
	holder, now := "kube-rego-1", metav1.NowMicro()
	meta := metav1.ObjectMeta{Annotations: map[string]string{
		"openpolicyagent.org/in-force": "abc", "openpolicyagent.org/wanted": "def",
	}}
	whole := &coordinationv1.Lease{ObjectMeta: meta, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder, RenewTime: &now}}
	live := policy.Replica{Identity: "kube-rego-1", InForce: "abc", Wanted: "def"}
	gone := live
	gone.Gone = true
	for _, test := range []struct {
		name    string
		lease   *coordinationv1.Lease
		unheard time.Duration
		want    policy.Replica
		ok      bool
	}{
		{"renewed a moment ago", whole, time.Second, live, true},
		{"renewed as long ago as it may be", whole, 15 * time.Second, live, true},
		{"not renewed for longer", whole, 15*time.Second + 1, gone, true},
		{"renewed by a clock that is ahead", whole, -time.Hour, live, true},
		{"that of nobody", &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &now}}, 0, policy.Replica{}, false},
		{"never renewed", &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}, 0, policy.Replica{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, ok := status.ReplicaOf(test.lease, test.unheard)
			if got != test.want || ok != test.ok {
				t.Errorf("got %+v, %t; want %+v, %t", got, ok, test.want, test.ok)
			}
		})
	}
}
