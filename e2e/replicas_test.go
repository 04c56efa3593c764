package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// statusPending is what a policy says whose new version is in force on some replicas only.
const statusPending = `{"status":"pending","message":"not yet in force on every replica"}`

// installThree runs three replicas until the test ends. The first is the one that the API server asks, and the one that
// writes, as it was there first.
func installThree(t *testing.T, args ...string) (*kuberego.Installation, []*kuberego.Instance, []string) {
	t.Helper()
	installation, first := install(t, args...)
	inStep(t, first, 1)
	writer, err := writerOf(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	second, identity2 := startReplica(t, installation, first)
	third, identity3 := startReplica(t, installation, first)
	inStep(t, first, 3)
	return installation, []*kuberego.Instance{first, second, third}, []string{writer, identity2, identity3}
}

// What was in force survives the end of every replica, whatever happens to the policies while none runs.
func TestTheLastGoodVersionSurvives(t *testing.T) {
	installation, instances, _ := installThree(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	create(t, policy(opa, "library", "lib", library))
	create(t, policy(opa, "user", "main", libraryUser))
	create(t, policy(opa, "unused", "main", denyLabel("unused")))
	for _, name := range []string{"main", "rules", "library", "user", "unused"} {
		annotation(t, opa, name, is(statusOK))
	}
	refuses(t, "old")
	refuses(t, "library")
	for _, instance := range instances {
		if err := instance.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "patch", "configmap", "rules", "-n", opa, "--type=merge", "-p", `{"data":{"main":"package kubernetes.admission\n\ndeny contains }"}}`)
	kubectl(t, "delete", "configmap", "library", "unused", "-n", opa)

	again, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, again) })
	replica, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, replica) })
	for _, instance := range []*kuberego.Instance{again, replica} {
		inForce(t, instance, map[string]string{
			"opa/main/main": "current", "opa/rules/main": "previous", "opa/user/main": "current", "opa/library/lib": "previous",
		})
		answer, err := reviewer(t, instance)(t.Context(), "old")
		if err != nil || !contains(`"allowed":false`)(answer) {
			t.Errorf("the version before decides no more: %s, %v", answer, err)
		}
	}
	refuses(t, "old")
	refuses(t, "library")
	allows(t, "unused")
	annotation(t, opa, "rules", contains(`"status":"error"`, `"inForce":"previous"`, `"file":"opa/rules/main","row":3`))
	annotation(t, opa, "user", is(statusOK))
	forgotten(t, "unused")
	told(t, "library", "Warning PolicyHeld lib: its deletion is held, it stays in force")

	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("new") })
	refuses(t, "new")
	allows(t, "old")
	annotation(t, opa, "rules", is(statusOK))
}

// Of three replicas one writes, and it does not fight with a tool that takes the status away again and again.
func TestOneOfThreeWrites(t *testing.T) {
	_, instances, identities := installThree(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("one")))
	annotation(t, opa, "rules", is(statusOK))
	annotation(t, opa, "main", is(statusOK))
	eventually(t, "all agree who writes", func(ctx context.Context) error {
		for _, instance := range instances {
			if writer, err := writerOf(ctx, instance); err != nil || writer != identities[0] {
				return fmt.Errorf("one says %q: %w", writer, err)
			}
		}
		return nil
	})
	strip := func() {
		edit(t, opa, "rules", func(cm *corev1.ConfigMap) { delete(cm.Annotations, statusAnnotation) })
	}
	quiet(t)
	before := writes(t)
	strip()
	annotation(t, opa, "rules", is(statusOK))
	quiet(t)
	after := writesSince(t, before)
	if want := map[string]int{"PUT configmaps": 1, "PATCH configmaps": 1}; !maps.Equal(withoutLeases(after), want) {
		t.Errorf("after the status was taken away once, these were written: %v, want %v", after, want)
	}

	before = writes(t)
	stripped := 0
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		strip()
		stripped++
	}
	after = writesSince(t, before)
	if after["PUT configmaps"] < stripped || stripped < 10 {
		t.Errorf("the tool wrote %d times, and the API server counts %v", stripped, after)
	}
	if n := after["PATCH configmaps"]; n > 3 {
		t.Errorf("against %d writes of a tool kube-rego wrote %d times", stripped, n)
	}
	annotation(t, opa, "rules", is(statusOK)) // once the tool has given up
}

// Without a status annotation nothing is written on ConfigMaps, and the last good version survives all the same.
func TestWithoutAStatusAnnotation(t *testing.T) {
	before := patches(t)
	installation, first := install(t, "--status-annotation=")
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	refuses(t, "old")
	recorded(t, "rules", "main", denyLabel("old"))
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	told(t, "rules", "Warning PolicyHeld main: held, the version before stays in force")
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	inForce(t, second, map[string]string{"opa/main/main": "current", "opa/rules/main": "previous"})
	refuses(t, "old")
	remove(t, opa, "rules")
	if written := patches(t) - before; written != 0 {
		t.Errorf("%d patches of ConfigMaps", written)
	}
}

// ok means in force on every replica that answers: one that hangs is waited for until it counts as gone, one that stops in
// good order is not.
func TestOkMeansInForceOnEveryReplica(t *testing.T) {
	_, instances, identities := installThree(t)
	first, second, third := instances[0], instances[1], instances[2]
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	create(t, policy(opa, "other", "main", denyLabel("other")))
	for _, name := range []string{"main", "rules", "other"} {
		annotation(t, opa, name, is(statusOK))
	}

	thaw := freeze(t, third)
	frozen := time.Now()
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("new") })
	create(t, policy(opa, "late", "main", denyLabel("late")))
	refuses(t, "new") // enforcement waits for nobody
	annotation(t, opa, "rules", is(statusPending))
	eventually(t, "the one that hangs lags", func(context.Context) error {
		if states := replicas(t, second); states[identities[2]] != "lagging" {
			return fmt.Errorf("they are %v", states)
		}
		return nil
	})
	// What is broken need not wait to be told.
	create(t, policy(opa, "broken", "main", "package"))
	annotation(t, opa, "broken", contains(`"status":"error"`))
	if all, err := events(t.Context(), "late"); err != nil || len(all) > 0 {
		t.Errorf("told too early: %v, %v", all, err)
	}
	const soonest = 8 * time.Second // 15 s after the last renewal, which was 5 s before, and some for a busy machine
	// Until it is gone, nothing but pending is written, and nothing at all where nothing was before.
	eventually(t, "ok once it is gone", func(ctx context.Context) error {
		for name, before := range map[string]string{"rules": statusPending, "late": "", "other": statusOK} {
			cm, err := cluster.Client().CoreV1().ConfigMaps(opa).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			status := cm.Annotations[statusAnnotation]
			if waited := time.Since(frozen); status != before && (status != statusOK || waited < soonest) {
				t.Fatalf("%s says %q %s after a replica hung", name, status, waited)
			}
			if status != statusOK {
				return fmt.Errorf("%s says %q", name, status)
			}
		}
		return nil
	})
	for _, live := range []*kuberego.Instance{first, second} {
		gone(t, live, identities[2], 1)
	}

	thaw()
	inStep(t, first, 3)
	inStep(t, third, 3)
	gone(t, first, "", 0)
	refusesItself(t, third, "late")

	// One that is stopped takes its leave, and no edit waits for it.
	before := patches(t)
	if err := third.Stop(); err != nil {
		t.Fatal(err)
	}
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("newer") })
	recorded(t, "rules", "main", denyLabel("newer"))
	inStep(t, first, 2)
	told(t, "rules", "Normal PolicyInForce in force on every replica (revision 3)")
	annotation(t, opa, "rules", is(statusOK))
	if written := patches(t) - before; written != 0 {
		t.Errorf("%d statuses were written for a good edit", written)
	}
}

// gone waits until an instance knows that many replicas as gone, and this one among them.
func gone(t *testing.T, instance *kuberego.Instance, identity string, n float64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%v replicas are gone", n), func(ctx context.Context) error {
		status, err := instance.Status(ctx)
		if err != nil {
			return err
		}
		counted, err := metric(ctx, instance, `kube_rego_replicas{state="gone"}`)
		if err != nil || counted != n || identity != "" && states(status)[identity] != "gone" {
			return fmt.Errorf("the metric is %v, and they are %v: %w", counted, states(status), err)
		}
		return nil
	})
}

// refusesItself waits until an instance, asked by us, refuses the label value.
func refusesItself(t *testing.T, instance *kuberego.Instance, value string) {
	t.Helper()
	ask := reviewer(t, instance)
	eventually(t, "it refuses "+value, func(ctx context.Context) error {
		answer, err := ask(ctx, value)
		if err == nil && !contains(`"allowed":false`, value)(answer) {
			err = fmt.Errorf("got %s", answer)
		}
		return err
	})
}

// When the writer hangs, another one takes over; when it goes on, it leaves the writing to that one.
func TestTheWriterHangs(t *testing.T) {
	_, instances, identities := installThree(t)
	second := instances[1]
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	annotation(t, opa, "rules", is(statusOK))
	// The API server asks the one that hangs, so it is asked no more.
	unregister(t)
	thaw := freeze(t, instances[0])
	create(t, policy(opa, "late", "main", denyLabel("late")))
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	annotation(t, opa, "rules", contains(`"inForce":"previous"`))
	annotation(t, opa, "late", is(statusOK))
	gone(t, second, identities[0], 1)
	quiet(t)

	before := writes(t)
	thaw()
	for _, instance := range instances {
		inStep(t, instance, 3)
	}
	quiet(t)
	after := withoutLeases(writesSince(t, before))
	delete(after, "POST events") // one that it had in hand when it was suspended
	if len(after) > 0 {
		t.Errorf("the old writer came back and these were written: %v", after)
	}
	for _, instance := range instances {
		if writer, err := writerOf(t.Context(), instance); err != nil || writer == identities[0] || writer == "" {
			t.Errorf("one says that %q writes: %v", writer, err)
		}
	}
}

// unregister takes the webhook configuration away until the end of the test, which wants to find it.
func unregister(t *testing.T) {
	t.Helper()
	configurations := cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	configuration, err := configurations.Get(t.Context(), "kube-rego", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := configurations.Delete(t.Context(), "kube-rego", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		configuration.ResourceVersion, configuration.UID = "", ""
		if _, err := configurations.Create(context.Background(), configuration, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// A writer that is elected while a replica lags cannot rely on an ok that its predecessor wrote for another version.
func TestTheNextWriterTakesBackAnOldOk(t *testing.T) {
	_, instances, _ := installThree(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	create(t, policy(opa, "other", "main", denyLabel("other")))
	for _, name := range []string{"main", "rules", "other"} {
		annotation(t, opa, name, is(statusOK))
	}
	unregister(t)
	thaw := freeze(t, instances[2])
	if err := instances[0].Stop(); err != nil {
		t.Fatal(err)
	}
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("new") })
	recorded(t, "rules", "main", denyLabel("new"))
	annotation(t, opa, "rules", is(statusPending))
	annotation(t, opa, "other", is(statusOK)) // nothing about it has changed
	thaw()
	annotation(t, opa, "rules", is(statusOK))
	told(t, "rules", "Normal PolicyInForce in force on every replica (revision 2)")
}

// A replica that saw the same changes in another order comes to the same set as the writer.
func TestAReplicaThatSawAnotherOrder(t *testing.T) {
	_, instances, _ := installThree(t)
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "a-old", "main", "package clash\n\ny := 1\n"))
	annotation(t, opa, "a-old", is(statusOK))
	thaw := freeze(t, instances[2])
	create(t, policy(opa, "b-new", "main", "package clash\n\nx := 1\n"))
	recorded(t, "b-new", "main", "package clash\n\nx := 1\n")
	edit(t, opa, "a-old", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package clash\n\nx contains 1\n" })
	annotation(t, opa, "a-old", contains("conflicting rules", `"inForce":"previous"`))
	thaw() // and sees both at once, of which the older would win
	for _, instance := range instances {
		inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/a-old/main": "previous", "opa/b-new/main": "current"})
		inStep(t, instance, 3)
	}
	annotation(t, opa, "b-new", is(statusOK))
	annotation(t, opa, "a-old", contains("conflicting rules", `"inForce":"previous"`))
}

// A replica that cannot come into step, here for another flag as during a roll-out, keeps ok back as long as it lives.
func TestAReplicaThatCannotFollow(t *testing.T) {
	_, first := install(t, "--enable-builtin=opa.runtime")
	create(t, policy(opa, "main", "main", entrypoint))
	create(t, policy(opa, "rules", "main", denyLabel("old")))
	annotation(t, opa, "rules", is(statusOK))
	inStep(t, first, 1)
	other, err := kuberego.Prepare(kuberego.Config{
		Cluster: cluster.ControlPlane, Root: cluster.root, Binary: cluster.binary, Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	second, err := other.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	inStep(t, first, 2)

	create(t, policy(opa, "runtime", "main", denyWhen("runtime", "opa.runtime()")))
	refuses(t, "runtime")
	edit(t, opa, "rules", func(cm *corev1.ConfigMap) { cm.Data["main"] = denyLabel("new") })
	annotation(t, opa, "rules", is(statusPending))
	cm, err := cluster.Client().CoreV1().ConfigMaps(opa).Get(t.Context(), "runtime", metav1.GetOptions{})
	if err != nil || cm.Annotations[statusAnnotation] != "" {
		t.Errorf("a policy that is not in force everywhere says %q, %v", cm.Annotations[statusAnnotation], err)
	}
	if n, err := metric(t.Context(), first, `kube_rego_replicas{state="lagging"}`); err != nil || n != 1 {
		t.Errorf("%v replicas lag, %v", n, err)
	}
	quiet(t) // nobody writes while they wait
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	annotation(t, opa, "runtime", is(statusOK))
	annotation(t, opa, "rules", is(statusOK))
}

// A cluster in which nothing happens is left alone: what replicas write are their Leases.
func TestASteadyClusterWritesNothing(t *testing.T) {
	const window = 20 * time.Second
	installThree(t)
	create(t, policy(opa, "main", "main", entrypoint))
	for n := range 5 {
		name := fmt.Sprintf("rules-%d", n)
		create(t, policy(opa, name, "main", denyLabel(name)))
		annotation(t, opa, name, is(statusOK))
	}
	create(t, policy(opa, "library", "lib", library))
	create(t, policy(opa, "user", "main", libraryUser))
	annotation(t, opa, "user", is(statusOK))
	remove(t, opa, "library")
	told(t, "library", "Warning PolicyHeld lib: its deletion is held")
	edit(t, opa, "rules-0", func(cm *corev1.ConfigMap) { cm.Data["main"] = "package" })
	annotation(t, opa, "rules-0", contains(`"inForce":"previous"`))
	create(t, policy(opa, "never", "main", "package"))
	annotation(t, opa, "never", contains(`"inForce":"none"`))
	quiet(t)

	before := writes(t)
	leases := leaseWrites(t, window)
	if after := withoutLeases(writesSince(t, before)); len(after) > 0 {
		t.Errorf("nothing happened, and these were written: %v", after)
	}
	total := 0
	for _, n := range leases {
		total += n
	}
	if len(leases) != 4 {
		t.Errorf("there are Leases %v, want one of the writer and three of replicas", leases)
	}
	t.Logf("in 10 minutes three replicas write %d times, all of it Leases", total*int(10*time.Minute/window))
}

// leaseWrites counts for some time the writes to the Leases in kube-rego's namespace, by their name.
func leaseWrites(t *testing.T, window time.Duration) map[string]int {
	t.Helper()
	leases := cluster.Client().CoordinationV1().Leases(opa)
	list, err := leases.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), window)
	defer cancel()
	w, err := leases.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for event := range w.ResultChan() {
		if lease, ok := event.Object.(*coordinationv1.Lease); ok {
			counts[lease.Name]++
		}
	}
	return counts
}

// Somebody takes all Leases away: the replica says anew what it has in force, and ok comes as before.
func TestALeaseThatIsTakenAwayComesBack(t *testing.T) {
	install(t)
	create(t, policy(opa, "main", "main", entrypoint))
	annotation(t, opa, "main", is(statusOK))
	kubectl(t, "delete", "leases", "-n", opa, "-l", "app.kubernetes.io/component=replica")
	create(t, policy(opa, "rules", "main", denyLabel("after")))
	annotation(t, opa, "rules", is(statusOK))
	create(t, policy(opa, "more", "main", denyLabel("more")))
	annotation(t, opa, "more", is(statusOK))
}
