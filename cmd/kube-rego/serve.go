package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/daemon"
)

func newServeCommand() *cobra.Command {
	var options daemon.Options
	level, format := slog.LevelInfo, formatText
	c := &cobra.Command{
		Use:   "serve",
		Short: "Watch policies and answer the admission webhook",
		Long: `serve compiles all labelled ConfigMaps of the watched namespaces as one policy
set, enforces it, and writes on each ConfigMap whether it is in force. A change
that does not compile is held: what was in force before stays in force.

Policies read data: keys of ConfigMaps labelled as data, and objects of the
cluster (--replicate, --replicate-cluster, --replicate-auto).

It is ready once the first whole set is in force and replicated objects are
loaded; until then it refuses every review. It stops on SIGTERM and SIGINT,
after the requests in flight.`,
		Example: `  # In a pod, with the service account's rights:
  kube-rego serve --webhook-configuration=kube-rego

  # Without a cluster:
  kube-rego serve --manifests examples/pod-allowlist`,
		Args: noArguments,
		PreRunE: func(*cobra.Command, []string) error {
			if err := options.Validate(); err != nil {
				return &usageError{err}
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error {
			log := newLog(c.ErrOrStderr(), format, level)
			klog.SetSlogLogger(log.With("component", "client-go"))
			return daemon.Run(c.Context(), options, log)
		},
	}
	addServeFlags(c.Flags(), &options)
	c.Flags().TextVar(&level, "log-level", slog.LevelInfo, "what to log: debug, info, warn or error")
	c.Flags().TextVar(&format, "log-format", formatText, "how lines of the log are written: text or json")
	return c
}

// defaultStatusAnnotation is what every command looks at unless told otherwise.
const defaultStatusAnnotation = "openpolicyagent.org/policy-status"

// addLabelFlags adds the flags that say what a policy is and what data, to every
// command that reads ConfigMaps.
func addLabelFlags(flags *pflag.FlagSet, policyLabel, policyValue, dataLabel, dataValue *string) {
	flags.StringVar(policyLabel, "policy-label", "openpolicyagent.org/policy", "label `key` that makes a ConfigMap a policy")
	flags.StringVar(policyValue, "policy-value", "rego", "`value` of that label")
	flags.StringVar(dataLabel, "data-label", "openpolicyagent.org/data", "label `key` that makes a ConfigMap data, which policies read at data.NAMESPACE.NAME.KEY; with both labels it is data")
	flags.StringVar(dataValue, "data-value", "opa", "`value` of that label")
}

// addResourceFlags adds the flags that name resources of the cluster whose objects
// policies can read.
func addResourceFlags(flags *pflag.FlagSet, namespaced, cluster *[]string, path *string) {
	flags.StringSliceVar(namespaced, "replicate", nil, "replicate the objects of a `[group/]version/resource` that has namespaces, such as v1/pods or networking.k8s.io/v1/ingresses, into data.kubernetes.RESOURCE.NAMESPACE.NAME; another name or path below data.kubernetes behind =; repeatable")
	flags.StringSliceVar(cluster, "replicate-cluster", nil, "replicate the objects of a `[group/]version/resource` without namespaces, such as v1/namespaces, into data.kubernetes.RESOURCE.NAME; repeatable")
	flags.StringVar(path, "replicate-path", "kubernetes", "`path` in data of the objects, instead of kubernetes")
}

// addReplicationFlags adds the flags that say which objects of the cluster policies
// can read.
func addReplicationFlags(flags *pflag.FlagSet, o *daemon.Options) {
	addResourceFlags(flags, &o.Replicate, &o.ReplicateCluster, &o.ReplicatePath)
	flags.BoolVar(&o.ReplicateAuto, "replicate-auto", false, "replicate what policies in force read at data.kubernetes.RESOURCE; kube-rego needs the right to list and watch it, see kube-rego rbac")
	flags.StringSliceVar(&o.ReplicateIgnoreNamespaces, "replicate-ignore-namespaces", nil, "`namespaces` whose objects are not replicated; repeatable")
}

// addAPIFlags adds the flags of what OPA has beside its policy engine.
func addAPIFlags(flags *pflag.FlagSet, o *daemon.Options) {
	flags.StringVar(&o.TLSClientCAFile, "tls-client-ca-file", "", "ask clients of --addr for a certificate of a CA in this `file`, reloaded when it changes; none: any client")
	flags.StringVar(&o.APIAddr, "api-addr", "127.0.0.1:8181", "`address` of OPA's REST API, for reading and queries; HTTPS beyond the loopback interface; empty: off")
	flags.StringVar(&o.APITokenFile, "api-token-file", "", "ask clients of --api-addr for the bearer token in this `file`, reloaded when it changes; none: no token")
	flags.StringVar(&o.APITLSClientCAFile, "api-tls-client-ca-file", "", "serve --api-addr over HTTPS and ask clients for a certificate of a CA in this `file`, reloaded when it changes; none: any client")
	flags.StringVar(&o.APIAuthorization, "api-authorization", daemon.AuthorizationAuto, "when data.system.authz.allow decides about a request to the API: auto where a policy defines it, basic always")
	flags.StringVar(&o.OPAConfig, "opa-config", "", "`file` with OPA's own configuration: services, bundles, discovery, decision_logs, status and so on; ${NAME} in it is a variable of the environment")
}

// addReviewFlags adds the flags that say what is made of what the policies answer.
func addReviewFlags(flags *pflag.FlagSet, o *daemon.Options) {
	flags.BoolVar(&o.StrictReview, "strict-review", false, "pass on only answers that are right as they are, instead of making old ones right: version, kind, uid, status, patch, warnings and audit annotations")
	flags.StringVar(&o.OnUndefined, "on-undefined", daemon.DefaultAction, "what becomes of an AdmissionReview about which no rule says anything: fail (an HTTP error, so that the webhook's failurePolicy decides), deny or allow")
	flags.StringVar(&o.OnError, "on-error", daemon.DefaultAction, "what becomes of an AdmissionReview about which the policies fail, take too long, or say what cannot be passed on: fail, deny or allow")
}

func addServeFlags(flags *pflag.FlagSet, o *daemon.Options) {
	flags.SortFlags = false // in the order in which a person reads them
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` of the cluster; the namespace of its context is ours, for certificate and Lease; none: the pod's own service account")
	flags.StringSliceVar(&o.Namespaces, "namespaces", []string{daemon.DefaultNamespace}, "namespaces to watch for policies; * for all")
	flags.StringSliceVar(&o.SystemNamespaces, "system-namespaces", nil, "namespaces whose policies may declare packages under system, such as the entrypoint; none: the first of --namespaces, or our own if that is *")
	flags.StringSliceVar(&o.Manifests, "manifests", nil, "read ConfigMaps from these `files or folders` instead of a cluster, and watch them; repeatable")
	addLabelFlags(flags, &o.PolicyLabel, &o.PolicyValue, &o.DataLabel, &o.DataValue)
	flags.BoolVar(&o.EnablePolicies, "enable-policies", true, "look for ConfigMaps that are policies")
	flags.BoolVar(&o.EnableData, "enable-data", true, "look for ConfigMaps that are data")
	addReplicationFlags(flags, o)
	flags.StringVar(&o.StatusAnnotation, "status-annotation", defaultStatusAnnotation, "annotation `key` for the status of a policy; empty: none is written")
	flags.StringVar(&o.Entrypoint, "entrypoint", daemon.DefaultEntrypoint, "`path` of the decision that answers POST /; default_decision of --opa-config is taken instead of the default")
	addReviewFlags(flags, o)
	flags.StringVar(&o.RegoVersion, "rego-version", "auto", "Rego version of policies that do not say it in the annotation openpolicyagent.org/rego-version: auto, v0 or v1")
	flags.StringArrayVar(&o.Builtins, "enable-builtin", nil, fmt.Sprintf("switch on a built-in that is off by default, one of %v; repeatable", compile.OffByDefault()))
	flags.StringVar(&o.Addr, "addr", ":8443", "`address` of the webhook, over HTTPS")
	addAPIFlags(flags, o)
	flags.StringVar(&o.DiagnosticAddr, "diagnostic-addr", "127.0.0.1:8282", "`address` of /healthz, /readyz, /metrics and /status")
	flags.StringVar(&o.TLSCertFile, "tls-cert-file", "", "serve with the certificate chain in this `file`, reloaded when it changes; none: make our own")
	flags.StringVar(&o.TLSPrivateKeyFile, "tls-private-key-file", "", "`file` of the key of --tls-cert-file")
	flags.StringArrayVar(&o.WebhookConfigurations, "webhook-configuration", nil, "`name` of a webhook configuration to put our own CA into; repeatable")
}
