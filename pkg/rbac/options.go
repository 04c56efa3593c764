// Package rbac makes the ClusterRole that a set of policies needs: the right to list
// and watch the resources that they read in data, and no other. It reads files, or
// standard input, and may ask the API server which resources it has; it prints the
// role and applies nothing.
package rbac

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/validate/content"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/replication"
)

// Stdin in Options.Filenames stands for standard input.
const Stdin = "-"

// DefaultName is that of the ClusterRole that manifests/replication/rbac.yaml binds.
const DefaultName = "kube-rego-replication"

// Options are what a person decides about kube-rego rbac. The flags of the same
// names explain each.
type Options struct {
	// Filenames are files and folders with policies; Stdin is one of them.
	Filenames []string
	// Kubeconfig is the path of a kubeconfig file of the cluster whose resources are
	// known; empty: none is asked, and those of Kubernetes itself are known.
	Kubeconfig string
	// Replicate and ReplicateCluster are resources that are replicated whatever
	// policies read.
	Replicate, ReplicateCluster []string
	// ReplicatePath is where in data they are.
	ReplicatePath string
	// PolicyLabel and PolicyValue are the label that makes a ConfigMap a policy.
	PolicyLabel, PolicyValue string
	// DataLabel and DataValue are the label that makes one data.
	DataLabel, DataValue string
	// Name is that of the ClusterRole.
	Name string
}

// Validate gathers all that is wrong with the options, each error naming the flag.
func (o Options) Validate() error {
	_, _, err := o.replicated()
	errs := []error{err}
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(o.Filenames) == 0 && len(o.Replicate) == 0 && len(o.ReplicateCluster) == 0 {
		wrong("--filename: want the files or folders of the policies, or - for standard input")
	}
	if slices.Contains(o.Filenames, "") {
		wrong("--filename: a path is empty")
	}
	errs = append(errs, configmap.CheckLabels(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue))
	if o.Name == "" || len(content.IsPathSegmentName(o.Name)) > 0 {
		wrong("--name: %q is not the name of a ClusterRole", o.Name)
	}
	return errors.Join(errs...)
}

// replicated are the resources that flags name, and the path that all are below.
func (o Options) replicated() ([]replication.Resource, []string, error) {
	return replication.ParseFlags(o.Replicate, o.ReplicateCluster, o.ReplicatePath)
}

// kinds are the labels of policies and data.
func (o Options) kinds() configmap.Kinds {
	return configmap.NewKinds(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue)
}
