package status

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// What ok means: docs/adr/0010. The writer is always a, which starts first.
func TestOKMeansOnEveryReplica(t *testing.T) {
	first, second := module("rules", "first"), module("rules", "second")
	for _, test := range []struct {
		name string
		play func(*testing.T, *cluster)
	}{
		{"a replica that is alone says ok", func(t *testing.T, c *cluster) {
			c.start(t, "a", first)
			c.saysOK(t, "rules")
		}},
		{"two that have the same in force say ok", func(t *testing.T, c *cluster) {
			c.start(t, "a", first)
			c.start(t, "b", first)
			c.saysOK(t, "rules")
		}},
		{"one that lags keeps ok back as long as it lags, and not a moment longer", func(t *testing.T, c *cluster) {
			b := withOneThatLags(t, c)
			for range 10 {
				time.Sleep(time.Minute)
				if got := c.saysNow("library"); got != "" {
					t.Fatalf("it says %s", got)
				}
			}
			b.enforces(first, library)
			if took := c.saysOK(t, "library"); took > time.Second {
				t.Errorf("ok came after %s", took)
			}
		}},
		{"one of four that lags is enough", func(t *testing.T, c *cluster) {
			b := withOneThatLags(t, c)
			c.start(t, "c", first, library)
			c.start(t, "d", first, library)
			time.Sleep(time.Minute)
			if got := c.saysNow("library"); got != "" {
				t.Errorf("it says %s", got)
			}
			b.enforces(first, library)
			c.saysOK(t, "library")
		}},
		{"one that is gone is waited for as long as its Lease lasts", func(t *testing.T, c *cluster) {
			withOneThatLags(t, c)
			time.Sleep(time.Minute)
			c.cutOff("b", true)
			took := c.saysOK(t, "library")
			if took < replicaDuration-renewEvery || took > replicaDuration+2*lookAgain {
				t.Errorf("ok came after %s, want %s after the last renewal", took, replicaDuration)
			}
		}},
		{"one that comes back is waited for again", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			b := c.start(t, "b", first)
			c.cutOff("b", true)
			time.Sleep(time.Minute)
			a.enforces(second)
			c.after(t, "the second version is recorded", func() bool { return len(c.revisions("rules")) == 2 })
			c.saysOK(t, "rules")
			c.cutOff("b", false)
			time.Sleep(time.Minute)
			a.enforces(module("rules", "third"))
			time.Sleep(time.Minute)
			if got := c.saysNow("rules"); got != configmap.Pending {
				t.Errorf("it says %s while b still has the first version", got)
			}
			b.enforces(module("rules", "third"))
			c.saysOK(t, "rules")
		}},
		{"one that stops in good order is not waited for", func(t *testing.T, c *cluster) {
			b := withOneThatLags(t, c)
			time.Sleep(time.Minute)
			b.stop()
			if took := c.saysOK(t, "library"); took > 2*lookAgain {
				t.Errorf("ok came after %s", took)
			}
		}},
		{"one that has nothing in force yet is not ready, and not waited for", func(t *testing.T, c *cluster) {
			c.start(t, "a", first)
			b := c.newReplica(t, "b")
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { defer close(ended); _ = b.Run(ctx, func() {}) }()
			t.Cleanup(func() { cancel(); <-ended })
			c.saysOK(t, "rules")
		}},
		{"a Lease that nobody renews since long is of nobody who is alive", func(t *testing.T, c *cluster) {
			c.Put("leases.coordination.k8s.io", leaseOf("b", "old", time.Now().Add(-staleAfter-time.Minute)))
			c.start(t, "a", first)
			if took := c.saysOK(t, "rules"); took >= replicaDuration {
				t.Errorf("ok came after %s", took)
			}
		}},
		{"a Lease that is found at the start counts as renewed just now", func(t *testing.T, c *cluster) {
			c.Put("leases.coordination.k8s.io", leaseOf("b", "old", time.Now().Add(-time.Minute)))
			c.start(t, "a", first)
			if took := c.saysOK(t, "rules"); took < replicaDuration {
				t.Errorf("ok came after %s", took)
			}
		}},
		{"a writer that does not hear of the others does not say ok", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			c.saysOK(t, "rules")
			c.refuse(func(r apitest.Request) error {
				if r.Client == "a" && (r.Verb == "watch" || r.Verb == "list") {
					return errCut
				}
				return nil
			})
			c.HangUp()
			time.Sleep(time.Minute)
			a.enforces(second)
			time.Sleep(time.Minute)
			if got := c.saysNow("rules"); got != configmap.Pending {
				t.Errorf("it says %s", got)
			}
			c.refuse(nil)
			c.saysOK(t, "rules")
		}},
		{"an edit that all have within a second costs no write", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			b := c.start(t, "b", first)
			c.saysOK(t, "rules")
			before := len(patches(c))
			a.enforces(second)
			time.Sleep(patience * 9 / 10)
			b.enforces(second)
			time.Sleep(time.Minute)
			if got := c.saysNow("rules"); got != configmap.OK || len(patches(c)) != before {
				t.Errorf("it says %s after %q", got, patches(c)[before:])
			}
		}},
		{"an ok of the version before is taken back after a second", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			b := c.start(t, "b", first)
			c.saysOK(t, "rules")
			time.Sleep(5 * time.Minute)
			a.enforces(second)
			took := c.after(t, "it says pending", func() bool { return c.says("rules") == configmap.Pending })
			if took < patience || took > 2*patience {
				t.Errorf("pending came after %s", took)
			}
			time.Sleep(5 * time.Minute)
			if got := c.saysNow("rules"); got != configmap.Pending {
				t.Errorf("it says %s", got)
			}
			b.enforces(second)
			c.saysOK(t, "rules")
		}},
		{"an ok that the writer before has left is taken back, too", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			b := c.start(t, "b", first)
			c.saysOK(t, "rules")
			time.Sleep(time.Minute)
			b.enforces(second)
			synctest.Wait()
			a.stop()
			c.start(t, "c", first)
			c.after(t, "it says pending", func() bool { return c.says("rules") == configmap.Pending })
		}},
		{"an error is written at once, whatever others have", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			c.start(t, "b")
			a.holds(broken("rules", policy.Previous))
			if got := c.saysNow("rules"); !strings.HasPrefix(got, `{"status":"error"`) || !strings.Contains(got, `"inForce":"previous"`) {
				t.Errorf("it says %s", got)
			}
		}},
		{"what is about to be known is not told within a second", func(t *testing.T, c *cluster) {
			a := c.start(t, "a", first)
			c.saysOK(t, "rules")
			s := broken("rules", policy.Previous)
			s.Problems[0].Code = policy.CodePending
			a.holds(s)
			if took := c.after(t, "it says error", func() bool { return c.says("rules") != configmap.OK }); took < patience {
				t.Errorf("it was told after %s", took)
			}
		}},
		{"the revision comes before ok", func(t *testing.T, c *cluster) {
			c.start(t, "a", first)
			c.saysOK(t, "rules")
			want := "create controllerrevisions.apps opa/rules-1, patch configmaps opa/rules"
			if got := strings.Join(withoutEvents(c.written("a")), ", "); got != want {
				t.Errorf("it has written: %s; want %s", got, want)
			}
		}},
		{"what cannot be recorded is not called ok", func(t *testing.T, c *cluster) {
			c.refuse(func(r apitest.Request) error {
				if r.Writes() && r.Resource == "controllerrevisions.apps" {
					return errCut
				}
				return nil
			})
			c.start(t, "a", first)
			time.Sleep(5 * time.Minute)
			if got := c.saysNow("rules"); got != "" {
				t.Errorf("it says %s", got)
			}
			c.refuse(nil)
			c.saysOK(t, "rules")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster()
				c.policy("rules", nil)
				test.play(t, c)
			})
		})
	}
}

var library = module("library", "first")

// withOneThatLags has the writer a enforce a library that b does not have.
func withOneThatLags(t *testing.T, c *cluster) (b *replica) {
	t.Helper()
	first := module("rules", "first")
	a := c.start(t, "a", first)
	b = c.start(t, "b", first)
	a.enforces(first, library)
	synctest.Wait()
	c.policy("library", nil)
	synctest.Wait()
	return b
}

// patches are those of the ConfigMaps.
func patches(c *cluster) []string {
	return c.Requests(func(r apitest.Request) bool { return r.Verb == "patch" && r.Resource == "configmaps" })
}

func withoutEvents(writes []string) []string {
	var others []string
	for _, w := range writes {
		if !strings.Contains(w, " events ") {
			others = append(others, w)
		}
	}
	return others
}

// leaseOf is a Lease that some replica has left.
func leaseOf(identity, inForce string, renewed time.Time) *coordinationv1.Lease {
	at := metav1.NewMicroTime(renewed)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "opa", Name: replicaPrefix + identity, Labels: replicaLabels(),
			Annotations: map[string]string{inForceAnnotation: inForce},
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &identity, RenewTime: &at},
	}
}

// A status speaks of one version of a policy: if its author was faster, it is not written.
func TestTheStatusOfAVersionThatIsNoMoreIsNotWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		edits := 0
		c.refuse(func(r apitest.Request) error {
			if r.Verb == "patch" && r.Resource == "configmaps" && edits < 3 {
				edits++
				c.policy("rules", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"main": strings.Repeat("x", edits)} })
			}
			return nil
		})
		c.start(t, "a", module("rules", "first"))
		c.saysOK(t, "rules")
		cm := apitest.Get[corev1.ConfigMap](c.Server, "configmaps", "opa", "rules")
		if len(patches(c)) < 4 || cm.Data["main"] != "xxx" {
			t.Errorf("after %d writes the policy is %q", len(patches(c)), cm.Data["main"])
		}
	})
}
