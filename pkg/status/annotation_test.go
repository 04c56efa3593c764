package status

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Somebody who takes the status away gets it back at once, and a tool that goes on
// doing so gets it ever more slowly.
func TestAStatusThatSomebodyKeepsTakingAwayComesEverMoreSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		a := c.start(t, "a", module("rules", "first"))
		c.saysOK(t, "rules")
		reset := func() { c.policy("rules", func(cm *corev1.ConfigMap) { delete(cm.Annotations, annotation) }) }
		for n, seconds := range []time.Duration{0, 10, 20, 40, 80, 160, 320, 600, 600} {
			reset()
			if took := c.saysOK(t, "rules").Round(time.Second); took != seconds*time.Second {
				t.Errorf("taken away %d times, it came back after %s, want %s", n+1, took, seconds*time.Second)
			}
		}
		reset()
		synctest.Wait()
		a.holds(broken("rules", policy.Previous))
		if took := c.after(t, "another status", func() bool { return c.says("rules") != "" }); took > 0 {
			t.Errorf("another status came after %s", took)
		}
		a.holds()
		c.saysOK(t, "rules")
		time.Sleep(3 * lastRewrite)
		reset()
		if took := c.saysOK(t, "rules"); took > 0 {
			t.Errorf("after a long time without trouble it came back after %s", took)
		}
	})
}

func TestAStatusGoesWithWhatItSpeaksOf(t *testing.T) {
	first := module("rules", "first")
	unlabelled := func(cm *corev1.ConfigMap) { delete(cm.Labels, label) }
	for _, test := range []struct {
		name string
		play func(*testing.T, *cluster, *replica)
		want string // the annotation
	}{
		{"a ConfigMap that is a policy no more loses it", func(_ *testing.T, c *cluster, a *replica) {
			c.policy("rules", unlabelled)
			a.enforces()
			time.Sleep(time.Minute)
		}, ""},
		{"one whose removal is held says so", func(_ *testing.T, c *cluster, a *replica) {
			c.policy("rules", unlabelled)
			s := broken("rules", policy.Previous)
			s.Deleted = true
			a.holds(s)
			time.Sleep(time.Minute)
		}, configmap.Status([]policy.Status{func() policy.Status {
			s := broken("rules", policy.Previous)
			s.Deleted = true
			return s
		}()})},
		{"one that lost its label while nobody looked loses it when somebody is elected", func(t *testing.T, c *cluster, a *replica) {
			a.stop()
			c.policy("rules", unlabelled)
			for _, r := range c.history().Of(nameOf(first)) { // nor is anything recorded of it
				c.Remove("controllerrevisions.apps", "opa", r.ObjectName)
			}
			c.start(t, "b")
			time.Sleep(time.Minute)
		}, ""},
		{"a policy keeps it", func(t *testing.T, c *cluster, a *replica) {
			a.stop()
			c.start(t, "b", first)
			time.Sleep(time.Minute)
		}, configmap.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster()
				c.policy("rules", func(cm *corev1.ConfigMap) { cm.Annotations = map[string]string{"team": "a"} })
				a := c.start(t, "a", first)
				c.saysOK(t, "rules")
				test.play(t, c, a)
				if got := c.saysNow("rules"); got != test.want {
					t.Errorf("it says %q, want %q", got, test.want)
				}
				if cm := apitest.Get[corev1.ConfigMap](c.Server, "configmaps", "opa", "rules"); cm.Annotations["team"] != "a" {
					t.Error("the annotation of somebody else is gone")
				}
			})
		})
	}
}

// The sweep of a new term goes through all ConfigMaps, page by page.
func TestTheSweepReadsEveryPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		const others = pageSize + 1
		for n := range others {
			c.Put("configmaps", corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{
				Namespace: "opa", Name: fmt.Sprintf("other-%04d", n), Annotations: map[string]string{annotation: configmap.OK},
			}})
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		writer := c.newReplica(t, "a").writer
		go func() { defer close(ended); _ = writer.Run(ctx, func() {}) }()
		time.Sleep(time.Second)
		synctest.Wait()
		cancel()
		<-ended
		for n := range others {
			if name := fmt.Sprintf("other-%04d", n); c.says(name) != "" {
				t.Fatalf("%s still has a status", name)
			}
		}
		if n := len(c.Requests(func(r apitest.Request) bool { return r.Verb == "list" && r.Resource == "configmaps" })); n != 2 {
			t.Errorf("they were listed on %d pages", n)
		}
	})
}

func TestWithoutAnAnnotationNoConfigMapIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		c.policy("other", func(cm *corev1.ConfigMap) {
			cm.Labels, cm.Annotations = nil, map[string]string{annotation: configmap.OK}
		})
		a := c.newReplica(t, "a")
		a.writer.config.Annotation = ""
		a.run(t)
		a.enforces(module("rules", "first"))
		time.Sleep(time.Minute)
		a.holds(broken("rules", policy.Previous))
		time.Sleep(time.Minute)
		if got := patches(c); len(got) > 0 || len(c.revisions("rules")) != 1 {
			t.Errorf("there were %q, and there are the revisions %v", got, c.revisions("rules"))
		}
	})
}
