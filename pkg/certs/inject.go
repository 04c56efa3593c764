package certs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	typedadmissionregistrationv1 "k8s.io/client-go/kubernetes/typed/admissionregistration/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-rego/kube-rego/pkg/informer"
)

// retryInterval is how soon a CA that could not be written is tried again: as
// often as a person looks whether it has worked by now.
const retryInterval = 5 * time.Second

// WebhookConfigurations read and update webhook configurations of both kinds.
type WebhookConfigurations interface {
	typedadmissionregistrationv1.ValidatingWebhookConfigurationsGetter
	typedadmissionregistrationv1.MutatingWebhookConfigurationsGetter
}

// InjectorConfig is what an Injector needs.
type InjectorConfig struct {
	// WebhookConfigurations are where the CA goes.
	WebhookConfigurations WebhookConfigurations
	// Namespace is our own: only webhooks with a Service in it get the CA. The
	// certificate is good for no others, and their CA is not ours to change.
	Namespace string
	// Names of ValidatingWebhookConfigurations and
	// MutatingWebhookConfigurations; one that does not exist yet is waited for.
	Names []string
	// CA gives the bundle to put in, in PEM. It is asked anew whenever a
	// configuration holds another one: that one may be the newer, from a replica
	// that had to make a new bundle, and two replicas must not fight.
	CA func(ctx context.Context) ([]byte, error)
	// Log is told of each configuration that was changed.
	Log *slog.Logger
}

// Injector keeps the CA in every webhook of some webhook configurations, also
// when somebody applies them anew without it.
type Injector struct {
	config InjectorConfig

	mu sync.Mutex
	ca []byte // as it was last asked for
}

// NewInjector makes an Injector; Run starts it.
func NewInjector(config InjectorConfig) *Injector { return &Injector{config: config} }

// Run watches the configurations and repairs them until ctx ends.
func (i *Injector) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, name := range i.config.Names {
		// RBAC with resourceNames allows to list by this selector.
		named := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()}
		validating := informer.New(i.config.WebhookConfigurations.ValidatingWebhookConfigurations(),
			&admissionregistrationv1.ValidatingWebhookConfiguration{}, named)
		mutating := informer.New(i.config.WebhookConfigurations.MutatingWebhookConfigurations(),
			&admissionregistrationv1.MutatingWebhookConfiguration{}, named)
		wg.Go(func() { i.keep(ctx, name, validating) })
		wg.Go(func() { i.keep(ctx, name, mutating) })
		wg.Go(func() {
			if cache.WaitForCacheSync(ctx.Done(), validating.HasSynced, mutating.HasSynced) &&
				len(validating.GetStore().ListKeys())+len(mutating.GetStore().ListKeys()) == 0 {
				i.config.Log.Warn("there is no webhook configuration of this name yet; waiting for it", "webhookConfiguration", name)
			}
		})
	}
	wg.Wait()
}

// keep repairs the one configuration that informer knows, whenever it changes.
func (i *Injector) keep(ctx context.Context, name string, informer cache.SharedIndexInformer) {
	log := i.config.Log.With("webhookConfiguration", name)
	changed := make(chan struct{}, 1)
	look := func(any) {
		select {
		case changed <- struct{}{}:
		default: // somebody looks anyway, after this
		}
	}
	// Neither call fails on an informer that was not started.
	_ = informer.SetWatchErrorHandlerWithContext(func(_ context.Context, _ *cache.Reflector, err error) {
		log.Warn("watching the webhook configuration failed; trying again", "error", err)
	})
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    look,
		UpdateFunc: func(_, object any) { look(object) },
	})
	var wg sync.WaitGroup
	wg.Go(func() { informer.RunWithContext(ctx) })
	defer wg.Wait()

	retry := time.NewTimer(retryInterval)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-retry.C:
		}
		for _, object := range informer.GetStore().List() {
			if err := i.repair(ctx, object); err != nil && ctx.Err() == nil {
				log.Error("the CA could not be put into the webhook configuration; trying again", "error", err)
				retry.Reset(retryInterval)
			}
		}
	}
}

// repair puts the CA into each webhook of a configuration that lacks it.
func (i *Injector) repair(ctx context.Context, object any) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch c := object.(type) {
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		c = c.DeepCopy()
		var clients []*admissionregistrationv1.WebhookClientConfig
		for n := range c.Webhooks {
			clients = i.appendOurs(clients, &c.Webhooks[n].ClientConfig)
		}
		return i.update(ctx, "ValidatingWebhookConfiguration", c.Name, clients, func() error {
			_, err := i.config.WebhookConfigurations.ValidatingWebhookConfigurations().Update(ctx, c, metav1.UpdateOptions{})
			return err
		})
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		c = c.DeepCopy()
		var clients []*admissionregistrationv1.WebhookClientConfig
		for n := range c.Webhooks {
			clients = i.appendOurs(clients, &c.Webhooks[n].ClientConfig)
		}
		return i.update(ctx, "MutatingWebhookConfiguration", c.Name, clients, func() error {
			_, err := i.config.WebhookConfigurations.MutatingWebhookConfigurations().Update(ctx, c, metav1.UpdateOptions{})
			return err
		})
	}
	return fmt.Errorf("unexpected %T", object)
}

// appendOurs appends client if it leads to a Service of our namespace.
func (i *Injector) appendOurs(clients []*admissionregistrationv1.WebhookClientConfig, client *admissionregistrationv1.WebhookClientConfig) []*admissionregistrationv1.WebhookClientConfig {
	if client.Service == nil || client.Service.Namespace != i.config.Namespace {
		return clients
	}
	return append(clients, client)
}

// update gives the CA to the webhooks and writes their configuration, if one of
// them lacks it.
func (i *Injector) update(ctx context.Context, kind, name string, clients []*admissionregistrationv1.WebhookClientConfig, write func() error) error {
	if i.complete(clients) {
		return nil
	}
	ca, err := i.config.CA(ctx)
	if err != nil {
		return err
	}
	if i.ca = ca; i.complete(clients) {
		return nil
	}
	for _, c := range clients {
		c.CABundle = ca
	}
	switch err := write(); {
	case apierrors.IsConflict(err), apierrors.IsNotFound(err):
		return nil // it has changed since; the watch brings the new one
	case err != nil:
		return fmt.Errorf("updating %s %s: %w", kind, name, err)
	}
	i.config.Log.Info("put the CA into the webhook configuration", "kind", kind, "webhookConfiguration", name)
	return nil
}

// complete reports whether all webhooks have the CA that was last asked for.
func (i *Injector) complete(clients []*admissionregistrationv1.WebhookClientConfig) bool {
	return !slices.ContainsFunc(clients, func(c *admissionregistrationv1.WebhookClientConfig) bool {
		return len(i.ca) == 0 || !bytes.Equal(c.CABundle, i.ca)
	})
}
