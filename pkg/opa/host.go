// Package opa runs what OPA has beside its policy engine: the manager of its plugins,
// which fetch bundles and configuration and send decision logs and statuses, and its
// REST API. All of it is OPA's own code, over the policies and data that the engine has
// in force.
//
// It touches the network as far as OPA's configuration names services. It changes
// nothing that is in force: bundles go through a [Gate], and the API only reads.
package opa

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/plugins"
	bundleplugin "github.com/open-policy-agent/opa/v1/plugins/bundle"
	"github.com/open-policy-agent/opa/v1/plugins/discovery"
	"github.com/open-policy-agent/opa/v1/sdk"
	"github.com/open-policy-agent/opa/v1/topdown/cache"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/engine"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Config is what a Host needs.
type Config struct {
	// Configuration is OPA's.
	Configuration Configuration
	// RegoVersion of modules of bundles that do not say it: auto is v1, as in OPA.
	RegoVersion policy.RegoVersion
	// Engine has what is in force.
	Engine *engine.Engine
	// Gate decides about bundles.
	Gate Gate
	// Look is called when a bundle or a plugin is in another state.
	Look func()
	// Registry takes the metrics of OPA's status plugin.
	Registry prometheus.Registerer
	// Dropped counts decisions that could not be logged.
	Dropped func()
	// API says how the REST API is served.
	API APIConfig
	Log *slog.Logger
}

// Host runs OPA's manager and its plugins.
type Host struct {
	config  Config
	store   *store
	logs    *decisionLogs
	api     *api
	started chan struct{} // closed once the manager is there and its plugins run

	mu      sync.Mutex
	manager *plugins.Manager
	bundles map[string]*bundleplugin.Status // by name, of those that were tried
	watched *bundleplugin.Plugin            // that tells of them
	ready   bool                            // all plugins were ready once
}

// New makes a host. Run runs it.
func New(config Config) *Host {
	version := config.RegoVersion
	if version == policy.RegoAuto {
		version = policy.RegoV1
	}
	h := &Host{
		config:  config,
		store:   newStore(config.Engine, config.Gate, version),
		started: make(chan struct{}),
		bundles: make(map[string]*bundleplugin.Status),
	}
	h.logs = newDecisionLogs(h)
	h.api = newAPI(h)
	return h
}

// Run runs OPA's plugins until ctx ends and nobody decides any more, and sends then what
// is left to send. The error is one of the configuration.
func (h *Host) Run(ctx context.Context, drained <-chan struct{}) error {
	h.store.alive, h.store.initialized = ctx, func() {
		h.follow()
		h.followDiscovery()
		h.logs.prepare(h.current())
	}
	// Plugins outlive ctx: the last decisions are logged when the listeners are drained.
	opa, err := sdk.New(context.WithoutCancel(ctx), h.options())
	if err != nil {
		return fmt.Errorf("OPA's configuration: %w", err)
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			opa.Stop(stop)
		}()
		select {
		case <-stopped:
		case <-stop.Done(): // the plugin for decision logs waits for an upload under way, whatever the context says
		}
	}()
	h.manager.RegisterPluginStatusListener("kube-rego", func(map[string]*plugins.Status) { h.config.Look() })
	if err := h.api.prepare(ctx, h.manager); err != nil {
		return fmt.Errorf("OPA's configuration: %w", err)
	}
	h.prepareCaches(ctx)
	close(h.started)
	h.config.Look()
	h.logs.run(ctx, drained)
	return nil
}

// flushTimeout is how long the decisions that are queued may take to be logged, and then
// logs and statuses to be sent: both fit into the rest of a pod's grace period of 30 s, of
// which requests in flight take up to 20.
const flushTimeout = 4 * time.Second

func (h *Host) options() sdk.Options {
	version := ast.RegoV1
	if h.config.RegoVersion == policy.RegoV0 {
		version = ast.RegoV0
	}
	return sdk.Options{
		Config:        bytes.NewReader(h.config.Configuration.text),
		Logger:        newLogger(h.config.Log),
		ConsoleLogger: newConsole(os.Stderr),
		Ready:         make(chan struct{}), // what is not ready says Ready
		RegoVersion:   version,
		Store:         h.store,
		ManagerOpts: []func(*plugins.Manager){
			func(m *plugins.Manager) {
				h.mu.Lock()
				defer h.mu.Unlock()
				h.manager = m
			},
			plugins.Info(engine.Runtime()),
			plugins.WithPrometheusRegister(h.config.Registry),
			plugins.WithEnableVersionCheck(false),
		},
	}
}

// follow hears from then on what becomes of bundles. It registers without our lock: the
// plugins call back with theirs held.
func (h *Host) follow() {
	h.mu.Lock()
	m, watched := h.manager, h.watched
	h.mu.Unlock()
	if p := bundleplugin.Lookup(m); p != nil && p != watched {
		h.mu.Lock()
		h.watched = p
		h.mu.Unlock()
		p.RegisterBulkListener(h, h.noteStatuses)
	}
}

// followDiscovery hears what becomes of the configuration that is discovered.
func (h *Host) followDiscovery() {
	if d := discovery.Lookup(h.current()); d != nil {
		d.RegisterListener(h, func(status bundleplugin.Status) {
			h.noteStatuses(map[string]*bundleplugin.Status{discovery.Name: &status})
		})
	}
}

// noteStatuses takes in what became of bundles.
func (h *Host) noteStatuses(statuses map[string]*bundleplugin.Status) {
	h.mu.Lock()
	for name, status := range statuses {
		copied := *status
		h.bundles[name] = &copied
	}
	h.mu.Unlock()
	h.follow() // discovery may have made the plugin for bundles
	if statuses[discovery.Name] != nil {
		h.api.reconfigured.Store(true)
	}
	h.config.Look()
}

func (h *Host) prepareCaches(ctx context.Context) {
	config := h.manager.InterQueryBuiltinCacheConfig()
	environment := engine.Environment{
		Cache:      cache.NewInterQueryCacheWithContext(ctx, config),
		ValueCache: cache.NewInterQueryValueCache(ctx, config),
	}
	if h.config.Configuration.LogsDecisions() {
		environment.Observe = h.logs.decided
	}
	environment.Offline, environment.Silent = offline, silent
	h.config.Engine.SetEnvironment(environment)
}

// running is the manager with its plugins; nil before they run.
func (h *Host) running() *plugins.Manager {
	select {
	case <-h.started:
		return h.manager
	default:
		return nil
	}
}

// Bundle is what is known of one bundle.
type Bundle struct {
	compile.Bundle
	// Activated is when it last went into force; zero if it never did.
	Activated time.Time
	// Error is why the last attempt failed; empty if it did not.
	Error string
	// Kept is true for one that is configured no more, and stays in force as long as
	// what is in force needs it.
	Kept bool
}

// Bundles are those that the configuration has, and the one that it comes from if it is
// discovered, sorted by name.
func (h *Host) Bundles() []Bundle {
	m := h.current()
	if m == nil {
		return nil
	}
	names := make(map[string]bool)
	if p := bundleplugin.Lookup(m); p != nil {
		for name := range p.Config().Bundles {
			names[name] = true
		}
	}
	if h.config.Configuration.entries[discovery.Name] != nil {
		names[discovery.Name] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var bundles []Bundle
	for _, name := range slices.Sorted(maps.Keys(names)) {
		bundles = append(bundles, h.bundle(name))
	}
	for _, b := range h.inForce() {
		if _, seen := h.bundles[b.Name]; !names[b.Name] && (seen || b.Name != legacyBundle) {
			bundles = append(bundles, Bundle{Bundle: b, Kept: true})
		}
	}
	slices.SortFunc(bundles, func(a, b Bundle) int { return strings.Compare(a.Name, b.Name) })
	return bundles
}

func (h *Host) inForce() []compile.Bundle {
	now := h.config.Engine.InForce()
	if now == nil {
		return nil
	}
	return now.Snapshot().Bundles()
}

// current is the manager, also before its plugins run.
func (h *Host) current() *plugins.Manager {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.manager
}

func (h *Host) bundle(name string) Bundle {
	b := Bundle{Bundle: compile.Bundle{Name: name}}
	for _, inForce := range h.inForce() {
		if inForce.Name == name {
			b.Bundle = inForce
		}
	}
	if status, ok := h.bundles[name]; ok {
		b.Activated = status.LastSuccessfulActivation
		b.Error = describe(status)
	}
	return b
}

// describe is why the last attempt at a bundle failed; empty if it did not.
func describe(status *bundleplugin.Status) string {
	var texts []string
	if status.Message != "" {
		texts = append(texts, status.Message)
	}
	for _, err := range status.Errors {
		if !slices.Contains(texts, err.Error()) {
			texts = append(texts, err.Error())
		}
	}
	return strings.Join(texts, "; ")
}

// Complete reports whether OPA runs and each bundle is in force.
func (h *Host) Complete() bool {
	bundles := h.Bundles()
	return h.current() != nil && (len(bundles) > 0 || h.running() != nil) &&
		!slices.ContainsFunc(bundles, func(b Bundle) bool { return b.Activated.IsZero() && !b.Kept })
}

// Ready is nil once all bundles have been in force, and the configuration was
// discovered if it is to be; then it stays so.
func (h *Host) Ready() error {
	m := h.running()
	if m == nil {
		return fmt.Errorf("OPA's plugins do not run yet%s", h.failures())
	}
	h.mu.Lock()
	ready := h.ready
	h.mu.Unlock()
	if ready {
		return nil
	}
	statuses := m.PluginStatus()
	for _, name := range []string{discovery.Name, bundleplugin.Name} {
		if s := statuses[name]; s != nil && s.State == plugins.StateNotReady {
			return fmt.Errorf("waiting for OPA's %s%s", name, h.failures())
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = true
	return nil
}

// failures are the bundles that are not in force, and why.
func (h *Host) failures() string {
	var texts []string
	for _, b := range h.Bundles() {
		switch {
		case b.Error != "":
			texts = append(texts, b.Name+": "+b.Error)
		case b.Activated.IsZero() && !b.Kept:
			texts = append(texts, b.Name+" is not loaded yet")
		}
	}
	if len(texts) == 0 {
		return ""
	}
	return ": " + strings.Join(texts, "; ")
}

// Plugin is the state of one of OPA's plugins.
type Plugin struct{ Name, State, Message string }

// Plugins are those that the configuration has, sorted by name.
func (h *Host) Plugins() []Plugin {
	m := h.running()
	if m == nil {
		return nil
	}
	statuses := m.PluginStatus()
	var all []Plugin
	for _, name := range slices.Sorted(maps.Keys(statuses)) {
		if s := statuses[name]; s != nil && (name != discovery.Name || h.config.Configuration.entries[discovery.Name] != nil) {
			all = append(all, Plugin{Name: name, State: string(s.State), Message: s.Message})
		}
	}
	return all
}
