package status

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"github.com/kube-rego/kube-rego/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

const leases = "leases.coordination.k8s.io"

// stateOf is what a replica knows of another one; empty if nothing.
func (r *replica) stateOf(identity string) string {
	for _, other := range r.List() {
		if other.Identity == identity {
			return other.State(r.state().Report.Fingerprint)
		}
	}
	return ""
}

func TestReplicas(t *testing.T) {
	first, second := module("rules", "first"), module("rules", "second")
	for _, test := range []struct {
		name string
		play func(t *testing.T, c *cluster, a, b *replica)
	}{
		{"each says on a Lease what it has in force", func(t *testing.T, c *cluster, a, _ *replica) {
			lease := c.lease("a")
			if lease == nil || lease.Annotations[inForceAnnotation] != policy.NewSet(first).Fingerprint() || lease.Labels[componentLabel] != component {
				t.Fatalf("the Lease is %v", lease)
			}
			a.enforces(second)
			time.Sleep(publishPause)
			synctest.Wait()
			if lease = c.lease("a"); lease.Annotations[inForceAnnotation] != policy.NewSet(second).Fingerprint() {
				t.Error("the Lease says what was in force before")
			}
		}},
		{"one that has other modules in force lags", func(t *testing.T, _ *cluster, a, b *replica) {
			b.enforces(second)
			time.Sleep(time.Minute)
			if got := a.stateOf("b") + " " + b.stateOf("a"); got != "lagging lagging" {
				t.Errorf("they are %s", got)
			}
		}},
		{"one that is not heard of is gone after 15 s, and comes back", func(t *testing.T, c *cluster, a, _ *replica) {
			c.cutOff("b", true)
			took := c.after(t, "b is gone", func() bool { return a.stateOf("b") == policy.ReplicaGone })
			if took < replicaDuration-renewEvery || took > replicaDuration+time.Second {
				t.Errorf("it was gone after %s", took)
			}
			c.cutOff("b", false)
			c.after(t, "b is in step", func() bool { return a.stateOf("b") == policy.ReplicaInStep })
		}},
		{"the Lease of one that is gone is removed after ten minutes", func(t *testing.T, c *cluster, a, _ *replica) {
			c.cutOff("b", true)
			took := c.after(t, "the Lease is removed", func() bool { return c.lease("b") == nil })
			if took < forgetAfter-renewEvery || took > forgetAfter+2*tidyEvery || a.stateOf("b") != "" {
				t.Errorf("it was removed after %s", took)
			}
		}},
		{"one that stops in good order takes its Lease along", func(t *testing.T, c *cluster, a, b *replica) {
			b.stop()
			synctest.Wait()
			if c.lease("b") != nil || a.stateOf("b") != "" {
				t.Errorf("it is %s", a.stateOf("b"))
			}
		}},
		{"a Lease that somebody removes is written again", func(t *testing.T, c *cluster, a, _ *replica) {
			c.Remove(leases, "opa", c.lease("a").Name)
			time.Sleep(2 * renewEvery)
			if synctest.Wait(); c.lease("a") == nil || !a.Known() {
				t.Error("there is no Lease")
			}
		}},
		{"a Lease that somebody edits is renewed", func(t *testing.T, c *cluster, _, _ *replica) {
			lease := c.lease("a")
			lease.Annotations = nil
			c.Put(leases, lease)
			time.Sleep(3 * renewEvery)
			if synctest.Wait(); c.lease("a").Annotations[inForceAnnotation] == "" {
				t.Error("the Lease says nothing")
			}
		}},
		{"one that is cut off knows that it does not know the others", func(t *testing.T, c *cluster, a, _ *replica) {
			if !a.Known() {
				t.Fatal("it does not know them at first")
			}
			c.cutOff("a", true)
			if took := c.after(t, "a knows nothing", func() bool { return !a.Known() }); took > replicaDuration {
				t.Errorf("it took %s", took)
			}
			c.cutOff("a", false)
			c.after(t, "a knows", a.Known)
			if got := a.stateOf("b"); got != policy.ReplicaInStep {
				t.Errorf("b is %s", got)
			}
		}},
		{"a set that changes all the time is written ten times a second", func(t *testing.T, c *cluster, a, _ *replica) {
			updates := func() int {
				return len(c.Requests(func(r apitest.Request) bool { return r.Client == "a" && r.Verb == "update" && r.Name != leaseName }))
			}
			before := updates()
			for n := range 1000 {
				a.Publish(fmt.Sprint("set ", n), "wanted")
				time.Sleep(time.Millisecond)
			}
			if n := updates() - before; n > int(time.Second/publishPause)+1 || n < 2 {
				t.Errorf("in a second it was written %d times", n)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster()
				a, b := c.start(t, "a", first), c.start(t, "b", first)
				time.Sleep(time.Second)
				test.play(t, c, a, b)
			})
		})
	}
}

// A replica is ready only when the others can know of it.
func TestAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.refuse(func(r apitest.Request) error {
			if r.Writes() && strings.HasPrefix(r.Name, replicaPrefix) {
				return errCut
			}
			return nil
		})
		a := c.start(t, "a", module("rules", "first"))
		time.Sleep(time.Minute)
		if err := a.Announced(); err == nil || !strings.Contains(err.Error(), "is not written yet") || c.lease("a") != nil {
			t.Errorf("without a Lease it is announced: %v", err)
		}
		c.refuse(nil)
		c.after(t, "it is announced", func() bool { return a.Announced() == nil })
		if c.lease("a") == nil {
			t.Error("there is no Lease")
		}
	})
}

func TestWhatSaysNothingIsNoReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		lease := leaseOf("b", "x", time.Now())
		lease.Spec = coordinationv1.LeaseSpec{}
		c.Put(leases, lease)
		other := leaseOf("c", "x", time.Now())
		other.Labels = nil
		c.Put(leases, other)
		a := c.start(t, "a", module("rules", "first"))
		time.Sleep(time.Second)
		if all := a.List(); len(all) != 1 {
			t.Errorf("there are %v", all)
		}
	})
}
