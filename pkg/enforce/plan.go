package enforce

import (
	"maps"

	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// view is all that a plan depends on.
type view struct {
	inputs
	inForce  *compile.Snapshot // nil: nothing yet
	report   policy.Report     // of what is in force
	identity string            // ours
	leader   string            // the writer's identity; empty where nobody writes
	replicas []policy.Replica
	attempts attempts
}

func (l *Loop) view(now inputs) view {
	v := view{inputs: now, inForce: l.inForce(), report: l.Report(), identity: l.config.Identity, attempts: l.attempts}
	if l.config.Replicas != nil && l.config.Publisher != nil {
		v.leader, v.replicas = l.config.Publisher.Leader(), l.config.Replicas.List()
	}
	return v
}

// attempts are what was tried last: what did not help is not tried twice.
type attempts struct {
	// compiled is what was compiled last; nil: whatever is wanted is to be compiled.
	compiled *key
	// adopted and overlaid are the sets of the last attempts to take over what another
	// replica has in force.
	adopted, overlaid string
	// rescued are the fingerprints of what this replica has recorded itself.
	rescued map[string]bool
}

func (a *attempts) noteCompiled(in inputs) { a.compiled = in.key() }

// compileAgain has the next turn compile whatever is wanted.
func (a *attempts) compileAgain() { a.compiled = nil }

func (a *attempts) noteAdopted(in inputs) { a.adopted = in.history.Fingerprint() + in.fingerprint }

func (a *attempts) noteOverlaid(set policy.Set) { a.overlaid = set.Fingerprint() }

func (a *attempts) noteRescued(r rescue) {
	if a.rescued == nil {
		a.rescued = make(map[string]bool)
	}
	a.rescued[r.modules.Fingerprint()] = true
}

// plan is what a turn does: on which base it compiles the wanted set, and whether it has
// to if the base is what is in force already.
type plan struct {
	base    baseKind
	compile bool
	// why it compiles, or writes revisions; empty if it does neither.
	why string
	// overlay is the set of the base onOverlay.
	overlay policy.Set
	// rescues are revisions to write first.
	rescues []rescue
}

// baseKind says what the next set is made on.
type baseKind int

const (
	// onInForce: what is in force here.
	onInForce baseKind = iota
	// onRestored: what was recorded. The process has just started.
	onRestored
	// onAdopted: the writer's set. This replica came to another set of the same
	// ConfigMaps: which of two changes that contradict each other goes into force may
	// depend on which was seen first.
	onAdopted
	// onOverlay: what is in force, with later versions of held modules that were
	// recorded. This replica has not seen these versions.
	onOverlay
)

// String names the base as the log does.
func (b baseKind) String() string {
	return [...]string{"in force", "restored", "adopted", "overlay"}[b]
}

// rescue is a revision of a ConfigMap that the writer has not seen.
type rescue struct {
	name    types.NamespacedName
	number  int64
	modules policy.Set
}

// plan decides what a turn does. The history knows better than what is in force in three
// cases, one for each base but onInForce.
func (v view) plan() plan {
	if v.inForce == nil {
		return plan{base: onRestored, compile: true, why: "the process has just started"}
	}
	p := plan{compile: !v.key().equal(v.attempts.compiled)}
	if p.compile {
		p.why = "another set is wanted, or more is known of what it reads"
	}
	switch {
	case v.lacksObjects():
		return p // what another replica has may not be held for what it reads
	case v.disagrees():
		p.why = "the writer has not seen a version that is in force here"
		if p.rescues = v.rescues(); len(p.rescues) == 0 {
			p.base, p.why = onAdopted, "the writer came to another set of the same ConfigMaps"
		}
		return p // the writer takes over what is rescued, and then there is no disagreement
	}
	if overlay := v.overlay(); overlay != nil && overlay.Fingerprint() != v.attempts.overlaid {
		p.base, p.overlay, p.why = onOverlay, overlay, "later versions of held modules were recorded"
	}
	return p
}

// lacksObjects reports whether policies read a resource whose objects are not known.
func (v view) lacksObjects() bool {
	for _, r := range v.resources {
		if !r.Known() {
			return true
		}
	}
	return false
}

// disagrees reports whether the writer has come to another set than this replica, of the
// same ConfigMaps, and has recorded all of it.
func (v view) disagrees() bool {
	if v.attempts.compiled == nil || v.fingerprint != v.attempts.compiled.wanted {
		return false
	}
	for _, r := range v.replicas {
		if r.Identity == v.leader && r.Identity != v.identity && !r.Gone {
			return r.Wanted == v.fingerprint && r.InForce == v.history.Fingerprint() && r.InForce != v.inForce.Fingerprint() &&
				r.InForce+r.Wanted != v.attempts.adopted
		}
	}
	return false
}

// rescues returns what is in force here of held modules in a later version than the
// writer knows. It died with the last writer, before it was recorded. Each is recorded
// once: if the writer cannot use it, its set is adopted after all.
func (v view) rescues() []rescue {
	later := make(map[types.NamespacedName]bool)
	for _, s := range v.report.Held() {
		inForce, isInForce := v.inForce.Module(s.ID)
		wanted, isWanted := v.wanted[s.ID]
		if isInForce && isWanted && inForce.Created.Equal(wanted.Created) && isLater(inForce, v.history) {
			later[configmap.NameOf(s.ID)] = true
		}
	}
	var rescues []rescue
	for name := range later {
		modules := v.inForce.Modules()
		maps.DeleteFunc(modules, func(id policy.ID, _ policy.Module) bool {
			return id.Namespace != name.Namespace || id.Name != name.Name
		})
		if v.attempts.rescued[modules.Fingerprint()] {
			continue
		}
		number := int64(1)
		if recorded := v.history.Of(name); len(recorded) > 0 {
			number = recorded[0].Number + 1
		}
		rescues = append(rescues, rescue{name: name, number: number, modules: modules})
	}
	return rescues
}

// isLater reports whether a module in force is a later version than the recorded one.
func isLater(inForce policy.Module, history *configmap.History) bool {
	recorded, ok := history.InForce()[inForce.ID]
	return !ok || inForce.ObjectVersion > recorded.ObjectVersion && inForce.Digest() != recorded.Digest()
}

// overlay returns what is in force with the newer versions that were recorded of modules
// that are held; nil if there are none. A replica that saw two edits as one has missed
// the good one, if the other is broken.
func (v view) overlay() policy.Set {
	var overlay policy.Set
	for _, s := range v.report.Held() {
		recorded, ok := v.history.InForce()[s.ID]
		if !ok || !v.missed(recorded) {
			continue
		}
		if overlay == nil {
			overlay = v.inForce.Modules()
		}
		overlay[s.ID] = recorded
	}
	return overlay
}

// missed reports whether a recorded module is a later version than the one in force, of
// the same object.
func (v view) missed(recorded policy.Module) bool {
	inForce, isInForce := v.inForce.Module(recorded.ID)
	if isInForce && inForce.ObjectVersion >= recorded.ObjectVersion {
		return false
	}
	wanted, isWanted := v.wanted[recorded.ID]
	if !isWanted {
		wanted = inForce // its deletion is held
	}
	return wanted.Created.Equal(recorded.Created) && inForce.Digest() != recorded.Digest()
}
