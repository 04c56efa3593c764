package enforce

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/opa"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/server"
)

// Texts beside those of every world: who may use the API, and what needs the bundle.
var (
	authorizations = []string{
		"package system.authz\nallow := true",
		"package system.authz\nallow := false",
		"package system.authz\nallow := = false",
		"package system.authz\nallow := data.shared.f(1) > 1",
		"package system\nauthz.allow := data.nowhere.f(1)",
	}
	callers = []string{
		"package k\nz := data.shared.f(1)",
		"package system\nmain := {\"shared\": data.shared.f(2)}",
		"package shared\nx := 1",
	}
	// bundled are the modules that the bundle may have; the first is there at the start.
	bundled = []string{
		"package shared\nf(x) := x",
		"package shared\nf(x) := x + 1",
		"package shared\nf(x) := data.lib.f(x)",
		"package shared\ng(x) := x",
		"package shared\nf(x) :=",
	}
)

// TestAllWaysInAgree plays random sequences of edits, holds, bundles and restarts. After
// each the webhook, the REST API and /status must speak of one set, the API must refuse
// exactly if somebody wants it to, and a process that starts over the same objects, records
// and bundle must answer the same.
func TestAllWaysInAgree(t *testing.T) {
	met := &meetings{count: make(map[string]int)}
	t.Run("sequence", func(t *testing.T) {
		for _, seed := range seeds(t, 5200, 30) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				newHouse(t, seed, met).play()
			})
		}
	})
	t.Logf("met %v", met.count)
	for _, what := range []string{"refused", "answered", "bundle taken", "bundle refused", "restart"} {
		if met.count[what] == 0 {
			t.Errorf("the sequences never led to this: %s", what)
		}
	}
}

// meetings counts what sequences have led to.
type meetings struct {
	mu    sync.Mutex
	count map[string]int
}

func (m *meetings) meet(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count[what]++
}

// house is a world, a process over it, and the bundle that it has taken.
type house struct {
	*testing.T
	*world
	met    *meetings
	bundle string
	now    *process
}

func newHouse(t *testing.T, seed uint64, met *meetings) *house {
	h := &house{T: t, world: newWorld(seed), met: met, bundle: bundled[0]}
	for range 2 {
		h.texts = append(h.texts, pick(h.random, authorizations), pick(h.random, callers))
	}
	h.now = h.start()
	return h
}

func (h *house) play() {
	for range 8 {
		h.step()
		h.now.settle()
		h.record()
		h.now.settle()
		h.compare()
		if h.Failed() {
			h.Fatalf("the bundle is %q\n%s", h.bundle, strings.Join(h.story, "\n"))
		}
	}
}

func (h *house) step() {
	switch h.random.IntN(6) {
	case 0:
		next := pick(h.random, bundled)
		err := h.now.loop.propose(h.Context(), proposal{set: bundleOf(next), asked: time.Now()})
		h.tell("bundle %q: %v", next, err)
		if err != nil {
			h.met.meet("bundle refused")
			return
		}
		h.met.meet("bundle taken")
		h.bundle = next
		h.now.ask().check(h) // at once: what is held is tried again only with the next turn
	case 1:
		h.met.meet("restart")
		h.tell("restart")
		h.now.stop()
		h.now = h.start()
	default:
		for range 1 + h.random.IntN(3) {
			h.edit()
		}
	}
}

// record writes revisions of all that is in force.
func (h *house) record() {
	history, err := h.History()
	if err != nil {
		h.Fatal(err)
	}
	configMaps, _ := h.ConfigMaps()
	r := recorder{configMaps: configMaps, inForce: h.now.loop.losses.keep(h.now.loop.inForce().Modules(), history, modulesOf(configMaps)), history: history}
	for _, name := range r.names() {
		if err := r.record(h.world, name); err != nil {
			h.Fatal(err)
		}
	}
}

// compare asks by all ways in, and a process that has just started.
func (h *house) compare() {
	now := h.now.ask()
	h.tell("answers: %+v", now)
	now.check(h)
	started := h.start()
	defer started.stop()
	if fresh := started.ask(); fmt.Sprint(fresh) != fmt.Sprint(now) {
		h.Errorf("a process that has just started answers\n%+v\nthe running one\n%+v", fresh, now)
	}
}

// process is a loop and all that answers for it.
type process struct {
	loop                     *Loop
	t                        *testing.T
	stop                     func() // ends OPA's plugins
	webhook, api, diagnostic http.Handler
}

// state is what /status shows.
type state struct{ *Loop }

func (state) Replicas() []server.Replica   { return nil }
func (state) Resources() []policy.Resource { return nil }
func (state) Bundles() []server.Bundle     { return nil }
func (state) Plugins() []server.Plugin     { return nil }

// start is a new process over the same objects, records and bundle.
func (h *house) start() *process {
	loop := newTestLoop(h.T, h.world)
	p := &process{loop: loop, t: h.T}
	configuration, err := opa.ReadConfiguration("")
	if err != nil {
		h.Fatal(err)
	}
	if configuration, err = configuration.WithDefaultDecision("/system/main"); err != nil {
		h.Fatal(err)
	}
	log, metrics := slog.New(slog.DiscardHandler), server.NewMetrics()
	host := opa.New(opa.Config{
		Configuration: configuration, RegoVersion: policy.RegoAuto, Engine: loop.config.Engine, Gate: loop.config.Inbox, Look: func() {},
		Registry: prometheus.NewRegistry(), API: opa.APIConfig{Ready: loop.Ready}, Log: log,
	})
	p.run(host)
	reviewer := admission.NewReviewer(loop.config.Engine, admission.Config{Entrypoint: "system/main", OnUndefined: admission.Fail, OnError: admission.Fail})
	p.webhook = server.NewWebhook(server.WebhookConfig{
		Reviewer: reviewer, Validator: reviewer, Entrypoint: "system/main", Data: host.Decisions(), Decides: loop.config.Engine.Decides,
		Ready: loop.Ready, Metrics: metrics, Log: log,
	})
	p.api, p.diagnostic = host.API(), server.NewDiagnostic(state{loop}, metrics, nil)

	loop.config.Bundles = complete(false)
	p.settle()
	if err := loop.propose(h.Context(), proposal{set: bundleOf(h.bundle), asked: time.Now()}); err != nil {
		h.Fatalf("at the start the bundle is refused that others have in force: %v\n%s", err, strings.Join(h.story, "\n"))
	}
	loop.config.Bundles = complete(true)
	p.settle()
	return p
}

// run runs OPA's plugins until the test ends.
func (p *process) run(host *opa.Host) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	drained, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- host.Run(ctx, drained) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		close(drained)
		if err := <-ended; err != nil {
			p.t.Error(err)
		}
	})
	p.t.Cleanup(p.stop)
	for deadline := time.Now().Add(time.Minute); !host.Complete(); {
		if time.Now().After(deadline) {
			p.t.Fatal("OPA's plugins do not run")
		}
		time.Sleep(time.Millisecond) // between two looks
	}
}

func (p *process) settle() { settleDown(p.t, p.loop) }

func bundleOf(source string) compile.BundleSet {
	return compile.BundleSet{
		Bundles: []compile.Bundle{{Name: "shared", Revision: source, Roots: [][]string{{"shared"}}}},
		Modules: []compile.BundleModule{{Name: "shared/shared.rego", Version: policy.RegoV1, Source: source}},
	}
}

// answers are what a process says by each way in.
type answers struct {
	Webhook     string   // of a review: the verdict, or the status of the error
	Decision    string   // the same decision, asked for by its path
	Fingerprint string   // in the audit annotations; empty with an error
	API         string   // the same decision of the REST API
	Refused     bool     // whether it refuses
	Policies    []string // that it lists
	Status      string   // the fingerprint of /status
	Modules     map[string]string
}

const input = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","x":2,"request":{"uid":"u","operation":"CREATE","object":{}}}`

func (p *process) ask() answers {
	var a answers
	var review struct {
		Response struct {
			Allowed          bool
			AuditAnnotations map[string]string
		}
	}
	code := p.do(p.webhook, http.MethodPost, "/", input, &review)
	a.Webhook, a.Fingerprint = fmt.Sprint(code, " ", review.Response.Allowed), review.Response.AuditAnnotations["fingerprint"]
	var result any
	code = p.do(p.webhook, http.MethodPost, "/v0/data/system/main", input, &result)
	a.Decision = fmt.Sprint(code)
	if code == http.StatusOK {
		a.Decision = text(result)
	}
	var decision struct {
		Result  any
		Message string
	}
	code = p.do(p.api, http.MethodPost, "/v1/data/system/main", `{"input":`+input+`}`, &decision)
	a.API = fmt.Sprint(code, decision.Message)
	if code == http.StatusOK && decision.Result != nil {
		a.API = text(decision.Result)
	}
	var policies struct{ Result []struct{ ID string } }
	a.Refused = p.do(p.api, http.MethodGet, "/v1/policies", "", &policies) != http.StatusOK
	for _, listed := range policies.Result {
		a.Policies = append(a.Policies, listed.ID)
	}
	slices.Sort(a.Policies)
	var page struct {
		Fingerprint string
		Modules     []struct{ Module, InForce string }
	}
	p.do(p.diagnostic, http.MethodGet, "/status", "", &page)
	a.Status, a.Modules = page.Fingerprint, make(map[string]string)
	for _, m := range page.Modules {
		a.Modules[m.Module] = m.InForce
	}
	return a
}

// inForce returns the modules that /status reports in force, in any version.
func (a answers) inForce() []string {
	var ids []string
	for id, state := range a.Modules {
		if state != string(policy.None) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func text(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func (p *process) do(handler http.Handler, method, path, body string, into any) int {
	recorded := httptest.NewRecorder()
	handler.ServeHTTP(recorded, httptest.NewRequestWithContext(p.t.Context(), method, path, strings.NewReader(body)))
	_ = json.Unmarshal(recorded.Body.Bytes(), into) // an error has another form, and its code says so
	return recorded.Code
}

// check holds the ways in against each other, and against who wants the API closed.
func (a answers) check(h *house) {
	if a.Fingerprint != "" && a.Fingerprint != a.Status {
		h.Errorf("the review was decided with %s, and /status says %s", a.Fingerprint, a.Status)
	}
	if open := h.isOpen(); open == a.Refused {
		h.Errorf("the API refuses: %t; it is to be open: %t", a.Refused, open)
	}
	if a.Refused {
		h.met.meet("refused")
		return
	}
	h.met.meet("answered")
	var rego, all []string
	for id, m := range h.now.loop.inForce().Modules() {
		all = append(all, id.String())
		if m.Kind == policy.Rego {
			rego = append(rego, id.String())
		}
	}
	rego = append(rego, "bundle:shared/shared.rego")
	slices.Sort(rego)
	slices.Sort(all)
	if !slices.Equal(a.Policies, rego) || !slices.Equal(a.inForce(), all) {
		h.Errorf("the API lists %v and /status %v; in force is %v", a.Policies, a.inForce(), all)
	}
	if strings.HasPrefix(a.Decision, "{") && a.API != a.Decision {
		h.Errorf("the API decides %s, the webhook's port %s", a.API, a.Decision)
	}
}

// isOpen reports whether the policies let everybody use the API: a rule in force says so, or
// nobody wants to say anything. Somebody does whose policy is held and not in force at all.
func (h *house) isOpen() bool {
	loop := h.now.loop
	isAuthorization := func(m policy.Module) bool {
		return m.ID.Namespace == trustedNamespace && slices.Contains(authorizations, m.Source)
	}
	inForce := loop.inForce().Modules()
	for _, m := range inForce {
		if m.Kind == policy.Rego && isAuthorization(m) {
			decision, err := loop.config.Engine.Decide(h.Context(), "system/authz/allow", nil)
			return err == nil && decision.Result == true
		}
	}
	configMaps, err := h.ConfigMaps()
	if err != nil {
		h.Fatal(err)
	}
	for id, m := range modulesOf(configMaps) {
		if _, ok := inForce[id]; !ok && isAuthorization(m) {
			return false
		}
	}
	return true
}
