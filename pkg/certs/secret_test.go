package certs

import (
	"bytes"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kube-rego/kube-rego/pkg/internal/apitest"
)

var secretHosts = []string{"localhost"}

// secretOf is the Secret with a bundle and these labels.
func secretOf(b Bundle, labels map[string]string) *corev1.Secret {
	s := intoSecret(&corev1.Secret{}, b)
	s.Namespace, s.Labels = "opa", labels
	return s
}

func TestShared(t *testing.T) {
	now := time.Now()
	good := newTestBundle(t)
	old, err := NewBundle(secretHosts, now.Add(-2*lifetime))
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewBundle([]string{"other.example.com"}, now)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := map[string]string{managedBy: manager}, map[string]string{managedBy: "cert-manager"}
	denied := apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, secretName, nil)
	for _, test := range []struct {
		name   string
		secret *corev1.Secret // nil: there is none
		deny   string         // a verb that is forbidden
		want   Bundle         // the one that all get; the zero value: a new one
		err    string
	}{
		{name: "without a Secret a new bundle is made and kept"},
		{name: "a good Secret is used as it is", secret: secretOf(good, ours), want: good},
		{name: "a good Secret of somebody else is used as it is", secret: secretOf(good, theirs), want: good},
		{name: "an empty Secret without a label is filled", secret: secretOf(Bundle{}, nil)},
		{name: "a Secret of ours that has expired gets a new bundle", secret: secretOf(old, ours)},
		{name: "a Secret of ours for other hosts gets a new bundle", secret: secretOf(other, ours)},
		{name: "a Secret of ours that is broken gets a new bundle", secret: secretOf(Bundle{CA: []byte("CA")}, ours)},
		{
			name: "an expired Secret of somebody else is not overwritten", secret: secretOf(old, theirs), want: old,
			err: "the Secret kube-rego-tls is not ours to change: it is not labelled app.kubernetes.io/managed-by=kube-rego, and x509: certificate has expired",
		},
		{
			name: "a Secret for other hosts that nobody has labelled is not overwritten", secret: secretOf(other, nil), want: other,
			err: "is not ours to change",
		},
		{name: "a Secret that may not be read is an error", deny: "get", err: "reading Secret kube-rego-tls: "},
		{name: "a Secret that may not be created is an error", deny: "create", err: "creating Secret kube-rego-tls: "},
		{name: "a Secret that may not be updated is an error", secret: secretOf(old, ours), deny: "update", want: old, err: "updating Secret kube-rego-tls: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			api := newAPI()
			if test.secret != nil {
				// Without data there is no key for it in the object, as of an empty one.
				for key, value := range test.secret.Data {
					if value == nil {
						delete(test.secret.Data, key)
					}
				}
				api.Put("secrets", test.secret)
			}
			api.Intercept(func(r apitest.Request) error {
				if r.Verb == test.deny {
					return denied
				}
				return nil
			})
			got, err := Shared(t.Context(), secrets(t, api, "opa"), secretHosts, now)
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Fatalf("got the error %v, want %q", err, test.err)
			}
			kept := apitest.Get[corev1.Secret](api, "secrets", "opa", secretName)
			switch {
			case kept == nil && (test.err == "" || test.secret != nil):
				t.Fatal("there is no Secret")
			case kept == nil:
				return
			case err == nil && !reflect.DeepEqual(fromSecret(kept), got):
				t.Error("the Secret holds another bundle than Shared gives")
			}
			if test.want.Cert != nil && !bytes.Equal(fromSecret(kept).Cert, test.want.Cert) {
				t.Error("the Secret was overwritten")
			}
			if err != nil {
				return
			}
			if err := got.Valid(secretHosts, now); err != nil {
				t.Errorf("the bundle is not valid: %v", err)
			}
			if test.secret == nil && (kept.Type != corev1.SecretTypeTLS || kept.Labels[managedBy] != manager) {
				t.Errorf("the Secret has the type %q and the labels %v", kept.Type, kept.Labels)
			}
			if test.secret != nil && !reflect.DeepEqual(kept.Labels, test.secret.Labels) {
				t.Errorf("the labels are %v now, and were %v", kept.Labels, test.secret.Labels)
			}
		})
	}
}

// Of two replicas that start at once one is slower: it writes after the other.
func TestSharedIsThatOfTheFasterReplica(t *testing.T) {
	now := time.Now()
	faster := newTestBundle(t)
	expired, err := NewBundle(secretHosts, now.Add(-2*lifetime))
	if err != nil {
		t.Fatal(err)
	}
	ours := map[string]string{managedBy: manager}
	for _, test := range []struct {
		name, verb string
		secret     *corev1.Secret
	}{
		{"both create the Secret", "create", nil},
		{"both replace one that has expired", "update", secretOf(expired, ours)},
	} {
		t.Run(test.name, func(t *testing.T) {
			api := newAPI()
			if test.secret != nil {
				api.Put("secrets", test.secret)
			}
			writes := 0
			api.Intercept(func(r apitest.Request) error {
				if r.Verb == test.verb {
					writes++
					api.Put("secrets", secretOf(faster, ours))
				}
				return nil
			})
			got, err := Shared(t.Context(), secrets(t, api, "opa"), secretHosts, now)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, faster) || writes != 1 {
				t.Errorf("after %d writes it has a bundle of its own", writes)
			}
			if kept := apitest.Get[corev1.Secret](api, "secrets", "opa", secretName); !reflect.DeepEqual(fromSecret(kept), faster) {
				t.Error("the bundle of the faster replica was overwritten")
			}
		})
	}
}

// What cannot be reached is not taken for missing: another bundle would be made.
func TestSharedWithoutAnAPIServer(t *testing.T) {
	api := newAPI()
	api.Intercept(func(apitest.Request) error { return http.ErrServerClosed })
	_, err := Shared(t.Context(), secrets(t, api, metav1.NamespaceDefault), secretHosts, time.Now())
	if err == nil || !strings.Contains(err.Error(), "reading Secret kube-rego-tls: ") {
		t.Errorf("got the error %v", err)
	}
	if writes := api.Requests(apitest.Request.Writes); len(writes) > 0 {
		t.Errorf("it has written: %q", writes)
	}
}
