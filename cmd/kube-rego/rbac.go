package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kube-rego/kube-rego/pkg/rbac"
)

func newRBACCommand() *cobra.Command {
	var options rbac.Options
	c := &cobra.Command{
		Use:   "rbac -f FILES",
		Short: "Print the ClusterRole that a set of policies needs",
		Long: `rbac reads policies and prints a ClusterRole with the right to list and watch the
resources that they read at data.kubernetes.RESOURCE, which is what kube-rego
serve --replicate-auto replicates, and those that --replicate and
--replicate-cluster name. There is no other right in it, and no wildcard. The
ClusterRoleBinding kube-rego-replication of manifests/replication/rbac.yaml
gives it to kube-rego.

Whoever may write policies can read through the message of a denial all that
kube-rego may read. Think twice before you give it Secrets.

Without --kubeconfig nothing is asked of a cluster: it knows the resources that
Kubernetes has by itself, and those of the CustomResourceDefinitions among the
files. Of a plural that several groups have the core group is meant, then that of
Kubernetes itself.

Read all policies, not only those that changed: the role that is applied takes
the place of the one before. If a policy does not parse, or reads what nobody
knows, nothing is printed.

The exit code is 1 if there is no role, 2 for a mistake in the command line.`,
		Example: `  # The role for the policies in a folder:
  kube-rego rbac -f policies/ | kubectl apply -f -

  # For the policies of a cluster, with the resources of its CRDs:
  kubectl get configmaps -A -l openpolicyagent.org/policy=rego -o yaml |
    kube-rego rbac -f - --kubeconfig ~/.kube/config

  # With CRDs, and without a cluster:
  kube-rego rbac -f policies/ -f crds/`,
		Args: noArguments,
		PreRunE: func(*cobra.Command, []string) error {
			if err := options.Validate(); err != nil {
				return &usageError{err}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			return rbac.Run(c.Context(), options, c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	addRBACFlags(c.Flags(), &options)
	return c
}

func addRBACFlags(flags *pflag.FlagSet, o *rbac.Options) {
	flags.SortFlags = false // in the order in which a person reads them
	flags.StringSliceVarP(&o.Filenames, "filename", "f", nil, "read policies from these `files or folders`: ConfigMaps as kubectl get -o yaml prints them, .rego files, and CustomResourceDefinitions for the names of their resources; - is standard input; repeatable")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` of a cluster to ask for its resources; none: those of Kubernetes itself are known")
	addResourceFlags(flags, &o.Replicate, &o.ReplicateCluster, &o.ReplicatePath)
	addLabelFlags(flags, &o.PolicyLabel, &o.PolicyValue, &o.DataLabel, &o.DataValue)
	flags.StringVar(&o.Name, "name", rbac.DefaultName, "`name` of the ClusterRole; manifests/replication/rbac.yaml binds one that is called kube-rego-replication")
}
