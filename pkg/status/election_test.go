package status

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/internal/apitest"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// newElectionTime is at most how long a Lease that was given back is without a holder:
// whoever does not hold it looks every retryPeriod, and up to 1.2 times that more
// (k8s.io/client-go/tools/leaderelection, JitterFactor). As late may it see the last
// renewal of one that expires; and the tests look once in a second.
const newElectionTime = retryPeriod * 22 / 10

func TestOneReplicaIsElectedToWrite(t *testing.T) {
	first, second := module("rules", "first"), module("rules", "second")
	for _, test := range []struct {
		name string
		play func(t *testing.T, c *cluster, a, b *replica)
	}{
		{"the other one writes nothing", func(t *testing.T, c *cluster, a, b *replica) {
			a.enforces(second)
			b.enforces(second)
			time.Sleep(time.Minute)
			if got := c.written("b"); len(got) > 0 || len(c.revisions("rules")) != 2 {
				t.Errorf("b has written %q, and there are the revisions %v", got, c.revisions("rules"))
			}
			if a.writer.Leader() != "a" || b.writer.Leader() != "a" {
				t.Errorf("for a the writer is %s, for b %s", a.writer.Leader(), b.writer.Leader())
			}
		}},
		{"one that stops in good order is followed within seconds", func(t *testing.T, c *cluster, a, b *replica) {
			a.stop()
			if took := c.after(t, "b is elected", func() bool { return b.writer.Leader() == "b" }); took > newElectionTime+time.Second {
				t.Errorf("b was elected after %s", took)
			}
			b.enforces(second)
			c.after(t, "b has recorded it", func() bool { return len(c.revisions("rules")) == 2 })
		}},
		{"one that is cut off is followed when its Lease expires, and no sooner", func(t *testing.T, c *cluster, a, b *replica) {
			c.cutOff("a", true)
			took := c.after(t, "b is elected", func() bool { return b.writer.Leader() == "b" })
			if took < leaseDuration-newElectionTime || took > leaseDuration+2*newElectionTime+time.Second {
				t.Errorf("b was elected after %s, want about %s", took, leaseDuration)
			}
			before := len(c.written("a"))
			a.enforces(second)
			b.enforces(second)
			c.cutOff("a", false)
			time.Sleep(time.Minute)
			if got := c.written("a")[before:]; len(got) > 0 {
				t.Errorf("a has written %q", got)
			}
			if a.writer.Leader() != "b" || len(c.revisions("rules")) != 2 {
				t.Errorf("for a the writer is %s", a.writer.Leader())
			}
		}},
		{"one that was suspended writes nothing when it goes on", func(t *testing.T, c *cluster, a, b *replica) {
			c.refuse(func(r apitest.Request) error {
				if r.Client == "a" && r.Name == leaseName {
					time.Sleep(time.Minute) // it waits for an answer, and does not know that its Lease expires
				}
				if r.Client == "a" && r.Writes() && r.Resource == "controllerrevisions.apps" {
					return errCut // so that a and b would not write against each other without end
				}
				return nil
			})
			c.after(t, "b is elected", func() bool { return b.writer.Leader() == "b" })
			before := len(c.written("a"))
			a.enforces(second)
			time.Sleep(10 * time.Second)
			if got := c.written("a")[before:]; len(got) > 0 || a.writer.Leader() != "a" {
				t.Errorf("a takes %s for the writer, and has written %q", a.writer.Leader(), got)
			}
			b.enforces(second)
			synctest.Wait()
			c.refuse(nil)
			time.Sleep(2 * time.Minute)
			if a.writer.Leader() != b.writer.Leader() {
				t.Errorf("for a the writer is %s, for b %s", a.writer.Leader(), b.writer.Leader())
			}
		}},
		{"one that gives up may be elected again", func(t *testing.T, c *cluster, a, b *replica) {
			a.cutOff("a", true)
			c.after(t, "b is elected", func() bool { return b.writer.Leader() == "b" })
			a.cutOff("a", false)
			a.cutOff("b", true)
			c.after(t, "a is elected", func() bool { return a.writer.Leader() == "a" })
			a.enforces(second)
			c.after(t, "a has recorded it", func() bool { return len(a.revisions("rules")) == 2 })
		}},
		{"the next one tells again nothing that was told", func(t *testing.T, c *cluster, a, b *replica) {
			before, events := len(patches(c)), len(c.events("rules"))
			a.stop()
			c.after(t, "b is elected", func() bool { return b.writer.Leader() == "b" })
			time.Sleep(time.Minute)
			if got := c.written("b"); len(got) > 0 {
				t.Errorf("b has written %q", got)
			}
			if len(patches(c)) != before || len(c.events("rules")) != events {
				t.Errorf("there are the events %q", c.events("rules"))
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster()
				c.policy("rules", nil)
				a := c.start(t, "a", first)
				b := c.start(t, "b", first)
				c.saysOK(t, "rules")
				time.Sleep(time.Minute)
				test.play(t, c, a, b)
			})
		})
	}
}

// A replica that is not elected records what only it knows: see Writer.Rescue.
func TestRescue(t *testing.T) {
	first, second := module("rules", "first"), module("rules", "second")
	rules := nameOf(first)
	for _, test := range []struct {
		name string
		play func(t *testing.T, c *cluster, a, b *replica)
	}{
		{"it is recorded as the revision of its number, and nothing else is written", func(t *testing.T, c *cluster, _, b *replica) {
			b.writer.Rescue(rules, 7, policy.NewSet(second))
			synctest.Wait()
			recorded := slices.ContainsFunc(c.history().Of(rules), func(r configmap.Revision) bool {
				return r.Number == 7 && r.Modules[second.ID].Source == "second"
			})
			if !recorded {
				t.Errorf("there are the revisions %v", c.revisions("rules"))
			}
			if got := strings.Join(c.written("b"), ", "); got != "create controllerrevisions.apps opa/rules-7" {
				t.Errorf("b has written %s", got)
			}
		}},
		{"what is there already is not overwritten", func(t *testing.T, c *cluster, _, b *replica) {
			b.writer.Rescue(rules, 1, policy.NewSet(second))
			synctest.Wait()
			if newest := c.history().Of(rules)[0]; newest.Number != 1 || newest.Modules[first.ID].Source != "first" {
				t.Errorf("the newest revision is %d, of %v", newest.Number, newest.Modules)
			}
		}},
		{"the writer goes on from it", func(t *testing.T, c *cluster, a, b *replica) {
			b.writer.Rescue(rules, 7, policy.NewSet(second))
			synctest.Wait()
			if got := c.revisions("rules"); !slices.Contains(got, 7) {
				t.Fatalf("there are the revisions %v", got)
			}
			before := len(c.revisions("rules"))
			a.enforces(second)
			b.enforces(second)
			time.Sleep(time.Minute)
			a.enforces(module("rules", "third"))
			time.Sleep(time.Minute)
			got := c.revisions("rules")
			if len(got) <= before || slices.Min(got[before:]) <= 7 {
				t.Errorf("before there were %d revisions, now there are %v", before, got)
			}
		}},
		{"it keeps nobody waiting, however many there are", func(t *testing.T, c *cluster, _, b *replica) {
			c.refuse(func(r apitest.Request) error {
				if r.Client == "b" && r.Resource == "controllerrevisions.apps" {
					time.Sleep(time.Second)
				}
				return nil
			})
			start := time.Now()
			for n := range int64(3 * rescueBuffer) {
				b.writer.Rescue(rules, 10+n, policy.NewSet(second))
			}
			if took := time.Since(start); took > 0 {
				t.Errorf("it took %s", took)
			}
			c.after(t, "those that fit are recorded", func() bool { return len(c.written("b")) >= rescueBuffer })
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster()
				c.policy("rules", nil)
				a := c.start(t, "a", first)
				b := c.start(t, "b", first)
				c.saysOK(t, "rules")
				synctest.Wait()
				test.play(t, c, a, b)
			})
		})
	}
}

// Only the newest revisions are kept, and none of what is gone.
func TestRevisionsAreKeptAsLongAsTheyMayBeOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		a := c.start(t, "a")
		for n := range 15 {
			a.enforces(module("rules", strings.Repeat("x", n+1)))
			time.Sleep(time.Minute)
		}
		if got := c.revisions("rules"); len(got) != historyLimit || got[0] != 6 || got[historyLimit-1] != 15 {
			t.Errorf("after 15 edits there are the revisions %v", got)
		}
		c.Remove("configmaps", "opa", "rules")
		time.Sleep(time.Minute)
		if got := c.revisions("rules"); len(got) != historyLimit {
			t.Errorf("while its deletion is held there are the revisions %v", got)
		}
		a.enforces()
		time.Sleep(time.Minute)
		if got := c.revisions("rules"); len(got) != 0 {
			t.Errorf("when nothing of it is in force there are the revisions %v", got)
		}
	})
}

// The objects of somebody else may have the name of a revision.
func TestANumberThatIsTakenIsSkipped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		a := c.start(t, "a")
		c.refuse(func(r apitest.Request) error {
			if r.Verb == "create" && r.Name == "rules-1" {
				c.refuse(nil)
				theirs := configmap.NewRevision("opa", "opa", "rules", 1, policy.NewSet(module("rules", "theirs")))
				object, err := theirs.Object()
				if err != nil {
					t.Error(err)
				}
				c.Put("controllerrevisions.apps", object)
			}
			return nil
		})
		a.enforces(module("rules", "first"))
		c.saysOK(t, "rules")
		if got := c.revisions("rules"); len(got) != 2 || c.history().Of(nameOf(module("rules", "")))[0].Modules[module("rules", "").ID].Source != "first" {
			t.Errorf("there are the revisions %v", got)
		}
	})
}

func TestEvents(t *testing.T) {
	first, second := module("rules", "first"), module("rules", "second")
	inForce := func(n string) string { return "PolicyInForce: in force on every replica (revision " + n + ")" }
	held := "PolicyHeld: main: held, the version before stays in force\n1:2: rego_parse_error: unexpected }"
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		a := c.start(t, "a", first)
		want := []string{inForce("1")}
		for _, step := range []struct {
			name string
			do   func()
			want string
		}{
			{"the first version", func() {}, ""},
			{"nothing new", a.look, ""},
			{"another version", func() { a.enforces(second) }, inForce("2")},
			{"an edit that is held", func() { a.holds(broken("rules", policy.Previous)) }, held},
			{"the same once more", a.look, ""},
			{"the annotation is taken away", func() {
				c.policy("rules", func(cm *corev1.ConfigMap) { delete(cm.Annotations, annotation) })
			}, ""},
			{"a third version", func() { a.enforces(module("rules", "third")); a.holds() }, inForce("3")},
		} {
			step.do()
			time.Sleep(time.Minute)
			if step.want != "" {
				want = append(want, step.want)
			}
			got := c.events("rules")
			for _, w := range want {
				if !strings.Contains(strings.Join(got, "|"), w) {
					t.Errorf("%s: no event says %q", step.name, w)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s: there are the events %q, want %q", step.name, got, want)
			}
		}
	})
}

// A policy that takes too long is told of by whoever meets it, elected or not.
func TestAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		c.policy("rules", nil)
		a := c.newReplica(t, "a")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		alarms := NewAlarms(ctx, a.writer.config.Events)
		alarms.Timeout(apitest.Get[corev1.ConfigMap](c.Server, "configmaps", "opa", "rules"), strings.Repeat("x", 2*maxEventBytes))
		if got := c.events("rules"); len(got) != 1 || got[0] != "PolicyTimeout: "+strings.Repeat("x", maxEventBytes) {
			t.Errorf("there are the events %q", got)
		}
	})
}
