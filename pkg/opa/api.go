package opa

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/server"
	"github.com/open-policy-agent/opa/v1/server/handlers"
	"github.com/open-policy-agent/opa/v1/server/identifier"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/server/writer"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// APIConfig says how the REST API is served.
type APIConfig struct {
	// Ready is nil while decisions can be made, or why not.
	Ready func() error
	// Authorize is true if the policy set decides about each request even where it
	// has no rule for that, and so allows none.
	Authorize bool
	// Metrics count requests; nil: nobody does.
	Metrics server.Metrics
}

// api is OPA's REST API, as far as it reads.
type api struct {
	host    *Host
	mux     *http.ServeMux
	request atomic.Uint64 // number of the last
	// reconfigured is true if the configuration may have changed since the view was made.
	reconfigured atomic.Bool

	console http.Handler // what does not depend on a policy set; made by prepare

	mu     sync.Mutex
	view   *view  // of what is in force now
	config string // of views
}

// readers are the patterns of requests that read, and by whom they are answered: a
// server over the policy set in force, or (true) one over OPA's manager.
var readers = map[string]bool{
	"POST /{$}":                  false,
	"POST /v0/data":              false,
	"POST /v0/data/{path...}":    false,
	"GET /v1/data":               false,
	"GET /v1/data/{path...}":     false,
	"POST /v1/data":              false,
	"POST /v1/data/{path...}":    false,
	"GET /v1/query":              false,
	"POST /v1/query":             false,
	"POST /v1/compile":           false,
	"GET /v1/compile/{path...}":  false,
	"POST /v1/compile/{path...}": false,
	"GET /v1/policies":           false,
	"GET /v1/policies/{path...}": false,
	"GET /health/{path...}":      false,
	"GET /health":                true,
	"GET /v1/config":             true,
	"GET /v1/status":             true,
}

func newAPI(h *Host) *api {
	a := &api{host: h, mux: http.NewServeMux()}
	allowed := make(map[string][]string)
	for pattern, console := range readers {
		method, path, _ := strings.Cut(pattern, " ")
		allowed[path] = append(allowed[path], method)
		if console {
			a.mux.HandleFunc(pattern, a.serveConsole)
		} else {
			a.mux.HandleFunc(pattern, a.serveView)
		}
	}
	for path, methods := range allowed {
		slices.Sort(methods)
		a.mux.Handle(path, handlers.DefaultHandler(refuseMethod(strings.Join(methods, ", ")))) // as OPA's
	}
	a.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writer.Error(w, http.StatusNotFound, types.NewErrorV1(types.CodeResourceNotFound,
			"nothing is served at %s: there are /, /v0/data, /v1/data, /v1/query, /v1/compile, /v1/policies, /v1/config, /v1/status and /health", r.URL.Path))
	})
	return a
}

// codeMethodNotAllowed is in the manner of OPA's codes, which have none for it.
const codeMethodNotAllowed = "method_not_allowed"

func refuseMethod(allowed string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", allowed)
		writer.Error(w, http.StatusMethodNotAllowed, types.NewErrorV1(codeMethodNotAllowed,
			"%s is not served here, only %s: policies and data are ConfigMaps here, and are changed there", r.Method, allowed))
	}
}

// API is the handler of OPA's REST API. It reads only.
func (h *Host) API() http.Handler { return h.api.handler(h.config.API.Authorize) }

// Decisions is the handler of the part of the API that API servers ask: the same, but
// without a policy set that decides about requests nothing is refused.
func (h *Host) Decisions() http.Handler { return h.api.handler(false) }

// handler passes on requests that may come in.
func (a *api) handler(authorize bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := a.host.config.API.Ready(); err != nil {
			unready(w, r)
			return
		}
		v, err := a.current() //nolint:contextcheck // a view outlives the request that it is made for
		if err != nil {
			a.fail(w, err)
			return
		}
		if r.URL.Query().Has("instrument") {
			// OPA writes to the compiler then, which others read.
			if v, err = a.host.newView(v.inForce, v.config); err != nil { //nolint:contextcheck // as above
				a.fail(w, err)
				return
			}
			defer v.close() //nolint:contextcheck // as above
		}
		r = a.identified(r)
		r = r.WithContext(context.WithValue(r.Context(), viewKey{}, v)) //nolint:contextcheck // it is the request's
		var next http.Handler = a.mux
		if authorize || v.hasAuthorization() {
			next = a.counted(handlers.DefaultHandler(v.authorized(a.mux)))
		}
		v.front(authenticated(next)).ServeHTTP(w, r)
	})
}

func (a *api) fail(w http.ResponseWriter, err error) {
	a.host.config.Log.Error("the API cannot be served", "error", err)
	writer.Error(w, http.StatusInternalServerError, types.NewErrorV1(types.CodeInternal, "the API cannot be served"))
}

// counted counts what comes to where the policy set decides about requests.
func (a *api) counted(next http.Handler) http.Handler {
	if a.host.config.API.Metrics == nil {
		return next
	}
	return a.host.config.API.Metrics.InstrumentHandler(next, server.PromHandlerAPIAuthz)
}

// viewKey is the key of a request's view in its context.
type viewKey struct{}

// unready answers as long as not all policies are in force. A probe hears it as OPA's own.
func unready(w http.ResponseWriter, r *http.Request) {
	const text = "kube-rego is not ready: the first whole policy set is not in force yet"
	if r.URL.Path == "/health" || strings.HasPrefix(r.URL.Path, "/health/") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(types.HealthResponseV1{Error: text}) // a client that is gone hears nothing
		return
	}
	writer.Error(w, http.StatusServiceUnavailable, types.NewErrorV1(types.CodeInternal, text))
}

// authenticated finds out who asks: by a client certificate, or else by a token.
func authenticated(next http.Handler) http.Handler {
	withToken, withCertificate := identifier.NewTokenBased(next), identifier.NewTLSBased(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			withCertificate.ServeHTTP(w, r)
			return
		}
		withToken.ServeHTTP(w, r)
	})
}

// identified gives a request what decision logs tell of it.
func (a *api) identified(r *http.Request) *http.Request {
	ctx := logging.WithHTTPRequestContext(r.Context(), &logging.HTTPRequestContext{Header: r.Header.Clone()})
	return r.WithContext(logging.NewContext(ctx, &logging.RequestContext{
		ReqID: a.request.Add(1), ClientAddr: r.RemoteAddr, ReqMethod: r.Method, ReqPath: r.URL.EscapedPath(),
	}))
}

func (a *api) serveView(w http.ResponseWriter, r *http.Request) {
	v := r.Context().Value(viewKey{}).(*view) //nolint:forcetypeassert // handler has put it there
	if strings.HasPrefix(r.URL.Path, "/health/") {
		for name, status := range a.host.running().PluginStatus() {
			v.manager.UpdatePluginStatus(name, status) // policies about health ask for it
		}
	}
	v.router.ServeHTTP(w, r)
}

func (a *api) serveConsole(w http.ResponseWriter, r *http.Request) { a.console.ServeHTTP(w, r) }

// errNotRunning is the error before OPA's plugins run.
var errNotRunning = errors.New("OPA's plugins do not run yet")

// prepare makes what does not depend on a policy set. The error is one of the
// configuration.
func (a *api) prepare(ctx context.Context, manager *plugins.Manager) error {
	router := http.NewServeMux()
	// A store of its own, which it does not read: OPA's server keeps a transaction open if
	// it cannot begin, and bundles would wait for that for ever.
	if _, err := a.host.newServer(manager, inmem.New()).WithRouter(router).Init(ctx); err != nil {
		return err
	}
	config, err := viewConfig(ctx, manager)
	if err != nil {
		return err
	}
	a.console, a.config = router, config
	return nil
}

// reconfigure takes over what was discovered, if OPA's server can do with it.
func (a *api) reconfigure(manager *plugins.Manager) {
	config, err := viewConfig(context.Background(), manager)
	if err != nil {
		a.host.config.Log.Error("the discovered configuration of the API has a mistake; the one before stays in use", "error", err)
		return
	}
	a.config = config
}

// current is the view of what is in force.
func (a *api) current() (*view, error) {
	now, manager := a.host.config.Engine.InForce(), a.host.running()
	if now == nil || manager == nil {
		return nil, errNotRunning
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reconfigured.Swap(false) {
		a.reconfigure(manager)
	}
	if a.view != nil && a.view.inForce == now && a.view.config == a.config {
		return a.view, nil
	}
	next, err := a.host.newView(now, a.config)
	if err != nil {
		return nil, err
	}
	if a.view != nil {
		a.view.close()
	}
	a.view = next
	return next, nil
}
