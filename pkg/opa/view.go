package opa

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/plugins/logs"
	"github.com/open-policy-agent/opa/v1/plugins/server/decoding"
	"github.com/open-policy-agent/opa/v1/plugins/server/encoding"
	"github.com/open-policy-agent/opa/v1/server"
	"github.com/open-policy-agent/opa/v1/server/authorizer"
	"github.com/open-policy-agent/opa/v1/server/handlers"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/server/writer"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/kube-rego/kube-rego/pkg/engine"
)

// view is OPA's server over one policy set. OPA's server asks for its compiler and for
// its data at different moments, and relies on a lock that lets no change in between:
// there is no such lock here. So each set gets a server of its own, made when the first
// request comes, and an answer is made with one set whatever happens meanwhile.
type view struct {
	inForce *engine.InForce
	config  string // that it was made with
	manager *plugins.Manager
	store   storage.Store
	router  http.Handler // OPA's handlers
	front   func(http.Handler) http.Handler
	end     context.CancelFunc
}

func (h *Host) newView(f *engine.InForce, config string) (*view, error) {
	ctx, end := context.WithCancel(context.Background())
	v := &view{inForce: f, config: config, end: end}
	initial := &initialStore{Store: f.Store()}
	v.store = initial
	var err error
	v.manager, err = plugins.New([]byte(config), "kube-rego", initial,
		plugins.Logger(newLogger(h.config.Log)),
		plugins.ConsoleLogger(logging.NewNoOpLogger()),
		plugins.Info(engine.Runtime()),
		plugins.WithParserOptions(ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.DefaultRegoVersion}),
		plugins.WithEnableVersionCheck(false),
	)
	if err != nil {
		end()
		return nil, fmt.Errorf("making a server for a policy set: %w", err)
	}
	if err := v.manager.Init(ctx); err != nil {
		v.close()
		return nil, fmt.Errorf("making a server for a policy set: %w", err)
	}
	initial.use(ctx, f.Compiler())
	if v.front, err = front(ctx, v.manager); err != nil {
		v.close()
		return nil, err
	}
	router := http.NewServeMux()
	_, err = h.newServer(v.manager, v.store).
		WithRouter(router).
		WithDecisionLoggerWithErr(func(_ context.Context, info *server.Info) error {
			h.logged(f, info)
			return nil
		}).
		WithDecisionIDFactory(h.decisionID).
		WithNDBCacheEnabled(h.config.Configuration.LogsDecisions()).
		Init(ctx)
	if err != nil {
		v.close()
		return nil, fmt.Errorf("making a server for a policy set: %w", err)
	}
	v.router = router
	return v, nil
}

// front is what OPA's server has before all its handlers: limits of what is read, and
// compression.
func front(ctx context.Context, m *plugins.Manager) (func(http.Handler) http.Handler, error) {
	var rawEncoding, rawDecoding []byte
	if config := m.GetConfig(); config.Server != nil {
		rawEncoding, rawDecoding = config.Server.Encoding, config.Server.Decoding
	}
	encoding, err := encoding.NewConfigBuilder().WithBytes(rawEncoding).ParseWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("server.encoding: %w", err)
	}
	decoding, err := decoding.NewConfigBuilder().WithBytes(rawDecoding).ParseWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("server.decoding: %w", err)
	}
	return func(next http.Handler) http.Handler {
		next = handlers.CompressHandler(next, *encoding.Gzip.MinLength, *encoding.Gzip.CompressionLevel)
		return handlers.DecodingLimitsHandler(gzipChecked(next), *decoding.MaxLength, *decoding.Gzip.MaxLength)
	}, nil
}

// gzipChecked refuses a body that says it is compressed and is not: OPA 1.22's reader
// of bodies panics on one.
func gzipChecked(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Of other requests OPA reads no body.
		reads := r.Method == http.MethodPost || r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/v1/compile/")
		if reads && strings.Contains(r.Header.Get("Content-Encoding"), "gzip") {
			var read bytes.Buffer
			if _, err := gzip.NewReader(io.TeeReader(r.Body, &read)); err != nil {
				writer.ErrorString(w, http.StatusBadRequest, types.CodeInvalidParameter, fmt.Errorf("could not decompress the body: %w", err))
				return
			}
			r.Body = io.NopCloser(io.MultiReader(&read, r.Body))
		}
		next.ServeHTTP(w, r)
	})
}

// newServer is OPA's server as all are made.
func (h *Host) newServer(m *plugins.Manager, s storage.Store) *server.Server {
	made := server.New().WithManager(m).WithStore(s).WithRuntime(engine.Runtime())
	if h.config.API.Metrics != nil {
		made = made.WithMetrics(h.config.API.Metrics)
	}
	return made
}

// close ends what goes on beside requests; those in flight are answered.
func (v *view) close() {
	v.manager.Stop(context.Background())
	v.end()
}

// logged takes in a decision, if decisions are logged.
func (h *Host) logged(f *engine.InForce, info *server.Info) {
	if h.config.Configuration.LogsDecisions() {
		h.logs.answered(f, info)
	}
}

// decisionID is empty unless decisions are logged, as in OPA.
func (h *Host) decisionID() string {
	if m := h.running(); m == nil || logs.Lookup(m) == nil {
		return ""
	}
	return rand.Text()
}

// authorized asks the policy set whether a request may come in, as OPA does.
func (v *view) authorized(next http.Handler) http.Handler {
	return authorizer.NewBasic(next, v.manager.GetCompiler, v.store,
		authorizer.Runtime(engine.Runtime()),
		authorizer.Decision(v.manager.GetConfig().DefaultAuthorizationDecisionRef))
}

// hasAuthorization reports whether the policy set decides about requests. Somebody who
// has written a policy for that and made a mistake wants nobody let in.
func (v *view) hasAuthorization() bool {
	return v.inForce.Snapshot().Wants(v.manager.GetConfig().DefaultAuthorizationDecisionRef())
}

// viewConfig is what of the configuration concerns a server, if OPA's server can do with
// it.
func viewConfig(ctx context.Context, m *plugins.Manager) (string, error) {
	if _, err := front(ctx, m); err != nil {
		return "", err
	}
	config := m.GetConfig()
	part := map[string]any{
		"default_decision":               config.DefaultDecision,
		"default_authorization_decision": config.DefaultAuthorizationDecision,
	}
	if len(config.Caching) > 0 {
		part["caching"] = config.Caching
	}
	if config.Server != nil {
		part["server"] = config.Server
	}
	text, err := json.Marshal(part)
	if err != nil {
		return "", fmt.Errorf("making a server for a policy set: %w", err)
	}
	return string(text), nil
}

// initialStore is the store of a set for the manager of a view. A manager writes OPA's
// version when it begins, which has no place in what only can be read, and takes its
// compiler from a trigger.
//
// And it would compile all policies once more if it saw them.
type initialStore struct {
	storage.Store
	ready  bool
	commit func(context.Context, storage.Transaction, storage.TriggerEvent)
}

// Write does nothing. Requests that write do not come here.
func (*initialStore) Write(context.Context, storage.Transaction, storage.PatchOp, storage.Path, any) error {
	return nil
}

// ListPolicies lists them once the manager has begun.
func (s *initialStore) ListPolicies(ctx context.Context, txn storage.Transaction) ([]string, error) {
	if !s.ready {
		return nil, nil
	}
	return s.Store.ListPolicies(ctx, txn)
}

// Register keeps the first trigger, the manager's.
func (s *initialStore) Register(ctx context.Context, txn storage.Transaction, config storage.TriggerConfig) (storage.TriggerHandle, error) {
	if s.commit == nil {
		s.commit = config.OnCommit
	}
	return s.Store.Register(ctx, txn, config)
}

func (s *initialStore) use(ctx context.Context, compiler *ast.Compiler) {
	event := storage.TriggerEvent{Context: storage.NewContext()}
	plugins.SetCompilerOnContext(event.Context, compiler)
	s.commit(ctx, nil, event)
	s.ready = true
}
