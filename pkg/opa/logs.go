package opa

import (
	"context"
	"errors"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/plugins"
	"github.com/open-policy-agent/opa/v1/plugins/logs"
	"github.com/open-policy-agent/opa/v1/server"
	"github.com/open-policy-agent/opa/v1/server/types"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// maxQueued bounds the decisions that wait to be logged. To mask and to encode one
// takes about as long as to make one, so they are seldom more than a few; a quarter of
// a second of as many as OPA's own server makes (3,500/s on two cores) may pile up.
const maxQueued = 1024

// decisionLogs hands decisions to OPA's plugin. Masks and drop rules are policies, and
// to evaluate them and to encode an event takes as long as a decision: so it is done
// behind a queue, and never by whoever waits for the answer. What does not fit into the
// queue is counted and forgotten.
type decisionLogs struct {
	host   *Host
	queue  chan event
	budget budget
	// metrics are those of OPA's plugin, and dropped is how many of its drops were counted.
	metrics metrics.Metrics
	dropped uint64
}

// event is one decision, as OPA tells of it.
type event struct {
	record engine.Record
	info   *server.Info
}

func newDecisionLogs(h *Host) *decisionLogs {
	return &decisionLogs{host: h, queue: make(chan event, maxQueued), metrics: metrics.New()}
}

// prepare has OPA's plugin count what it drops. Once it runs that cannot be done any
// more, so of one that discovery brings it is not known.
func (l *decisionLogs) prepare(manager *plugins.Manager) {
	if plugin := logs.Lookup(manager); plugin != nil {
		plugin.WithMetrics(l.metrics)
	}
}

// drops are OPA's counters of what its plugin could not keep or send. Of a buffer that is
// full of bytes whole parts are dropped, with hundreds of decisions, and each counts once;
// OPA counts it a second time under another name.
var drops = []string{
	"decision_logs_dropped_rate_limit_exceeded",
	"decision_logs_dropped_buffer_size_limit_exceeded",
	"decision_logs_encoding_failure",
}

// countDrops counts what the plugin has dropped since the last time.
func (l *decisionLogs) countDrops() {
	var all uint64
	for _, name := range drops {
		if n, ok := l.metrics.Counter(name).Value().(uint64); ok {
			all += n
		}
	}
	for ; l.dropped < all; l.dropped++ {
		l.host.config.Dropped()
	}
}

// decided takes in a decision of the engine.
func (l *decisionLogs) decided(r engine.Record) {
	if r.InForce == nil {
		return // there is no set that could mask it
	}
	info := &server.Info{
		Txn:        r.Transaction,
		Timestamp:  time.Now().UTC(),
		DecisionID: r.ID,
		Path:       r.Path,
		InputAST:   r.InputValue,
		Metrics:    r.Metrics,
		Bundles:    make(map[string]server.BundleInfo),
		Error:      r.Err,
	}
	for _, b := range r.InForce.Snapshot().Bundles() {
		info.Bundles[b.Name] = server.BundleInfo{Revision: b.Revision}
	}
	if r.Err == nil {
		info.Results = &r.Result
	}
	l.add(event{record: r, info: info})
}

// answered takes in a decision of OPA's server.
func (l *decisionLogs) answered(f *engine.InForce, info *server.Info) {
	l.add(event{info: info, record: engine.Record{
		ID: info.DecisionID, Path: info.Path, InForce: f, Transaction: info.Txn, InputValue: info.InputAST,
	}})
}

func (l *decisionLogs) add(e event) {
	select {
	case l.queue <- e:
	default:
		l.host.config.Dropped()
	}
}

// run logs decisions until nobody decides any more, and then those that are queued, as
// far as there is time.
func (l *decisionLogs) run(ctx context.Context, drained <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for {
		select {
		case e := <-l.queue:
			gather(drained)
			l.log(ctx, e)
			l.burst(ctx, drained)
			continue
		case <-drained:
		}
		time.AfterFunc(flushTimeout, cancel)
		for len(l.queue) > 0 {
			if e := <-l.queue; ctx.Err() == nil {
				l.log(ctx, e)
			} else {
				l.host.config.Dropped()
			}
		}
		return
	}
}

// burst logs what is queued by now, unless it is time to end.
func (l *decisionLogs) burst(ctx context.Context, drained <-chan struct{}) {
	for range len(l.queue) {
		select {
		case <-drained:
			return
		default:
			l.log(ctx, <-l.queue)
		}
	}
}

// gatherTime is how long decisions are gathered before they are logged: to begin at once
// would take processor time from the answer that is just being written.
const gatherTime = 20 * time.Millisecond

func gather(drained <-chan struct{}) {
	select {
	case <-time.After(gatherTime):
	case <-drained:
	}
}

// logTimeout bounds what is evaluated to log one decision: masks, drop rules, and who had
// a say. The API server waits for 10 s for a decision itself unless told otherwise, and
// while one is logged others wait.
const logTimeout = time.Second

func (l *decisionLogs) log(ctx context.Context, e event) {
	ctx, cancel := context.WithTimeout(ctx, logTimeout)
	defer cancel()
	manager := l.host.running()
	plugin := logs.Lookup(manager)
	if plugin == nil {
		return // discovery brought none, or has taken it away
	}
	if err := l.complete(ctx, e); err != nil {
		l.host.config.Log.Error("a decision cannot be logged", "decisionID", e.info.DecisionID, "error", err)
		return
	}
	if !manager.GetConfig().NDBuiltinCacheEnabled() {
		e.info.NDBuiltinCache = nil
	}
	// The masks are those of the set that decided.
	defer l.host.store.use(ctx, e.record.InForce, e.info.Txn)()
	if err := plugin.Log(ctx, e.info); err != nil {
		l.host.config.Log.Error("a decision cannot be logged", "decisionID", e.info.DecisionID, "error", err)
	}
	l.countDrops()
}

// complete adds to an event what takes time.
func (l *decisionLogs) complete(ctx context.Context, e event) error {
	if e.info.InputAST != nil {
		// A copy: masks take fields out of it, and the decision's own belongs to others.
		input, err := ast.JSON(e.info.InputAST)
		if err != nil {
			return err
		}
		e.info.Input = &input
	}
	if e.info.Results != nil && e.info.Path == "" {
		// That of a query has a type in which OPA's masks do not find their way.
		value, err := ast.InterfaceToValue(*e.info.Results)
		if err != nil {
			return err
		}
		result, err := ast.JSON(value)
		if err != nil {
			return err
		}
		e.info.Results = &result
	}
	if e.record.Builtins != nil {
		used, err := ast.JSON(e.record.Builtins.AsValue())
		if err != nil {
			return err
		}
		e.info.NDBuiltinCache = &used
	}
	e.info.Error = errorOf(e.info.Error)
	custom := map[string]any{"fingerprint": e.record.InForce.Snapshot().Fingerprint()}
	for key, value := range e.info.Custom {
		custom[key] = value
	}
	if modules := l.speakers(ctx, e); len(modules) > 0 {
		custom["modules"] = modules
	}
	e.info.Custom = custom
	return nil
}

// speakers are the modules that had a say, as long as there is time to find that out.
func (l *decisionLogs) speakers(ctx context.Context, e event) []string {
	path := e.record.Path
	if e.info.Error != nil || !e.repeatable() || policy.CheckPath(path) != nil || !e.record.InForce.Snapshot().Defines(path) || !l.budget.open(time.Now()) {
		return nil
	}
	start := time.Now()
	modules, err := e.record.Speakers(ctx)
	l.budget.spend(start, time.Since(start))
	if err != nil {
		return nil // the decision failed too
	}
	return modules
}

// repeatable reports whether a decision can be made again without asking the network
// again. OPA's server tells what built-ins gave in a form that they cannot be given.
func (e event) repeatable() bool {
	if e.record.Builtins != nil || e.info.NDBuiltinCache == nil {
		return true
	}
	used, ok := (*e.info.NDBuiltinCache).(map[string]any)
	return ok && len(used) == 0
}

// budget bounds what is spent on finding out which modules had a say: a tenth of one
// processor. Where there are more decisions than that is enough for, some events go
// without.
type budget struct{ next time.Time }

const budgetFactor = 9

func (b *budget) open(now time.Time) bool { return !now.Before(b.next) }

func (b *budget) spend(start time.Time, took time.Duration) {
	b.next = start.Add(took + budgetFactor*took)
}

// errorOf is an error as OPA's server logs it.
func errorOf(err error) error {
	var (
		known *topdown.Error
		other *types.ErrorV1
	)
	err = engine.WithoutValues(err)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.As(err, &other):
		return other
	case errors.Is(err, policy.ErrUndefined):
		return types.NewErrorV1(types.CodeUndefinedDocument, "%s", err)
	}
	return types.NewErrorV1(types.CodeInternal, "%s", err)
}
