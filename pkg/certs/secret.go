package certs

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// secretName is the Secret that replicas share their bundle in.
const secretName = "kube-rego-tls" //nolint:gosec // G101: a name, not a credential

// The keys of the Secret beside those of the type kubernetes.io/tls; ca.crt is
// where cert-manager has it too.
const (
	caKey    = "ca.crt"
	caKeyKey = "ca.key"
)

// The label of a Secret that we may write.
const (
	managedBy = "app.kubernetes.io/managed-by"
	manager   = "kube-rego"
)

// Shared is the bundle in the Secret secretName. If there is none, or one that
// is no longer valid for hosts, it makes a new one and keeps it there: of
// several replicas that do so at once one wins, and all get its bundle.
func Shared(ctx context.Context, secrets typedcorev1.SecretInterface, hosts []string, now time.Time) (Bundle, error) {
	secret, err := secrets.Get(ctx, secretName, metav1.GetOptions{})
	if err == nil {
		b := fromSecret(secret)
		invalid := b.Valid(hosts, now)
		switch {
		case invalid == nil:
			return b, nil
		case len(secret.Data) > 0 && secret.Labels[managedBy] != manager:
			return Bundle{}, fmt.Errorf("the Secret %s is not ours to change: it is not labelled %s=%s, and %w", secretName, managedBy, manager, invalid)
		}
		return replace(ctx, secrets, secret, hosts, now)
	}
	if !apierrors.IsNotFound(err) {
		return Bundle{}, fmt.Errorf("reading Secret %s: %w", secretName, err)
	}
	b, err := NewBundle(hosts, now)
	if err != nil {
		return Bundle{}, err
	}
	_, err = secrets.Create(ctx, intoSecret(new(corev1.Secret), b), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return Shared(ctx, secrets, hosts, now)
	}
	if err != nil {
		return Bundle{}, fmt.Errorf("creating Secret %s: %w", secretName, err)
	}
	return b, nil
}

func replace(ctx context.Context, secrets typedcorev1.SecretInterface, old *corev1.Secret, hosts []string, now time.Time) (Bundle, error) {
	b, err := NewBundle(hosts, now)
	if err != nil {
		return Bundle{}, err
	}
	// The resource version in old makes this fail if another replica was faster.
	_, err = secrets.Update(ctx, intoSecret(old.DeepCopy(), b), metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return Shared(ctx, secrets, hosts, now)
	}
	if err != nil {
		return Bundle{}, fmt.Errorf("updating Secret %s: %w", secretName, err)
	}
	return b, nil
}

func fromSecret(secret *corev1.Secret) Bundle {
	return Bundle{
		CA:    secret.Data[caKey],
		CAKey: secret.Data[caKeyKey],
		Cert:  secret.Data[corev1.TLSCertKey],
		Key:   secret.Data[corev1.TLSPrivateKeyKey],
	}
}

func intoSecret(secret *corev1.Secret, b Bundle) *corev1.Secret {
	if secret.Name == "" {
		secret.Name = secretName
		secret.Type = corev1.SecretTypeTLS
		secret.Labels = map[string]string{managedBy: manager}
	}
	if secret.Data == nil {
		secret.Data = make(map[string][]byte)
	}
	secret.Data[caKey], secret.Data[caKeyKey] = b.CA, b.CAKey
	secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey] = b.Cert, b.Key
	return secret
}
