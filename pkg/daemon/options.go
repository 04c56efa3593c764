package daemon

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/replication"
)

// allNamespaces in Options.Namespaces stands for every namespace.
const allNamespaces = "*"

// DefaultNamespace is the one that is watched unless Options say otherwise.
const DefaultNamespace = "opa"

// Options are what a person decides about kube-rego serve. The flags of the
// same names explain each.
type Options struct {
	// Kubeconfig is the path of a kubeconfig file; empty: the pod's own
	// service account.
	Kubeconfig string
	// Manifests are files and folders to read instead of a cluster.
	Manifests []string
	// Namespaces to watch; allNamespaces for all.
	Namespaces []string
	// SystemNamespaces are those whose policies may declare packages under
	// system; none: the first of Namespaces.
	SystemNamespaces []string
	// PolicyLabel and PolicyValue are the label that makes a ConfigMap a
	// policy.
	PolicyLabel, PolicyValue string
	// DataLabel and DataValue are the label that makes a ConfigMap data.
	DataLabel, DataValue string
	// EnablePolicies and EnableData say which of the two are looked for.
	EnablePolicies, EnableData bool
	// Replicate and ReplicateCluster are resources to replicate into data, the ones
	// with objects in namespaces, the others with objects of the whole cluster.
	Replicate, ReplicateCluster []string
	// ReplicateAuto replicates what policies read below ReplicatePath, too.
	ReplicateAuto bool
	// ReplicatePath is where in data they are.
	ReplicatePath string
	// ReplicateIgnoreNamespaces are namespaces whose objects stay out.
	ReplicateIgnoreNamespaces []string
	// StatusAnnotation is the key of the status; empty: none is written.
	StatusAnnotation string

	// Addr is where the webhook is served, DiagnosticAddr probes and metrics.
	Addr, DiagnosticAddr string
	// APIAddr is where OPA's REST API is served; empty: nowhere.
	APIAddr string
	// APITokenFile has the token that the API asks for; empty: none.
	APITokenFile string
	// APIAuthorization says when the policy set decides about requests to the API:
	// AuthorizationAuto or authorizationBasic.
	APIAuthorization string
	// TLSClientCAFile and APITLSClientCAFile have the CAs of clients that may come to
	// Addr and to APIAddr; empty: any client.
	TLSClientCAFile, APITLSClientCAFile string
	// OPAConfig is a file with OPA's own configuration; empty: none.
	OPAConfig string
	// TLSCertFile and TLSPrivateKeyFile are the serving certificate; empty:
	// one is made.
	TLSCertFile, TLSPrivateKeyFile string
	// WebhookConfigurations get the CA of the certificate that is made.
	WebhookConfigurations []string

	// Entrypoint is the decision that the webhook asks for.
	Entrypoint string
	// StrictReview passes on only answers that are right as they are.
	StrictReview bool
	// OnUndefined and OnError are what becomes of a review about which the policies
	// come to no decision: fail, deny or allow.
	OnUndefined, OnError string
	// RegoVersion of modules that do not say it themselves.
	RegoVersion string
	// Builtins that are off by default and are to be on.
	Builtins []string
}

// DefaultEntrypoint is the decision of POST / unless somebody says otherwise.
const DefaultEntrypoint = "system/main"

// DefaultAction is what becomes of a review without a decision unless somebody says
// otherwise: the webhook's own failurePolicy decides.
const DefaultAction = string(admission.Fail)

const (
	// AuthorizationAuto has the policy set decide about requests to the API where it
	// has a rule for that.
	AuthorizationAuto = "auto"
	// authorizationBasic has it decide always, as opa run does: without a rule nothing
	// is allowed.
	authorizationBasic = "basic"
)

// Validate gathers all that is wrong with the options, each error naming the
// flag.
func (o Options) Validate() error {
	return errors.Join(
		o.validateSource(),
		o.validateLabels(),
		o.validateReplication(),
		o.validateListeners(),
		o.validateAPI(),
		o.validatePolicies(),
	)
}

func (o Options) validateSource() error {
	var errs []error
	if len(o.Namespaces) == 0 {
		errs = append(errs, errors.New("--namespaces: want at least one namespace, or * for all"))
	}
	for _, namespace := range o.Namespaces {
		if namespace != allNamespaces {
			errs = append(errs, configmap.CheckFlag("--namespaces", namespace, validation.IsDNS1123Label))
		}
	}
	if slices.Contains(o.Namespaces, allNamespaces) && len(o.Namespaces) > 1 {
		errs = append(errs, errors.New("--namespaces: * stands for all namespaces; name no others beside it"))
	}
	for _, namespace := range o.SystemNamespaces {
		errs = append(errs, configmap.CheckFlag("--system-namespaces", namespace, validation.IsDNS1123Label))
	}
	if o.StatusAnnotation != "" {
		errs = append(errs, configmap.CheckFlag("--status-annotation", o.StatusAnnotation, validation.IsQualifiedName))
	}
	if slices.Contains(o.Manifests, "") {
		errs = append(errs, errors.New("--manifests: a path is empty"))
	}
	if len(o.Manifests) > 0 && o.Kubeconfig != "" {
		errs = append(errs, errors.New("--manifests reads files instead of a cluster: --kubeconfig has no use beside it"))
	}
	return errors.Join(errs...)
}

func (o Options) validateLabels() error {
	errs := []error{configmap.CheckLabels(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue)}
	switch {
	case !o.EnablePolicies && !o.EnableData && o.OPAConfig == "":
		errs = append(errs, errors.New("--enable-policies=false and --enable-data=false leave nothing to do without --opa-config"))
	case o.EnablePolicies && o.EnableData && o.PolicyLabel == o.DataLabel && o.PolicyValue == o.DataValue:
		errs = append(errs, errors.New("--policy-label and --data-label: a label with one value cannot stand for both"))
	}
	return errors.Join(errs...)
}

func (o Options) validateReplication() error {
	resources, _, err := o.replicated()
	errs := []error{err}
	if (o.ReplicateAuto || len(resources) > 0) && len(o.Manifests) > 0 {
		errs = append(errs, errors.New("--replicate, --replicate-cluster and --replicate-auto need a cluster: they have no use beside --manifests"))
	}
	for _, namespace := range o.ReplicateIgnoreNamespaces {
		errs = append(errs, configmap.CheckFlag("--replicate-ignore-namespaces", namespace, validation.IsDNS1123Label))
	}
	return errors.Join(errs...)
}

// replicated are the resources that flags name, and the path that they are below.
func (o Options) replicated() ([]replication.Resource, []string, error) {
	return replication.ParseFlags(o.Replicate, o.ReplicateCluster, o.ReplicatePath)
}

// compilerReplicated is what the compiler knows of replication; nothing where there is
// none.
func (o Options) compilerReplicated() compile.Replicated {
	resources, path, err := o.replicated()
	if err != nil || len(resources) == 0 && !o.ReplicateAuto {
		return compile.Replicated{}
	}
	r := compile.Replicated{Path: path, Auto: o.ReplicateAuto}
	for _, resource := range resources {
		r.Resources = append(r.Resources, resource.Path)
	}
	return r
}

func (o Options) validateListeners() error {
	var errs []error
	errs = append(errs, validateAddress("--addr", o.Addr), validateAddress("--diagnostic-addr", o.DiagnosticAddr))
	if (o.TLSCertFile == "") != (o.TLSPrivateKeyFile == "") {
		errs = append(errs, errors.New("--tls-cert-file and --tls-private-key-file go together"))
	}
	if len(o.WebhookConfigurations) > 0 && o.TLSCertFile != "" {
		errs = append(errs, errors.New("--webhook-configuration puts in the CA that kube-rego makes itself: it has no use beside --tls-cert-file"))
	}
	if len(o.WebhookConfigurations) > 0 && len(o.Manifests) > 0 {
		errs = append(errs, errors.New("--webhook-configuration needs a cluster: it has no use beside --manifests"))
	}
	for _, name := range o.WebhookConfigurations {
		errs = append(errs, configmap.CheckFlag("--webhook-configuration", name, validation.IsDNS1123Subdomain))
	}
	return errors.Join(errs...)
}

func validateAddress(flag, value string) error {
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%s: %q is not an address such as :8443 or 127.0.0.1:8443", flag, value)
	}
	return nil
}

func (o Options) validateAPI() error {
	var errs []error
	if !slices.Contains([]string{AuthorizationAuto, authorizationBasic}, o.APIAuthorization) {
		errs = append(errs, fmt.Errorf("--api-authorization: %q is neither auto nor basic", o.APIAuthorization))
	}
	if o.APIAddr == "" {
		return errors.Join(errs...)
	}
	if err := validateAddress("--api-addr", o.APIAddr); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if !isLoopback(o.APIAddr) && o.APITokenFile == "" && o.APITLSClientCAFile == "" && o.APIAuthorization != authorizationBasic {
		errs = append(errs, fmt.Errorf("--api-addr: whoever reaches %s could read all policies and data: give --api-token-file, "+
			"--api-tls-client-ca-file or --api-authorization=basic, or an address of the loopback interface", o.APIAddr))
	}
	return errors.Join(errs...)
}

// isLoopback reports whether an address can be reached from this machine, or this pod,
// only.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (o Options) validatePolicies() error {
	var errs []error
	if err := policy.CheckPath(o.Entrypoint); err != nil {
		errs = append(errs, fmt.Errorf("--entrypoint: %w", err))
	}
	for _, f := range []struct{ flag, action string }{{"--on-undefined", o.OnUndefined}, {"--on-error", o.OnError}} {
		if !slices.Contains([]admission.Action{admission.Fail, admission.Deny, admission.Allow}, admission.Action(f.action)) {
			errs = append(errs, fmt.Errorf("%s: %q: want fail, deny or allow", f.flag, f.action))
		}
	}
	if _, err := policy.ParseRegoVersion(o.RegoVersion); err != nil {
		errs = append(errs, fmt.Errorf("--rego-version: %w", err))
	}
	for _, name := range o.Builtins {
		if !slices.Contains(compile.OffByDefault(), name) {
			errs = append(errs, fmt.Errorf("--enable-builtin: %q is not one of those that are off by default: %v", name, compile.OffByDefault()))
		}
	}
	return errors.Join(errs...)
}

// namespaces are the namespaces in client-go's words.
func (o Options) namespaces() []string {
	if slices.Contains(o.Namespaces, allNamespaces) {
		return []string{metav1.NamespaceAll}
	}
	var once []string // a namespace that is named twice would be counted twice
	for _, namespace := range o.Namespaces {
		if !slices.Contains(once, namespace) {
			once = append(once, namespace)
		}
	}
	return once
}

// kinds are the labels of ConfigMaps that hold policies and data.
func (o Options) kinds() configmap.Kinds {
	kinds := configmap.NewKinds(o.PolicyLabel, o.PolicyValue, o.DataLabel, o.DataValue)
	if !o.EnablePolicies {
		kinds.Policy = labels.Nothing()
	}
	if !o.EnableData {
		kinds.Data = labels.Nothing()
	}
	return kinds
}
