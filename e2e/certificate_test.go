package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

// The CA comes back when somebody applies the configuration without it, and replicas have one certificate.
func TestTheCertificateIsShared(t *testing.T) {
	installation, first := install(t)
	second, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	ca := injectedCA(t)
	for _, instance := range []*kuberego.Instance{first, second} {
		if err := handshake(t.Context(), instance, ca); err != nil {
			t.Error(err)
		}
	}

	registration := cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations()
	eventually(t, "take the CA away", func(ctx context.Context) error {
		configuration, err := registration.Get(ctx, "kube-rego", metav1.GetOptions{})
		if err != nil {
			return err
		}
		configuration.Webhooks[0].ClientConfig.CABundle = nil
		_, err = registration.Update(ctx, configuration, metav1.UpdateOptions{})
		return err
	})
	if again := injectedCA(t); !bytes.Equal(again, ca) {
		t.Error("another CA came back")
	}

	// A replica that finds the Secret empty makes a new bundle; the others take it over instead of fighting.
	secret, err := cluster.Client().CoreV1().Secrets(opa).Get(t.Context(), "kube-rego-tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Data = nil
	if _, err := cluster.Client().CoreV1().Secrets(opa).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	third, err := installation.StartReplica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, third) })
	eventually(t, "all replicas serve with the new certificate", func(ctx context.Context) error {
		renewed := injectedCA(t)
		if bytes.Equal(renewed, ca) {
			return fmt.Errorf("the old CA is still there")
		}
		for _, instance := range []*kuberego.Instance{first, second, third} {
			if err := handshake(ctx, instance, renewed); err != nil {
				return err
			}
		}
		return nil
	})
	create(t, policy(opa, "main", "main", entrypoint))
	allows(t, "anything")
}

// Of a webhook configuration only what leads to us is ours, in both of its kinds.
func TestTheCAOfOthersIsLeftAlone(t *testing.T) {
	installation, _ := install(t)
	none, theirs := admissionregistrationv1.SideEffectClassNone, []byte(certificate(t))
	ignore := admissionregistrationv1.Ignore
	url := "https://localhost:1/"
	mutating := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-rego"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "ours.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Namespace: opa, Name: "anything"}}},
			{Name: "theirs.example.com", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: theirs}},
		},
	}
	for n := range mutating.Webhooks { // none of them is ever asked: there are no rules
		mutating.Webhooks[n].SideEffects, mutating.Webhooks[n].FailurePolicy = &none, &ignore
		mutating.Webhooks[n].AdmissionReviewVersions = []string{"v1"}
	}
	registration := cluster.Client().AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := registration.Create(t.Context(), mutating, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registration.Delete(context.Background(), "kube-rego", metav1.DeleteOptions{}) })
	ca := injectedCA(t)
	eventually(t, "the CA in our webhook and theirs as it was", func(ctx context.Context) error {
		now, err := registration.Get(ctx, "kube-rego", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !bytes.Equal(now.Webhooks[1].ClientConfig.CABundle, theirs) {
			t.Fatal("the CA of the other webhook was overwritten")
		}
		if !bytes.Equal(now.Webhooks[0].ClientConfig.CABundle, ca) {
			return fmt.Errorf("ours has %q", now.Webhooks[0].ClientConfig.CABundle)
		}
		return nil
	})

	// A Secret of that name that somebody else filled is not overwritten either.
	secret, err := cluster.Client().CoreV1().Secrets(opa).Get(t.Context(), "kube-rego-tls", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	secret.Labels, secret.Data = nil, map[string][]byte{"precious": []byte("theirs")}
	if _, err := cluster.Client().CoreV1().Secrets(opa).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// For the tests after this one.
		secret.ResourceVersion, secret.Data = "", nil
		if _, err := cluster.Client().CoreV1().Secrets(opa).Update(context.Background(), secret, metav1.UpdateOptions{}); err != nil {
			t.Error(err)
		}
	})
	other, err := installation.Launch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, other) })
	eventually(t, "the reason in /readyz", func(ctx context.Context) error {
		err := other.Ready(ctx)
		if err == nil {
			t.Fatal("it is ready")
		}
		if !contains("503", "is not ours to change")(err.Error()) {
			return err
		}
		return nil
	})
}

// certificate is the CA of the control plane: any certificate that is not ours.
func certificate(t *testing.T) string {
	t.Helper()
	config := cluster.RESTConfig()
	if len(config.CAData) == 0 {
		t.Fatal("the admin's configuration has no CA")
	}
	return string(config.CAData)
}

// injectedCA is the CA in the webhook configuration, once there is one.
func injectedCA(t testing.TB) []byte {
	t.Helper()
	var ca []byte
	eventually(t, "a CA in the webhook configuration", func(ctx context.Context) error {
		configuration, err := cluster.Client().AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "kube-rego", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ca = configuration.Webhooks[0].ClientConfig.CABundle; len(ca) == 0 {
			return fmt.Errorf("it has none")
		}
		return nil
	})
	return ca
}

// client verifies certificates as the API server does.
func client(ca []byte) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &http.Client{Timeout: limit, Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, ServerName: "kube-rego.opa.svc", MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}}
}

// reviewer asks an instance itself, as the API server would, about a ConfigMap with the label deny.
func reviewer(t testing.TB, instance *kuberego.Instance) func(ctx context.Context, value string) (answer string, err error) {
	t.Helper()
	c := client(injectedCA(t))
	return func(ctx context.Context, value string) (string, error) {
		review := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1",`+
			`"object":{"metadata":{"labels":{"deny":%q}}}}}`, value)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, instance.URL(), strings.NewReader(review))
		if err != nil {
			return "", err
		}
		response, err := c.Do(request)
		if err != nil {
			return "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return string(body), err
	}
}

func handshake(ctx context.Context, instance *kuberego.Instance, ca []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, instance.URL(), nil)
	if err != nil {
		return err
	}
	response, err := client(ca).Do(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}
