package enforce

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// model says slowly and plainly what docs/ARCHITECTURE.md, "How a change goes
// into force", says in words. It shares no code with the engine: modules are
// compiled anew each time, one by one, and culprits are looked for one by one.
type model struct {
	inForce  policy.Set                          // S
	held     policy.Set                          // what is wanted and was held; without text if it is a deletion
	recorded map[types.NamespacedName]policy.Set // of each ConfigMap, what was in force last
	writes   []write                             // all that was recorded, the oldest first
	met      map[string]int                      // how often it came to what
}

// write is that what was in force of a ConfigMap was recorded.
type write struct {
	name    types.NamespacedName
	inForce policy.Set
}

func newModel() *model {
	return &model{
		inForce:  policy.Set{},
		held:     policy.Set{},
		recorded: make(map[types.NamespacedName]policy.Set),
		met:      make(map[string]int),
	}
}

// situations is how many there are to meet: the statuses that a module can have,
// and those that the model counts by itself.
const situations = 7

func (m *model) meet(situation string) { m.met[situation]++ }

// modulesOf are the modules of labelled ConfigMaps, each key one.
func modulesOf(configMaps []*corev1.ConfigMap) policy.Set {
	set := policy.Set{}
	for _, cm := range configMaps {
		var version uint64
		_, _ = fmt.Sscan(cm.ResourceVersion, &version)
		m := policy.Module{Created: cm.CreationTimestamp.Time, ObjectVersion: version}
		asked, ok := cm.Annotations[configmap.RegoVersionAnnotation]
		if m.Version = policy.RegoVersion(asked); isData(cm) {
			m.Version, m.Kind = "", policy.Data
		} else if ok && !slices.Contains([]string{"auto", "v0", "v1"}, asked) {
			m.Version, m.Defect = "", "unknown version"
		}
		for key, text := range cm.Data {
			m.ID, m.Source = policy.ID{Namespace: cm.Namespace, Name: cm.Name, Key: key}, text
			set[m.ID] = m
		}
		for key := range cm.BinaryData {
			id := policy.ID{Namespace: cm.Namespace, Name: cm.Name, Key: key}
			set[id] = policy.Module{ID: id, Kind: m.Kind, Created: m.Created, ObjectVersion: version, Defect: "binary"}
		}
	}
	return set
}

// same reports whether two modules of one name mean the same.
func same(a, b policy.Module) bool {
	return a.Kind == b.Kind && a.Source == b.Source && a.Version == b.Version && a.Defect == b.Defect
}

// has reports whether the module is in the set in the same text.
func has(set policy.Set, m policy.Module) bool {
	other, ok := set[m.ID]
	return ok && same(other, m)
}

// plainCapabilities are OPA's own less what is off by default, and less what no
// text here calls: OPA takes most of its time for the list.
var plainCapabilities = sync.OnceValue(func() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return !slices.Contains([]string{"any", "assign", "eq", "equal", "gt", "plus"}, b.Name)
	})
	return c
})

// trees are modules that were read. Parsing takes as long as all the rest here,
// and what comes of a module depends on nothing but the module.
var trees sync.Map

// treeOf is the syntax tree of a module, or nil if it is good for nothing.
func treeOf(m policy.Module) *ast.Module {
	m.Created, m.ObjectVersion = time.Time{}, 0
	tree, ok := trees.Load(m)
	if !ok {
		tree, _ = trees.LoadOrStore(m, parsePlainly(m))
	}
	return tree.(*ast.Module)
}

// parsePlainly parses a module in the version that its author asked for, or in v1 and if
// that fails in v0.
func parsePlainly(m policy.Module) *ast.Module {
	if m.Defect != "" || m.Kind == policy.Data {
		return nil
	}
	versions := map[policy.RegoVersion][]ast.RegoVersion{policy.RegoV0: {ast.RegoV0}, policy.RegoV1: {ast.RegoV1}}[m.Version]
	if versions == nil {
		versions = []ast.RegoVersion{ast.RegoV1, ast.RegoV0}
	}
	for _, version := range versions {
		tree, err := ast.ParseModuleWithOpts(m.ID.String(), m.Source, ast.ParserOptions{
			Capabilities: plainCapabilities(), ProcessAnnotation: true, RegoVersion: version,
		})
		switch {
		case err != nil || version == ast.RegoV1 && len(ast.CheckRegoV1(tree)) > 0:
			continue
		case strings.HasPrefix(tree.Package.String()+".", "package system.") && m.ID.Namespace != trustedNamespace:
			return nil
		}
		return tree
	}
	return nil
}

// valueOf is what data says, and false if that is nothing. OPA's own reader takes
// objects with a key twice, any text for a text, and no text for null.
func valueOf(m policy.Module) (value any, ok bool) {
	err := util.Unmarshal([]byte(m.Source), &value)
	_, isText := value.(string)
	return value, err == nil && m.Kind == policy.Data && m.Defect == "" && m.Source != "" && strings.Count(m.Source, "limit") < 2 &&
		(!isText || strings.HasPrefix(m.Source, "'"))
}

// isReadable reports whether a module is good for anything.
func isReadable(m policy.Module) bool {
	_, ok := valueOf(m)
	return ok || treeOf(m) != nil
}

// dataOf is all data of modules.
func dataOf(modules policy.Set) map[string]any {
	root := make(map[string]any)
	for id, m := range modules {
		value, ok := valueOf(m)
		if !ok {
			continue
		}
		at := root
		for _, key := range []string{id.Namespace, id.Name} {
			if at[key] == nil {
				at[key] = make(map[string]any)
			}
			at = at[key].(map[string]any)
		}
		at[id.Key] = value
	}
	return root
}

// inTheWay reports whether there is data where a rule would be, or something that has
// no fields on the way there.
func inTheWay(at any, path []string) bool {
	for _, key := range path {
		object, ok := at.(map[string]any)
		if !ok {
			return true
		}
		if at, ok = object[key]; !ok {
			return false
		}
	}
	return true
}

// compilePlainly compiles modules as OPA does on its own.
func compilePlainly(modules policy.Set) *ast.Compiler {
	all := make(map[string]*ast.Module)
	for id, m := range modules {
		if m.Kind != policy.Data {
			all[id.String()] = treeOf(m)
		}
	}
	data := dataOf(modules)
	compiler := ast.NewCompiler().WithCapabilities(plainCapabilities()).SetErrorLimit(0).
		WithPathConflictsCheck(func(path []string) (bool, error) { return inTheWay(data, path), nil })
	compiler.Compile(all)
	return compiler
}

// wish is what is wanted of a module that is not in force so.
type wish struct {
	policy.Module
	deletes bool
}

// wishes are the changes from what is in force to what is wanted, the oldest
// first. A module that cannot be read is none: it is held whatever happens.
func wishes(inForce, wanted policy.Set) []wish {
	var all []wish
	for id, m := range wanted {
		if !has(inForce, m) && isReadable(m) {
			all = append(all, wish{Module: wanted[id]})
		}
	}
	for id := range inForce {
		if _, ok := wanted[id]; !ok {
			all = append(all, wish{Module: policy.Module{ID: id}, deletes: true})
		}
	}
	slices.SortFunc(all, func(a, b wish) int {
		switch {
		case a.deletes != b.deletes && a.deletes:
			return 1
		case a.deletes != b.deletes:
			return -1
		}
		return cmp.Or(a.Created.Compare(b.Created), a.ID.Compare(b.ID))
	})
	return all
}

// after is the set after the changes.
func after(set policy.Set, wishes []wish) policy.Set {
	set = maps.Clone(set)
	for _, w := range wishes {
		if set[w.ID] = w.Module; w.deletes {
			delete(set, w.ID)
		}
	}
	return set
}

// breaks reports whether errors are of rules that contradict each other, or lie
// in a module that no change writes.
func breaks(compiler *ast.Compiler, all []wish) bool {
	return slices.ContainsFunc(compiler.Errors, func(e *ast.Error) bool {
		for _, clash := range []string{"conflict", "multiple default rules", "redeclared"} {
			if strings.Contains(e.Message, clash) {
				return true
			}
		}
		return !slices.ContainsFunc(all, func(w wish) bool { return isNamed(e, w) })
	})
}

// isNamed reports whether an error lies in what the change writes.
func isNamed(e *ast.Error, w wish) bool { return !w.deletes && e.Location.File == w.ID.String() }

// bring is what is in force after the changes: rules 1, 2 and 3.
func bring(inForce policy.Set, all []wish) policy.Set {
	for {
		compiler := compilePlainly(after(inForce, all))
		switch {
		case !compiler.Failed():
			return after(inForce, all)
		case breaks(compiler, all):
			n := 1
			for !breaks(compilePlainly(after(inForce, all[:n])), all) {
				n++
			}
			all = slices.Delete(slices.Clone(all), n-1, n)
		default:
			all = slices.DeleteFunc(slices.Clone(all), func(w wish) bool {
				return slices.ContainsFunc(compiler.Errors, func(e *ast.Error) bool { return isNamed(e, w) })
			})
		}
	}
}

// retry brings in what is held: together, and if that releases none one by one,
// until nothing more is released.
func retry(inForce, wanted policy.Set) policy.Set {
	for {
		held := wishes(inForce, wanted)
		if len(held) == 0 {
			return inForce
		}
		inForce = bring(inForce, held)
		if len(wishes(inForce, wanted)) < len(held) {
			continue
		}
		for _, w := range held {
			inForce = bring(inForce, []wish{w})
		}
		if len(wishes(inForce, wanted)) == len(held) {
			return inForce
		}
	}
}

// want brings into force what is wanted: what is fresh, then all that is held.
func (m *model) want(wanted policy.Set) {
	if len(m.held) > 0 {
		m.meet("something held before")
	}
	fresh := slices.DeleteFunc(wishes(m.inForce, wanted), func(w wish) bool { return has(m.held, w.Module) })
	m.inForce = retry(bring(m.inForce, fresh), wanted)
	for id, w := range wanted {
		if has(m.inForce, w) {
			m.inForce[id] = w // it may be another object by now
		}
	}
	m.held = policy.Set{}
	for _, w := range wishes(m.inForce, wanted) {
		m.held[w.ID] = w.Module
	}
}

// turn brings into force what is wanted, and what was recorded of modules that
// are held and are not in force as they were last.
func (m *model) turn(wanted policy.Set) {
	m.want(wanted)
	for {
		before, late := m.inForce, m.late(wanted)
		if len(late) == 0 {
			return
		}
		m.want(after(m.inForce, late))
		m.want(wanted)
		if before.Fingerprint() == m.inForce.Fingerprint() {
			return
		}
	}
}

// late are recorded versions of held modules that are later than those in force,
// and of the same object.
func (m *model) late(wanted policy.Set) []wish {
	var late []wish
	for _, recorded := range m.recorded {
		for id, r := range recorded {
			now, isInForce := m.inForce[id]
			object, isWanted := wanted[id]
			if !isWanted {
				object = now
			}
			isHeld := !has(wanted, now) && (isWanted || isInForce)
			if isHeld && object.Created.Equal(r.Created) && (!isInForce || now.ObjectVersion < r.ObjectVersion) {
				late = append(late, wish{Module: r})
			}
		}
	}
	return late
}

// record keeps what is in force of a ConfigMap.
func (m *model) record(name types.NamespacedName, isPolicy bool) {
	inForce := maps.Clone(m.inForce)
	maps.DeleteFunc(inForce, func(id policy.ID, _ policy.Module) bool {
		return id.Namespace != name.Namespace || id.Name != name.Name
	})
	switch {
	case len(inForce) == 0 && !isPolicy:
		delete(m.recorded, name)
		m.writes = slices.DeleteFunc(m.writes, func(w write) bool { return w.name == name })
	case !maps.EqualFunc(inForce, m.recorded[name], same):
		m.recorded[name] = inForce
		m.writes = append(m.writes, write{name, inForce})
	}
}

// restart forgets all but what was recorded, and begins with that. If nothing is left of
// a module, it brings it in as it was recorded, one write after the other.
func (m *model) restart() {
	last := policy.Set{}
	for _, recorded := range m.recorded {
		maps.Copy(last, recorded)
	}
	m.inForce, m.held = policy.Set{}, policy.Set{}
	m.want(last)
	lost := m.lost(last)
	if lost == 0 {
		return
	}
	m.meet("not all that was recorded compiles")
	together := *m
	m.inForce, m.held = policy.Set{}, policy.Set{}
	for n := range m.writes {
		m.want(recordedBy(m.writes[:n+1]))
	}
	if m.lost(last) >= lost {
		m.inForce, m.held = together.inForce, together.held
		return
	}
	m.meet("what was recorded goes together as it was before")
}

// lost is how many wanted modules there is nothing in force of.
func (m *model) lost(wanted policy.Set) int {
	n := 0
	for id := range wanted {
		if _, ok := m.inForce[id]; !ok {
			n++
		}
	}
	return n
}

// recordedBy is what was in force by some writes.
func recordedBy(writes []write) policy.Set {
	newest := make(map[types.NamespacedName]policy.Set)
	for _, w := range writes {
		newest[w.name] = w.inForce
	}
	all := policy.Set{}
	for _, modules := range newest {
		maps.Copy(all, modules)
	}
	return all
}

// statuses says of each module in a few words what became of it.
func (m *model) statuses(wanted policy.Set) map[policy.ID]string {
	all := make(map[policy.ID]string)
	for id := range m.inForce {
		all[id] = "previous, held, deleted"
	}
	for id, w := range wanted {
		_, isInForce := m.inForce[id]
		switch {
		case has(m.inForce, w):
			all[id] = "current"
		case isInForce:
			all[id] = "previous, held"
		default:
			all[id] = "none, held"
		}
	}
	return all
}
