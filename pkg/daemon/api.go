package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/certs"
	"github.com/kube-rego/kube-rego/pkg/opa"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// configuration is OPA's. Its default_decision is the entrypoint, unless the flag says
// another.
func (d *daemon) configuration() (opa.Configuration, error) {
	c, err := opa.ReadConfiguration(d.options.OPAConfig)
	if err != nil {
		return c, err
	}
	if path := strings.Trim(c.DefaultDecision(), "/"); path != "" && d.options.Entrypoint == DefaultEntrypoint {
		if err := policy.CheckPath(path); err != nil {
			return c, fmt.Errorf("OPA's configuration: default_decision: %w", err)
		}
		d.options.Entrypoint = path
	}
	return c.WithDefaultDecision("/" + strings.Trim(d.options.Entrypoint, "/"))
}

// newHost makes what runs OPA's plugins and its REST API.
func (d *daemon) newHost(configuration opa.Configuration) *opa.Host {
	return opa.New(opa.Config{
		Configuration: configuration,
		RegoVersion:   policy.RegoVersion(d.options.RegoVersion),
		Engine:        d.engine,
		Gate:          d.inbox,
		Look:          d.inbox.Look,
		Registry:      d.metrics.Registry(),
		Dropped:       d.metrics.DecisionLogDropped,
		API:           opa.APIConfig{Ready: d.decidable, Authorize: d.options.APIAuthorization == authorizationBasic, Metrics: d.metrics.API()},
		Log:           d.log,
	})
}

// listeners are all that is listened on, and what keeps the files new that they need.
func (d *daemon) listeners() ([]*server.Listener, []func(context.Context), error) {
	webhook := &server.Listener{Name: "webhook", Address: d.options.Addr, Handler: d.webhook(), Certificate: d.certificate.Get}
	listeners := []*server.Listener{
		{Name: "diagnostic", Address: d.options.DiagnosticAddr, Handler: server.NewDiagnostic(d.diagnosis(), d.metrics, d.refusals)},
		webhook,
	}
	var reloads []func(context.Context)
	pool, reload, err := d.clientCA("--tls-client-ca-file", d.options.TLSClientCAFile)
	if err != nil {
		return nil, nil, err
	}
	webhook.ClientCAs, reloads = pool, append(reloads, reload...)
	if d.options.APIAddr == "" {
		return listeners, reloads, nil
	}
	api, reload, err := d.api()
	if err != nil {
		return nil, nil, err
	}
	return append(listeners, api), append(reloads, reload...), nil
}

// api is the listener of OPA's REST API: plain HTTP for containers of the same pod,
// HTTPS for all others.
func (d *daemon) api() (*server.Listener, []func(context.Context), error) {
	api := &server.Listener{Name: "API", Address: d.options.APIAddr, Handler: d.host.API()}
	pool, reloads, err := d.clientCA("--api-tls-client-ca-file", d.options.APITLSClientCAFile)
	if err != nil {
		return nil, nil, err
	}
	api.ClientCAs = pool
	if pool != nil || !isLoopback(d.options.APIAddr) {
		api.Certificate = d.certificate.Get
	}
	if file := d.options.APITokenFile; file != "" {
		token, err := server.NewTokenFile(file, d.log)
		if err != nil {
			return nil, nil, fmt.Errorf("--api-token-file: %w", err)
		}
		api.Handler = d.metrics.API().InstrumentHandler(token.Require(api.Handler), "token")
		reloads = append(reloads, token.Run)
	}
	return api, reloads, nil
}

// clientCA are the CAs of clients in a file; nothing if there is no file.
func (d *daemon) clientCA(flag, file string) (func() *x509.CertPool, []func(context.Context), error) {
	if file == "" {
		return nil, nil, nil
	}
	ca, err := certs.NewClientCA(file, d.log)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", flag, err)
	}
	return ca.Pool, []func(context.Context){ca.Run}, nil
}

func (d *daemon) webhook() http.Handler {
	config := admission.Config{
		Entrypoint:  d.options.Entrypoint,
		Strict:      d.options.StrictReview,
		OnUndefined: admission.Action(d.options.OnUndefined),
		OnError:     admission.Action(d.options.OnError),
	}
	validating := config
	validating.Validating = true
	decider := d.traces.Decider(d.engine)
	return server.NewWebhook(server.WebhookConfig{
		Reviewer:   admission.NewReviewer(decider, config),
		Validator:  admission.NewReviewer(decider, validating),
		Entrypoint: d.options.Entrypoint,
		RanOut:     d.runaways.add,
		Refusals:   d.refusals,
		Data:       d.host.Decisions(),
		Decides:    d.engine.Decides,
		Ready:      d.decidable,
		Metrics:    d.metrics,
		Log:        d.log,
		Tracer:     d.traces.Tracer(),
	})
}

// serve serves on all listeners until ctx ends and the last request is answered, or
// one of them fails.
func serve(ctx context.Context, listeners []*server.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		group.Go(func() error { return l.Serve(ctx) })
	}
	return group.Wait()
}
