package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// podNamespaces and podsPerDeployment are how pods are spread.
	podNamespaces, podsPerDeployment = 50, 20
	// podWriters are clients that write at once.
	podWriters = 8
)

// pods are many that look as those of Deployments do, in the API server until the benchmark ends.
type pods struct {
	namespaces []string
	names      []types.NamespacedName
}

// createPods writes pods as their two writers do: the controller that makes them, and the kubelet that tells of them.
func createPods(b *testing.B, n int) *pods {
	b.Helper()
	p := &pods{}
	for i := range podNamespaces {
		p.namespaces = append(p.namespaces, fmt.Sprintf("team-%02d", i))
	}
	for _, name := range p.namespaces {
		createPodNamespace(b, name)
	}
	b.Cleanup(p.remove)
	all := make(chan *corev1.Pod)
	var writers sync.WaitGroup
	for range podWriters {
		writers.Go(func() {
			for pod := range all {
				if err := createPod(b.Context(), pod); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range n / podsPerDeployment {
		namespace := p.namespaces[i%podNamespaces]
		p.createDeploymentOf(b, namespace, fmt.Sprintf("service-%d", i/podNamespaces), i, func(pod *corev1.Pod) { all <- pod })
	}
	close(all)
	writers.Wait()
	if b.Failed() {
		b.FailNow()
	}
	return p
}

// createDeploymentOf makes the Deployment with this number, and lets its pods be created.
func (p *pods) createDeploymentOf(b *testing.B, namespace, name string, number int, create func(*corev1.Pod)) {
	b.Helper()
	owner := createDeployment(b, namespace, name)
	for replica := range podsPerDeployment {
		pod := newPod(owner, number, replica)
		p.names = append(p.names, types.NamespacedName{Namespace: namespace, Name: pod.Name})
		create(pod)
	}
}

// createPodNamespace makes a namespace, and waits for the service account without which there are no pods in it.
func createPodNamespace(b *testing.B, name string) {
	b.Helper()
	client := cluster.Client().CoreV1()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.Namespaces().Create(b.Context(), namespace, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	eventually(b, "the service account of "+name, func(ctx context.Context) error {
		_, err := client.ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// createDeployment makes the owner of pods. It is paused, and wants none: nobody is to make them but us. (A ReplicaSet
// cannot be paused, so the pods belong to the Deployment itself.)
func createDeployment(b *testing.B, namespace, name string) *appsv1.Deployment {
	b.Helper()
	labels := map[string]string{"app.kubernetes.io/name": name}
	none := int32(0)
	deployment, err := cluster.Client().AppsV1().Deployments(namespace).Create(b.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Paused: true, Replicas: &none,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/" + name}}},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return deployment
}

func createPod(ctx context.Context, pod *corev1.Pod) error {
	client := cluster.Client().CoreV1().Pods(pod.Namespace)
	created, err := client.Create(ctx, pod, metav1.CreateOptions{FieldManager: "kube-controller-manager"})
	if err != nil {
		return err
	}
	created.Status = pod.Status
	_, err = client.UpdateStatus(ctx, created, metav1.UpdateOptions{FieldManager: "kubelet"})
	return err
}

// remove deletes all of it.
func (p *pods) remove() {
	now := int64(0)
	var removers sync.WaitGroup
	for part := range slices.Chunk(p.namespaces, len(p.namespaces)/podWriters+1) {
		removers.Go(func() {
			for _, namespace := range part {
				client := cluster.Client()
				_ = client.CoreV1().Pods(namespace).DeleteCollection(context.Background(),
					metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{})
				_ = client.CoreV1().Namespaces().Delete(context.Background(), namespace, metav1.DeleteOptions{})
			}
		})
	}
	removers.Wait()
}

// touch writes the status of a pod, as a kubelet does.
func touch(ctx context.Context, name types.NamespacedName) error {
	patch := fmt.Appendf(nil, `{"status":{"conditions":[{"type":"Ready","status":"True","lastTransitionTime":%q}]}}`,
		time.Now().UTC().Format(time.RFC3339))
	_, err := cluster.Client().CoreV1().Pods(name.Namespace).Patch(ctx, name.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: "kubelet"}, "status")
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// newPod is a replica of the Deployment with this number. All differ in what pods of one Deployment differ in: name, node,
// addresses, ids and times. It has no node in its spec, as that would have to exist.
func newPod(owner *appsv1.Deployment, deployment, replica int) *corev1.Pod {
	random := rand.New(rand.NewPCG(uint64(deployment), uint64(replica)))
	hash := fmt.Sprintf("%08x", uint32(deployment)*2654435761)
	labels := map[string]string{
		"app.kubernetes.io/name": owner.Name, "app.kubernetes.io/part-of": owner.Namespace,
		"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": owner.Name + "-1.14.2", "pod-template-hash": hash,
	}
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.Namespace,
			Name:      fmt.Sprintf("%s-%s-%05x", owner.Name, hash, replica*7919+deployment),
			Labels:    labels,
			Annotations: map[string]string{
				"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/metrics",
				"checksum/config":                     fmt.Sprintf("%064x", deployment+1),
				"kubectl.kubernetes.io/restartedAt":   "2026-01-02T15:04:05Z",
				"cluster-autoscaler.io/safe-to-evict": "true",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "Deployment", Name: owner.Name, UID: owner.UID, Controller: &yes, BlockOwnerDeletion: &yes,
			}},
		},
		Spec:   podSpec(owner.Name, deployment),
		Status: podStatus(owner.Name, random),
	}
}

func podSpec(name string, deployment int) corev1.PodSpec {
	probe := func(path string) *corev1.Probe {
		return &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("http")}},
			PeriodSeconds: 10, TimeoutSeconds: 3,
		}
	}
	id, yes, no := int64(10001), true, false
	secret := corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: name + "-database"}, Key: "password",
	}}
	node := corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"}}
	return corev1.PodSpec{
		TerminationGracePeriodSeconds: new(int64(30)),
		SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &id, FSGroup: &id},
		Containers: []corev1.Container{{
			Name:  "main",
			Image: fmt.Sprintf("registry.example.com/%s:v1.%d.0", name, deployment%20),
			Args:  []string{"--config=/etc/service/config.yaml", "--listen=:8080", "--metrics=:9090"},
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090}},
			Env: []corev1.EnvVar{
				{Name: "LOG_LEVEL", Value: "info"},
				{Name: "DATABASE_HOST", Value: name + "-database.storage.svc.cluster.local"},
				{Name: "DATABASE_PASSWORD", ValueFrom: &secret},
				{Name: "NODE_NAME", ValueFrom: &node},
			},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")},
				Limits:   corev1.ResourceList{"memory": resource.MustParse("256Mi")},
			},
			LivenessProbe: probe("/healthz"), ReadinessProbe: probe("/readyz"),
			VolumeMounts: []corev1.VolumeMount{
				{Name: "config", MountPath: "/etc/service", ReadOnly: true}, {Name: "scratch", MountPath: "/tmp"},
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
		Volumes: []corev1.Volume{
			{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
				LocalObjectReference: corev1.LocalObjectReference{Name: name + "-config"},
			}}},
			{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		},
	}
}

// podStatus is what a kubelet tells of a pod that runs, since some time in the last month.
func podStatus(name string, random *rand.Rand) corev1.PodStatus {
	start := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC).Add(time.Duration(random.IntN(30*24*3600)) * time.Second)
	at := func(seconds int) metav1.Time { return metav1.NewTime(start.Add(time.Duration(seconds) * time.Second)) }
	begin := at(0)
	ready := at(10 + random.IntN(60))
	condition := func(kind corev1.PodConditionType, at metav1.Time) corev1.PodCondition {
		return corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: at}
	}
	digest := func() string {
		return fmt.Sprintf("%016x%016x%016x%016x", random.Uint64(), random.Uint64(), random.Uint64(), random.Uint64())
	}
	host := fmt.Sprintf("10.0.%d.%d", random.IntN(2), 1+random.IntN(250))
	address := fmt.Sprintf("10.%d.%d.%d", 100+random.IntN(4), random.IntN(250), 1+random.IntN(250))
	started := true
	return corev1.PodStatus{
		Phase:  corev1.PodRunning,
		HostIP: host, HostIPs: []corev1.HostIP{{IP: host}},
		PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
		StartTime: &begin, QOSClass: corev1.PodQOSBurstable,
		Conditions: []corev1.PodCondition{
			condition("PodReadyToStartContainers", at(2+random.IntN(5))), condition(corev1.PodInitialized, begin),
			condition(corev1.PodReady, ready), condition(corev1.ContainersReady, ready), condition(corev1.PodScheduled, begin),
		},
		ContainerStatuses: []corev1.ContainerStatus{{
			Name: "main", Ready: true, Started: &started,
			Image:       "registry.example.com/" + name + ":v1.0.0",
			ImageID:     fmt.Sprintf("registry.example.com/%s@sha256:%064x", name, 4711),
			ContainerID: "containerd://" + digest(),
			State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(3 + random.IntN(5))}},
		}},
	}
}
