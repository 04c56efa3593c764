package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The component opa-config as a person uses it: OPA's configuration is a file beside the kustomization. The API server says
// what it would make of it.
func TestOPAConfigComponent(t *testing.T) {
	deployment, secret := withOPAConfig(t, "labels: {region: eu-central-1}\n")
	pod := deployment.Spec.Template.Spec
	container := pod.Containers[0]

	if got := string(secret.Data["config.yaml"]); got != "labels: {region: eu-central-1}\n" {
		t.Errorf("the Secret %s holds %q", secret.Name, got)
	}
	if got := volume(pod, "opa-config").Secret; got == nil || got.SecretName != secret.Name {
		t.Errorf("the volume is of %+v, want the Secret %s", got, secret.Name)
	}
	file, ok := strings.CutPrefix(container.Args[len(container.Args)-1], "--opa-config=")
	if folder := mounted(container, "opa-config"); !ok || filepath.Join(folder, "config.yaml") != file {
		t.Errorf("kube-rego is run with %q and has the Secret at %q", container.Args, folder)
	}
	if volume(pod, "opa-bundles").EmptyDir == nil || mounted(container, "opa-bundles") == "" {
		t.Error("there is no place for bundles that are kept")
	}
	// A volume that another patch brings is still there.
	if mounted(container, "other") == "" || volume(pod, "other").EmptyDir == nil {
		t.Errorf("the volumes are %+v at %+v, want other among them", pod.Volumes, container.VolumeMounts)
	}

	t.Run("another configuration rolls the pods out", func(t *testing.T) {
		changed, _ := withOPAConfig(t, "labels: {region: us-east-1}\n")
		if volume(changed.Spec.Template.Spec, "opa-config").Secret.SecretName == secret.Name {
			t.Errorf("the pods have the Secret %s as before", secret.Name)
		}
	})
}

// withOPAConfig are the Deployment and the Secret of an overlay with the component and a volume of its own.
func withOPAConfig(t *testing.T, config string) (*appsv1.Deployment, *corev1.Secret) {
	t.Helper()
	overlay := t.TempDir()
	manifests, err := filepath.Rel(overlay, filepath.Join(cluster.root, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config.yaml": config,
		"kustomization.yaml": fmt.Sprintf(`resources: [%[1]s]
components: [%[1]s/opa-config]
secretGenerator:
  - {name: kube-rego-opa-config, namespace: opa, files: [config.yaml]}
patches:
  - patch: |
      apiVersion: apps/v1
      kind: Deployment
      metadata: {name: kube-rego, namespace: opa}
      spec:
        template:
          spec:
            containers: [{name: kube-rego, volumeMounts: [{name: other, mountPath: /other}]}]
            volumes: [{name: other, emptyDir: {}}]
`, manifests),
	} {
		if err := os.WriteFile(filepath.Join(overlay, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := kubectl(t, "apply", "-k", overlay, "--dry-run=server", "-o", "json")
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	deployment, secret := new(appsv1.Deployment), new(corev1.Secret)
	for _, item := range list.Items {
		var object metav1.PartialObjectMetadata
		if err := json.Unmarshal(item, &object); err != nil {
			t.Fatal(err)
		}
		switch {
		case object.Kind == "Deployment":
			err = json.Unmarshal(item, deployment)
		case object.Kind == "Secret" && strings.HasPrefix(object.Name, "kube-rego-opa-config"):
			err = json.Unmarshal(item, secret)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if deployment.Name == "" || secret.Name == "" {
		t.Fatalf("there is no Deployment or no Secret in\n%s", out)
	}
	return deployment, secret
}

// volume is the volume of a pod of this name, or the zero value.
func volume(pod corev1.PodSpec, name string) corev1.Volume {
	i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == name })
	if i < 0 {
		return corev1.Volume{}
	}
	return pod.Volumes[i]
}

// mounted is where a container has a volume; empty: nowhere.
func mounted(container corev1.Container, name string) string {
	i := slices.IndexFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == name })
	if i < 0 {
		return ""
	}
	return container.VolumeMounts[i].MountPath
}
