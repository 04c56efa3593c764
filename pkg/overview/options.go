package overview

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/configmap"
)

// The forms of the output.
const (
	Table = "table"
	JSON  = "json"
)

// Options are what a person decides about kube-rego status. The flags of the
// same names explain each.
type Options struct {
	// Kubeconfig is the path of a kubeconfig file; empty: that which kubectl
	// takes.
	Kubeconfig string
	// Name is that of the one ConfigMap to tell of; empty: of all.
	Name string
	// Namespace is that of the policies, unless AllNamespaces.
	Namespace     string
	AllNamespaces bool
	// ReplicaNamespace is where kube-rego itself runs.
	ReplicaNamespace string
	// PolicyLabel and PolicyValue are the label that makes a ConfigMap a
	// policy.
	PolicyLabel, PolicyValue string
	// DataLabel and DataValue are the label that makes one data.
	DataLabel, DataValue string
	// StatusAnnotation is the key of the status.
	StatusAnnotation string
	// Output is Table or JSON.
	Output string
	// History asks for the revisions of the ConfigMap, and Revision, unless it
	// is nil, for the text of one of them.
	History  bool
	Revision *int64
}

// Validate gathers all that is wrong with the options, each error naming the
// flag.
func (o Options) Validate() error {
	var errs []error
	if o.Output != Table && o.Output != JSON {
		errs = append(errs, fmt.Errorf("--output: unknown form %q: want %s or %s", o.Output, Table, JSON))
	}
	return errors.Join(append(errs,
		configmap.CheckLabels(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue),
		configmap.CheckFlag("--status-annotation", o.StatusAnnotation, validation.IsQualifiedName),
		configmap.CheckFlag("--namespace", o.Namespace, validation.IsDNS1123Label),
		configmap.CheckFlag("--kube-rego-namespace", o.ReplicaNamespace, validation.IsDNS1123Label),
		o.validateName(),
	)...)
}

func (o Options) validateName() error {
	switch {
	case o.Revision != nil && !o.History:
		return errors.New("--revision goes with --history and the name of a ConfigMap")
	case o.History && o.Name == "":
		return errors.New("--history needs the name of a ConfigMap")
	case o.Name != "" && o.AllNamespaces:
		return errors.New("a name is of one namespace: give --namespace instead of --all-namespaces")
	case o.Name != "" && len(validation.IsDNS1123Subdomain(o.Name)) > 0:
		return fmt.Errorf("%q is not the name of a ConfigMap", o.Name)
	case o.Revision != nil && *o.Revision < 0:
		return fmt.Errorf("--revision: %d is not the number of a revision", *o.Revision)
	}
	return nil
}

// kinds are the labels of policies and data.
func (o Options) kinds() configmap.Kinds {
	return configmap.NewKinds(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue)
}

// namespace is that of the policies in client-go's words.
func (o Options) namespace() string {
	if o.AllNamespaces {
		return metav1.NamespaceAll
	}
	return o.Namespace
}
