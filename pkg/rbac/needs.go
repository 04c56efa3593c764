package rbac

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/replication"
)

// needs is what policies need.
type needs struct {
	resources map[schema.GroupResource]bool
	// secrets and unnamed are the places where policies read Secrets, and where they
	// read objects without saying of which resource.
	secrets, unnamed []string
}

var secrets = schema.GroupResource{Resource: "secrets"}

// needs finds out what policies read, and which resources that is.
func (o Options) needs(policies policy.Set, resolver *replication.Resolver) (*needs, error) {
	explicit, base, err := o.replicated()
	if err != nil {
		return nil, err
	}
	places, err := placesIn(policies, base)
	if err != nil {
		return nil, err
	}
	n := &needs{resources: make(map[schema.GroupResource]bool)}
	for _, resource := range explicit {
		n.resources[resource.GroupResource()] = true
	}
	unknown := &unknown{names: make(map[string]bool), base: base}
	for _, read := range places {
		switch {
		case read.Name == "":
			n.unnamed = append(n.unnamed, placeOf(read))
		case !covered(read.Name, base, explicit):
			resource, state, err := resolver.Resolve(read.Name)
			if err != nil {
				unknown.add(read, state, err)
				continue
			}
			n.add(resource.GroupResource(), read)
		}
	}
	return n, unknown.error(o.Kubeconfig != "")
}

// covered reports whether a flag says what is at the path of a name.
func covered(name string, base []string, explicit []replication.Resource) bool {
	return slices.ContainsFunc(explicit, func(r replication.Resource) bool { return r.Path[len(base)] == name })
}

func (n *needs) add(resource schema.GroupResource, read compile.ResourceRef) {
	n.resources[resource] = true
	if resource == secrets {
		n.secrets = append(n.secrets, placeOf(read))
	}
}

// unknown are the names that no single resource is found for.
type unknown struct {
	names   map[string]bool
	base    []string // what is before them in data
	errs    []error
	missing bool // some have no resource at all
}

// add takes the first place where a name is read.
func (u *unknown) add(read compile.ResourceRef, state policy.ResourceState, err error) {
	if u.names[read.Name] {
		return
	}
	u.names[read.Name] = true
	if state == policy.ResourceMissing {
		u.missing = true
		err = errors.New("no policy here defines it, and no resource is known by that name")
	}
	u.errs = append(u.errs, fmt.Errorf("%s: data.%s.%s: %w", placeOf(read), strings.Join(u.base, "."), policy.Printable(read.Name), err))
}

// error says where each is read, and what to do; nil if there are none.
func (u *unknown) error(asked bool) error {
	if u.missing {
		cluster := "give --kubeconfig of a cluster that knows it, or "
		if asked {
			cluster = "give "
		}
		u.errs = append(u.errs, errors.New("if the name is not misspelt: "+cluster+
			"the manifest of its CustomResourceDefinition with --filename, or name it with --replicate or --replicate-cluster"))
	}
	return errors.Join(u.errs...)
}

// placesIn are the places where policies read objects of the cluster. All policies must
// be readable: nobody knows what the others need.
func placesIn(policies policy.Set, base []string) ([]compile.ResourceRef, error) {
	var namespaces []string
	for id := range policies {
		namespaces = append(namespaces, id.Namespace)
	}
	compiler, err := compile.New(compile.Config{
		RegoVersion:      policy.RegoAuto,
		SystemNamespaces: namespaces, // which of them are trusted changes nothing of what they read
		Replicated:       compile.Replicated{Path: base, Auto: true},
	})
	if err != nil {
		return nil, err
	}
	broken := compiler.Broken(policies)
	var errs []error
	for _, id := range slices.SortedFunc(maps.Keys(broken), policy.ID.Compare) {
		for _, p := range broken[id] {
			errs = append(errs, errors.New(describe(id, p)))
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return compiler.ResourceRefs(policies), nil
}

// describe is a problem with its line, as a compiler prints it.
func describe(id policy.ID, p policy.Problem) string {
	text := fmt.Sprintf("%s: %s: %s", place(id, p.Row, p.Col), p.Code, policy.Printable(strings.Join(strings.Fields(p.Message), " ")))
	if p.Caret != "" {
		text += "\n    " + policy.Printable(p.Source) + "\n    " + p.Caret
	}
	return text
}

// remarks is what the reader of the role should know of it.
func (n *needs) remarks() string {
	var b strings.Builder
	for _, place := range n.unnamed {
		b.WriteString("kube-rego: warning: " + place + ": the text does not say which resource is read: " +
			"the role lets kube-rego read it only if something else names it, --replicate or --replicate-cluster for example\n")
	}
	if n.resources[secrets] {
		places := ""
		if len(n.secrets) > 0 {
			places = " (" + strings.Join(n.secrets, ", ") + ")"
		}
		b.WriteString("kube-rego: warning: the role lets kube-rego read all Secrets" + places +
			": whoever may write policies can have them told in the message of a denial\n")
	}
	if len(n.resources) == 0 {
		b.WriteString("kube-rego: the policies read no objects of the cluster: the role has no rules\n")
	}
	return b.String()
}

func placeOf(r compile.ResourceRef) string { return place(r.Module, r.Row, r.Col) }

// place is a place in a key of a ConfigMap, or in a file with Rego. Without a row it is
// the whole text.
func place(id policy.ID, row, col int) string {
	name := id.String()
	if id.Namespace == "" {
		name = id.Key
	}
	if row == 0 {
		return policy.Printable(name)
	}
	return fmt.Sprintf("%s:%d:%d", policy.Printable(name), row, col)
}
