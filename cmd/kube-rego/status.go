package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kube-rego/kube-rego/pkg/daemon"
	"github.com/kube-rego/kube-rego/pkg/overview"
)

func newStatusCommand() *cobra.Command {
	var options overview.Options
	var revision int64
	c := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Tell which policies and data are in force, since when, and why others are not",
		Long: `status reads from the cluster what became of its policies and data: of all in a
namespace, or of one ConfigMap. It needs to read ConfigMaps; without the right to
read ControllerRevisions and Leases it says so and tells the rest.

STATUS is what the annotation says: ok, warning (in force, with something to
know), pending (not yet on every replica) or error; "none yet" without one,
unknown if nobody understands it, and removed for a ConfigMap that is gone or
lost its label while the rest needs it. IN-FORCE is the version that decisions
are made with: current, previous or none. REVISION counts the versions that were in force, and AGE is how long this one has been.
Below are the problems, each with its line of the ConfigMap as it is now.

--history lists the revisions of a ConfigMap, of which the newest ten are kept,
and compiles each with what else is in force. That is done here, by the OPA of
this kube-rego, as if all built-ins were switched on. --revision prints the Rego
of one, with -o json as a ConfigMap that kubectl takes.

The exit code is 0 also if policies are held, 1 if something that was asked for
could not be read, 2 for a mistake in the command line.`,
		Example: `  # All policies of namespace opa, and of all namespaces:
  kube-rego status
  kube-rego status -A

  # Get a good version of opa/rules back. A key that came later stays: remove it by hand.
  kube-rego status --history rules
  kube-rego status --history rules --revision 3 -o json > rules-3.json
  kubectl patch -n opa configmap rules --type merge --patch-file rules-3.json

  # The same without kube-rego, for the key main:
  kubectl get -n opa controllerrevision rules-3 -o jsonpath='{.data.modules.main.source}' > main
  kubectl create configmap rules --from-file=main --dry-run=client -o json > rules-3.json`,
		ValidArgsFunction: cobra.NoFileCompletions,
		Args:              atMostOneName,
		PreRunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				options.Name = args[0]
			}
			if c.Flags().Changed("revision") {
				options.Revision = &revision
			}
			return validate(c.Flags(), options)
		},
		RunE: func(c *cobra.Command, _ []string) error {
			return overview.Run(c.Context(), options, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	addStatusFlags(c.Flags(), &options, &revision)
	_ = c.RegisterFlagCompletionFunc("output", // which fails only for a flag that is not there
		cobra.FixedCompletions([]cobra.Completion{overview.Table, overview.JSON}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func addStatusFlags(flags *pflag.FlagSet, o *overview.Options, revision *int64) {
	flags.SortFlags = false // in the order in which a person reads them
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` of the cluster; none: $KUBECONFIG, ~/.kube/config or the pod's own service account")
	flags.StringVarP(&o.Namespace, "namespace", "n", daemon.DefaultNamespace, "`namespace` of the policies")
	flags.BoolVarP(&o.AllNamespaces, "all-namespaces", "A", false, "tell of the policies of all namespaces")
	flags.StringVarP(&o.Output, "output", "o", overview.Table, "`form` of the output: table or json")
	flags.BoolVar(&o.History, "history", false, "list what was in force of the ConfigMap NAME, the newest first")
	flags.Int64Var(revision, "revision", 0, "with --history: print the Rego of the revision of this `number`")
	addLabelFlags(flags, &o.PolicyLabel, &o.PolicyValue, &o.DataLabel, &o.DataValue)
	flags.StringVar(&o.StatusAnnotation, "status-annotation", defaultStatusAnnotation, "annotation `key` for the status of a policy")
	flags.StringVar(&o.ReplicaNamespace, "kube-rego-namespace", daemon.DefaultNamespace, "`namespace` of kube-rego itself, where its revisions and Leases are")
}

func atMostOneName(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return &usageError{fmt.Errorf("kube-rego status takes one name at most, got %q and %q", args[0], args[1])}
	}
	return nil
}

// validate refuses options that contradict each other.
func validate(flags *pflag.FlagSet, o overview.Options) error {
	if o.AllNamespaces && flags.Changed("namespace") {
		return &usageError{errors.New("--namespace and --all-namespaces exclude each other")}
	}
	if err := o.Validate(); err != nil {
		return &usageError{err}
	}
	return nil
}
