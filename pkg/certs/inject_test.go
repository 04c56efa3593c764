package certs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kube-rego/kube-rego/internal/apitest"
)

const (
	validatingConfigurations = "validatingwebhookconfigurations.admissionregistration.k8s.io"
	mutatingConfigurations   = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
)

// toService is a webhook that leads to a Service, with the CA that it has.
func toService(namespace, ca string) admissionregistrationv1.WebhookClientConfig {
	c := admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: "kube-rego"}}
	if ca != "" {
		c.CABundle = []byte(ca)
	}
	return c
}

// toURL is a webhook that leads outside of the cluster.
func toURL(ca string) admissionregistrationv1.WebhookClientConfig {
	url := "https://example.com/"
	return admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: []byte(ca)}
}

func validating(name string, clients ...admissionregistrationv1.WebhookClientConfig) *admissionregistrationv1.ValidatingWebhookConfiguration {
	c := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, client := range clients {
		c.Webhooks = append(c.Webhooks, admissionregistrationv1.ValidatingWebhook{ClientConfig: client})
	}
	return c
}

func mutating(name string, clients ...admissionregistrationv1.WebhookClientConfig) *admissionregistrationv1.MutatingWebhookConfiguration {
	c := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, client := range clients {
		c.Webhooks = append(c.Webhooks, admissionregistrationv1.MutatingWebhook{ClientConfig: client})
	}
	return c
}

// injecting is an Injector that runs, in a bubble.
type injecting struct {
	*apitest.Server
	mu    sync.Mutex
	ca    string // what it puts in; empty: there is none to be had
	asked int    // how often it has asked for that
	lines bytes.Buffer
}

// isQuiet fails the test if the injector has complained.
func (i *injecting) isQuiet(t *testing.T) {
	t.Helper()
	synctest.Wait()
	if strings.Contains(i.lines.String(), "level=ERROR") {
		t.Errorf("it complains: %s", i.lines.String())
	}
}

// inject runs an Injector for the configuration kube-rego of the namespace opa until the
// test ends.
func inject(t *testing.T, api *apitest.Server) *injecting {
	t.Helper()
	i := &injecting{Server: api, ca: "ours"}
	injector := NewInjector(InjectorConfig{
		WebhookConfigurations: webhookConfigurations(t, api), Namespace: "opa", Names: []string{"kube-rego"}, Log: slog.New(slog.NewTextHandler(&i.lines, nil)),
		CA: func(context.Context) ([]byte, error) {
			i.mu.Lock()
			defer i.mu.Unlock()
			if i.asked++; i.ca == "" {
				return nil, errors.New("there is no CA")
			}
			return []byte(i.ca), nil
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		injector.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-stopped })
	synctest.Wait()
	return i
}

// become changes the CA that is put in.
func (i *injecting) become(ca string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ca = ca
}

// has fails the test unless a configuration has these CAs, in the order of its webhooks.
func (i *injecting) has(t *testing.T, resource, name string, want ...string) {
	t.Helper()
	synctest.Wait()
	var got []string
	switch resource {
	case validatingConfigurations:
		if c := apitest.Get[admissionregistrationv1.ValidatingWebhookConfiguration](i.Server, resource, "", name); c != nil {
			for _, w := range c.Webhooks {
				got = append(got, string(w.ClientConfig.CABundle))
			}
		}
	case mutatingConfigurations:
		if c := apitest.Get[admissionregistrationv1.MutatingWebhookConfiguration](i.Server, resource, "", name); c != nil {
			for _, w := range c.Webhooks {
				got = append(got, string(w.ClientConfig.CABundle))
			}
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the webhooks of %s have the CAs %q, want %q", name, got, want)
	}
}

func (i *injecting) writes() int { return len(i.Requests(apitest.Request.Writes)) }

func TestInjector(t *testing.T) {
	for _, test := range []struct {
		name   string
		before []admissionregistrationv1.WebhookClientConfig
		want   []string
		writes int
	}{
		{
			name:   "a webhook without a CA gets ours",
			before: []admissionregistrationv1.WebhookClientConfig{toService("opa", "")}, want: []string{"ours"}, writes: 1,
		},
		{
			name:   "a webhook of ours with an old CA gets the new one",
			before: []admissionregistrationv1.WebhookClientConfig{toService("opa", "old")}, want: []string{"ours"}, writes: 1,
		},
		{
			name:   "a webhook that has our CA is left alone",
			before: []admissionregistrationv1.WebhookClientConfig{toService("opa", "ours")}, want: []string{"ours"},
		},
		{
			name:   "the CA of a Service in another namespace is not ours to change",
			before: []admissionregistrationv1.WebhookClientConfig{toService("other", "theirs")}, want: []string{"theirs"},
		},
		{
			name:   "a Service in another namespace without a CA gets none",
			before: []admissionregistrationv1.WebhookClientConfig{toService("other", "")}, want: []string{""},
		},
		{
			name:   "the CA of a URL is not ours to change",
			before: []admissionregistrationv1.WebhookClientConfig{toURL("theirs")}, want: []string{"theirs"},
		},
		{
			name: "of several webhooks ours get it, in one write",
			before: []admissionregistrationv1.WebhookClientConfig{
				toService("opa", ""), toService("other", "theirs"), toURL("theirs"), toService("opa", "old"), toService("opa", "ours"),
			},
			want: []string{"ours", "theirs", "theirs", "ours", "ours"}, writes: 1,
		},
	} {
		for resource, object := range map[string]any{
			validatingConfigurations: validating("kube-rego", test.before...),
			mutatingConfigurations:   mutating("kube-rego", test.before...),
		} {
			t.Run(test.name+", "+strings.TrimSuffix(resource, "webhookconfigurations.admissionregistration.k8s.io"), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					api := newAPI()
					api.Put(resource, object)
					i := inject(t, api)
					i.has(t, resource, "kube-rego", test.want...)
					if got := i.writes(); got != test.writes {
						t.Errorf("it has written %d times, want %d", got, test.writes)
					}
				})
			})
		}
	}
}

func TestInjectorKeepsItsCA(t *testing.T) {
	for _, test := range []struct {
		name string
		play func(*testing.T, *injecting)
	}{
		{"it waits for a configuration that does not exist yet", func(t *testing.T, i *injecting) {
			time.Sleep(time.Hour)
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			i.has(t, validatingConfigurations, "kube-rego", "ours")
		}},
		{"a configuration of another name is left alone", func(t *testing.T, i *injecting) {
			i.Put(validatingConfigurations, validating("other", toService("opa", "")))
			i.Put(mutatingConfigurations, mutating("kube-rego-2", toService("opa", "")))
			i.has(t, validatingConfigurations, "other", "")
			i.has(t, mutatingConfigurations, "kube-rego-2", "")
		}},
		{"one that somebody applies anew without it gets it again", func(t *testing.T, i *injecting) {
			for range 3 {
				i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
				i.has(t, validatingConfigurations, "kube-rego", "ours")
			}
		}},
		{"one that is deleted and created anew gets it", func(t *testing.T, i *injecting) {
			i.Put(mutatingConfigurations, mutating("kube-rego", toService("opa", "")))
			i.has(t, mutatingConfigurations, "kube-rego", "ours")
			i.Remove(mutatingConfigurations, "", "kube-rego")
			i.has(t, mutatingConfigurations, "kube-rego")
			i.Put(mutatingConfigurations, mutating("kube-rego", toService("opa", "")))
			i.has(t, mutatingConfigurations, "kube-rego", "ours")
		}},
		{"a CA that another replica has made stays: it is the newer one", func(t *testing.T, i *injecting) {
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			i.has(t, validatingConfigurations, "kube-rego", "ours")
			i.become("newer")
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "newer")))
			i.has(t, validatingConfigurations, "kube-rego", "newer")
			if n := i.writes(); n != 1 {
				t.Errorf("it has written %d times, want once", n)
			}
		}},
		{"it asks for the CA only where there is another", func(t *testing.T, i *injecting) {
			for range 3 {
				i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "ours")))
				synctest.Wait()
				i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "ours"), toURL("theirs")))
				synctest.Wait()
			}
			if i.asked != 1 {
				t.Errorf("it has asked %d times, want once", i.asked)
			}
		}},
		{"it asks for a CA that was not to be had until there is one", func(t *testing.T, i *injecting) {
			i.become("")
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "old")))
			time.Sleep(10 * retryInterval)
			i.has(t, validatingConfigurations, "kube-rego", "old")
			i.become("ours")
			time.Sleep(retryInterval)
			i.has(t, validatingConfigurations, "kube-rego", "ours")
		}},
		{"what is forbidden is tried again until it is allowed", func(t *testing.T, i *injecting) {
			i.Intercept(refuse("update", apierrors.NewForbidden(admissionregistrationv1.Resource("x"), "kube-rego", nil)))
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			time.Sleep(10*retryInterval + time.Second)
			i.has(t, validatingConfigurations, "kube-rego", "")
			if n := i.writes(); n != 11 {
				t.Errorf("it has tried %d times in %s, want 11", n, 10*retryInterval)
			}
			i.Intercept(nil)
			time.Sleep(retryInterval)
			i.has(t, validatingConfigurations, "kube-rego", "ours")
		}},
		{"of a conflict the newer configuration gets it, at once", func(t *testing.T, i *injecting) {
			var once sync.Once
			i.Intercept(func(r apitest.Request) error {
				if r.Verb == "update" { // somebody adds a webhook just before us
					once.Do(func() {
						i.Put(validatingConfigurations, validating("kube-rego", toService("opa", ""), toURL("theirs")))
					})
				}
				return nil
			})
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			i.has(t, validatingConfigurations, "kube-rego", "ours", "theirs")
			if n := i.writes(); n != 2 {
				t.Errorf("it has tried %d times, want 2", n)
			}
			i.isQuiet(t)
		}},
		{"one that is gone when it writes is not created", func(t *testing.T, i *injecting) {
			i.Intercept(func(r apitest.Request) error {
				if r.Verb == "update" {
					i.Remove(validatingConfigurations, "", "kube-rego")
				}
				return nil
			})
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			time.Sleep(10 * retryInterval)
			i.has(t, validatingConfigurations, "kube-rego")
			if n := i.writes(); n != 1 {
				t.Errorf("it has tried %d times, want once", n)
			}
			i.isQuiet(t)
		}},
		{"a watch that ends is begun anew", func(t *testing.T, i *injecting) {
			i.HangUp()
			i.Put(validatingConfigurations, validating("kube-rego", toService("opa", "")))
			time.Sleep(time.Minute)
			i.has(t, validatingConfigurations, "kube-rego", "ours")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test.play(t, inject(t, newAPI())) })
		})
	}
}

// refuse answers requests of a verb with an error.
func refuse(verb string, err error) func(apitest.Request) error {
	return func(r apitest.Request) error {
		if r.Verb == verb {
			return err
		}
		return nil
	}
}
