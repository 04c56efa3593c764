package engine_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/kube-rego/kube-rego/pkg/data"
)

// podText is a Pod as the API server gives it, without managedFields. What follows from its
// number is what the pods of one Deployment differ in.
const podText = `{
  "apiVersion": "v1", "kind": "Pod",
  "metadata": {
    "name": "service-%[2]d-6d4cf56db6-%05[1]x", "namespace": "team", "generateName": "service-%[2]d-6d4cf56db6-",
    "uid": "00000000-0000-4000-8000-%012[1]x", "resourceVersion": "%[3]d", "creationTimestamp": "2026-01-%02[4]dT00:%02[5]d:00Z",
    "labels": {"app.kubernetes.io/name": "service-%[2]d", "app.kubernetes.io/part-of": "team", "pod-template-hash": "6d4cf56db6"},
    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "checksum/config": "%064[2]x"},
    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "service-%[2]d-6d4cf56db6",
      "uid": "00000000-0000-4000-9000-%012[2]x", "controller": true, "blockOwnerDeletion": true}]
  },
  "spec": {
    "nodeName": "node-%[5]d", "serviceAccountName": "default", "serviceAccount": "default", "restartPolicy": "Always",
    "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "enableServiceLinks": true, "priority": 0,
    "preemptionPolicy": "PreemptLowerPriority", "terminationGracePeriodSeconds": 30,
    "securityContext": {"runAsNonRoot": true, "runAsUser": 10001, "fsGroup": 10001},
    "tolerations": [
      {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
      {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
    "containers": [{
      "name": "main", "image": "registry.example.com/service-%[2]d:v1.4.0", "imagePullPolicy": "IfNotPresent",
      "args": ["--config=/etc/service/config.yaml", "--listen=:8080", "--metrics=:9090"],
      "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}, {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
      "env": [{"name": "LOG_LEVEL", "value": "info"}, {"name": "DATABASE_HOST", "value": "service-%[2]d-database.storage.svc.cluster.local"},
        {"name": "DATABASE_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "service-%[2]d-database", "key": "password"}}}],
      "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
      "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 3, "successThreshold": 1, "failureThreshold": 3},
      "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 3, "successThreshold": 1, "failureThreshold": 3},
      "volumeMounts": [{"name": "config", "mountPath": "/etc/service", "readOnly": true},
        {"name": "kube-api-access-%05[1]x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
      "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
    "volumes": [{"name": "config", "configMap": {"name": "service-%[2]d-config", "defaultMode": 420}},
      {"name": "kube-api-access-%05[1]x", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}]
  },
  "status": {
    "phase": "Running", "qosClass": "Burstable", "startTime": "2026-01-%02[4]dT00:%02[5]d:00Z",
    "hostIP": "10.0.0.%[5]d", "hostIPs": [{"ip": "10.0.0.%[5]d"}], "podIP": "10.100.%[4]d.%[5]d", "podIPs": [{"ip": "10.100.%[4]d.%[5]d"}],
    "conditions": [
      {"type": "Initialized", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-%02[4]dT00:%02[5]d:01Z"},
      {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-%02[4]dT00:%02[5]d:31Z"},
      {"type": "ContainersReady", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-%02[4]dT00:%02[5]d:31Z"},
      {"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-%02[4]dT00:%02[5]d:00Z"}],
    "containerStatuses": [{"name": "main", "ready": true, "started": true, "restartCount": 0, "image": "registry.example.com/service-%[2]d:v1.4.0",
      "imageID": "registry.example.com/service-%[2]d@sha256:%064[2]x", "containerID": "containerd://%064[1]x",
      "state": {"running": {"startedAt": "2026-01-%02[4]dT00:%02[5]d:02Z"}}}]
  }
}`

// podObject is the Pod with this number, in this version.
func podObject(b *testing.B, number, version int) (name string, object map[string]any) {
	b.Helper()
	text := fmt.Sprintf(podText, number, number/20, version, 1+number/360%28, number%60)
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		b.Fatal(err)
	}
	return fmt.Sprintf("service-%d-6d4cf56db6-%05x", number/20, number), object
}

// podPath is where the Pod of a name is. All are in one namespace, the worst case for a change.
func podPath(name string) []string { return []string{"kubernetes", "pods", "team", name} }

// dataCosts are the costs of what is done with data, by what it is and by the number of objects.
type dataCosts map[string]map[int]time.Duration

// measure runs something many times, as often as it takes to see it, and takes down what one time costs.
func (c dataCosts) measure(b *testing.B, what string, n, times int, do func(i int)) {
	b.Run(fmt.Sprintf("%s/objects=%d", what, n), func(b *testing.B) {
		for b.Loop() {
			for i := range times {
				do(i)
			}
		}
		if c[what] == nil {
			c[what] = make(map[int]time.Duration)
		}
		c[what][n] = b.Elapsed() / time.Duration(b.N*times)
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(float64(c[what][n].Nanoseconds())/1e3, "µs/each")
	})
}

// BenchmarkData measures in process what objects in data cost: to make one a document, to change
// one, to look one up, and to look through all.
func BenchmarkData(b *testing.B) {
	costs := make(dataCosts)
	const few, many = 100, 10_000
	for _, n := range []int{few, many} {
		measureData(b, costs, n)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(out, "\nµs each, with so many objects in a namespace\t100\t10,000\tratio\tgoal\t")
	for _, row := range []struct{ what, goal string }{
		{"document", "-"}, {"change", "-"}, {"batch-of-50", "-"},
		{"lookup", "the same"}, {"iterate", "-"}, {"iterate-after-change", "-"},
	} {
		if few, many := costs[row.what][few], costs[row.what][many]; few > 0 && many > 0 {
			_, _ = fmt.Fprintf(out, "%s\t%.1f\t%.1f\t%.2f\t%s\t\n", row.what,
				float64(few.Nanoseconds())/1e3, float64(many.Nanoseconds())/1e3, float64(many)/float64(few), row.goal)
		}
	}
	_ = out.Flush()
}

func measureData(b *testing.B, costs dataCosts, n int) {
	e := enforcing(b, module("reads", 1,
		"package reads",
		"lookup := data.kubernetes.pods[input.namespace][input.name].metadata.labels",
		`iterate := count([1 | some pod in data.kubernetes.pods[input.namespace]; pod.metadata.labels.team == "none"])`,
	))
	var documents data.Interner
	var changes []data.Change
	var names []string
	var inputs, objects []map[string]any
	for i := range n {
		name, object := podObject(b, i, i)
		names, objects = append(names, name), append(objects, object)
		inputs = append(inputs, map[string]any{"namespace": "team", "name": name})
		changes = append(changes, data.Change{Path: podPath(name), Content: documentOf(b, &documents, object)})
	}
	e.Apply(changes...)
	decideFor := func(path string, input any) {
		if _, err := e.Decide(b.Context(), path, input); err != nil {
			b.Fatal(err)
		}
	}
	version := n
	change := func() data.Change {
		version++
		i := rand.IntN(n)
		_, object := podObject(b, i, version)
		return data.Change{Path: podPath(names[i]), Content: documentOf(b, &documents, object)}
	}
	var fresh []data.Change
	for range 500 {
		fresh = append(fresh, change())
	}

	var empty *data.Interner
	costs.measure(b, "document", n, n, func(i int) {
		if i == 0 {
			empty = &data.Interner{} // which knows no values yet
		}
		documentOf(b, empty, objects[i])
	})
	costs.measure(b, "change", n, len(fresh), func(i int) { e.Apply(fresh[i]) })
	costs.measure(b, "batch-of-50", n, len(fresh)/50, func(i int) { e.Apply(fresh[50*i : 50*i+50]...) })
	costs.measure(b, "lookup", n, 2000, func(i int) { decideFor("reads/lookup", inputs[i%n]) })
	costs.measure(b, "iterate", n, 20, func(int) { decideFor("reads/iterate", inputs[0]) })
	costs.measure(b, "iterate-after-change", n, 20, func(i int) {
		e.Apply(fresh[i])
		decideFor("reads/iterate", inputs[0])
	})
}

func documentOf(b *testing.B, documents *data.Interner, object map[string]any) data.Content {
	content, err := documents.Document(object)
	if err != nil {
		b.Fatal(err)
	}
	return content
}
