package opa

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/logging"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/plugins/logs"
	"github.com/open-policy-agent/opa/v1/server"
	"github.com/open-policy-agent/opa/v1/server/authorizer"
	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/kube-rego/kube-rego/pkg/engine"
)

// view is OPA's server over one policy set. OPA's server asks for its compiler and for
// its data at different moments, and relies on a lock that lets no change in between:
// there is no such lock here. So each set gets a server of its own, made when the first
// request comes, and an answer is made with one set whatever happens meanwhile.
type view struct {
	inForce *engine.InForce
	manager *plugins.Manager
	store   storage.Store
	handler http.Handler
	end     context.CancelFunc
}

func (h *Host) newView(f *engine.InForce, config string) (*view, error) {
	ctx, end := context.WithCancel(context.Background())
	v := &view{inForce: f, end: end}
	initial := &initialStore{Store: f.Store()}
	v.store = initial
	var err error
	v.manager, err = plugins.New([]byte(config), "kube-rego", initial,
		plugins.Logger(logger{h.config.Log.With("component", "opa")}),
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
	s, err := h.newServer(v.manager, v.store).
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
	v.handler = s.Handler
	return v, nil
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

// hasAuthorization reports whether the policy set decides about requests.
func (v *view) hasAuthorization() bool {
	return v.inForce.Snapshot().DefinesRef(v.manager.GetConfig().DefaultAuthorizationDecisionRef())
}

// viewConfig is what of the configuration concerns a server.
func viewConfig(m *plugins.Manager) (string, error) {
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
type initialStore struct {
	storage.Store
	commit func(context.Context, storage.Transaction, storage.TriggerEvent)
}

// Write does nothing. Requests that write do not come here.
func (*initialStore) Write(context.Context, storage.Transaction, storage.PatchOp, storage.Path, any) error {
	return nil
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
}
