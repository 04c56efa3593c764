package certs

import (
	"testing"

	typedadmissionregistrationv1 "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/kube-rego/kube-rego/internal/apitest"
)

// newAPI is an API server that has what this package reads and writes.
func newAPI() *apitest.Server {
	return apitest.New(
		apitest.Builtin("v1/secrets", "Secret", true),
		apitest.Builtin("admissionregistration.k8s.io/v1/validatingwebhookconfigurations", "ValidatingWebhookConfiguration", false),
		apitest.Builtin("admissionregistration.k8s.io/v1/mutatingwebhookconfigurations", "MutatingWebhookConfiguration", false),
	)
}

func webhookConfigurations(t *testing.T, api *apitest.Server) WebhookConfigurations {
	t.Helper()
	client, err := typedadmissionregistrationv1.NewForConfig(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func secrets(t *testing.T, api *apitest.Server, namespace string) typedcorev1.SecretInterface {
	t.Helper()
	client, err := typedcorev1.NewForConfig(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	return client.Secrets(namespace)
}
