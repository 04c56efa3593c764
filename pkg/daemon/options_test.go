package daemon_test

import (
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/daemon"
)

// defaults are the options of kube-rego serve without flags.
func defaults() daemon.Options {
	return daemon.Options{
		Namespaces:       []string{"opa"},
		PolicyLabel:      "openpolicyagent.org/policy",
		PolicyValue:      "rego",
		DataLabel:        "openpolicyagent.org/data",
		DataValue:        "opa",
		EnablePolicies:   true,
		EnableData:       true,
		ReplicatePath:    "kubernetes",
		StatusAnnotation: "openpolicyagent.org/policy-status",
		Addr:             ":8443",
		DiagnosticAddr:   "127.0.0.1:8282",
		APIAddr:          "127.0.0.1:8181",
		APIAuthorization: "auto",
		Entrypoint:       "system/main",
		RegoVersion:      "auto",
		OnUndefined:      "fail",
		OnError:          "fail",
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*daemon.Options)
		want   []string // the start of each error
	}{
		{name: "the defaults are valid", change: func(*daemon.Options) {}},
		{name: "all namespaces", change: func(o *daemon.Options) { o.Namespaces = []string{"*"} }},
		{name: "namespaces trusted with system", change: func(o *daemon.Options) { o.SystemNamespaces = []string{"opa", "platform"} }},
		{name: "several namespaces", change: func(o *daemon.Options) { o.Namespaces = []string{"opa", "team-a", "opa"} }},
		{name: "no status", change: func(o *daemon.Options) { o.StatusAnnotation = "" }},
		{name: "an empty value of the label", change: func(o *daemon.Options) { o.PolicyValue = "" }},
		{name: "a label without a domain", change: func(o *daemon.Options) { o.PolicyLabel = "policy" }},
		{name: "files instead of a cluster", change: func(o *daemon.Options) { o.Manifests = []string{"policies"} }},
		{name: "a certificate in files", change: func(o *daemon.Options) { o.TLSCertFile, o.TLSPrivateKeyFile = "tls.crt", "tls.key" }},
		{name: "webhook configurations", change: func(o *daemon.Options) { o.WebhookConfigurations = []string{"kube-rego", "opa.example.com"} }},
		{name: "a built-in that is off by default", change: func(o *daemon.Options) { o.Builtins = []string{"http.send"} }},
		{name: "no API", change: func(o *daemon.Options) { o.APIAddr = "" }},
		{name: "an API on another loopback address", change: func(o *daemon.Options) { o.APIAddr = "[::1]:1" }},
		{name: "an API on a loopback address by name", change: func(o *daemon.Options) { o.APIAddr = "localhost:8181" }},
		{name: "an API for all who have the token", change: func(o *daemon.Options) { o.APIAddr, o.APITokenFile = ":8181", "token" }},
		{name: "an API for all who have a certificate", change: func(o *daemon.Options) { o.APIAddr, o.APITLSClientCAFile = ":8181", "ca.crt" }},
		{name: "an API for those whom a policy lets in", change: func(o *daemon.Options) { o.APIAddr, o.APIAuthorization = ":8181", "basic" }},
		{name: "an entrypoint with slashes around", change: func(o *daemon.Options) { o.Entrypoint = "/system/main/" }},

		{name: "no answer is an answer", change: func(o *daemon.Options) { o.OnUndefined, o.OnError = "deny", "allow" }},

		{
			name: "an action that nobody knows, and none", change: func(o *daemon.Options) { o.OnUndefined, o.OnError = "ignore", "" },
			want: []string{`--on-undefined: "ignore": want fail, deny or allow`, `--on-error: "": want fail, deny or allow`},
		},
		{
			name: "no namespace", change: func(o *daemon.Options) { o.Namespaces = nil },
			want: []string{"--namespaces: want at least one namespace, or * for all"},
		},
		{
			name: "namespaces that Kubernetes would not take", change: func(o *daemon.Options) { o.Namespaces = []string{"OPA", ""} },
			want: []string{`--namespaces: "OPA": `, `--namespaces: "": `},
		},
		{
			name: "a trusted namespace that is none", change: func(o *daemon.Options) { o.SystemNamespaces = []string{"*"} },
			want: []string{`--system-namespaces: "*": `},
		},
		{
			name: "all namespaces and one", change: func(o *daemon.Options) { o.Namespaces = []string{"*", "opa"} },
			want: []string{"--namespaces: * stands for all namespaces; name no others beside it"},
		},
		{
			name: "a label that Kubernetes would not take", change: func(o *daemon.Options) { o.PolicyLabel = "a/b/c" },
			want: []string{`--policy-label: "a/b/c": `},
		},
		{
			name: "a value that Kubernetes would not take", change: func(o *daemon.Options) { o.PolicyValue = "re go" },
			want: []string{`--policy-value: "re go": `},
		},
		{
			name: "an annotation that Kubernetes would not take", change: func(o *daemon.Options) { o.StatusAnnotation = "the status" },
			want: []string{`--status-annotation: "the status": `},
		},
		{
			name: "files and a cluster", change: func(o *daemon.Options) { o.Manifests, o.Kubeconfig = []string{"policies"}, "kubeconfig" },
			want: []string{"--manifests reads files instead of a cluster: --kubeconfig has no use beside it"},
		},
		{
			name: "a port alone", change: func(o *daemon.Options) { o.Addr = "8443" },
			want: []string{`--addr: "8443" is not an address such as :8443 or 127.0.0.1:8443`},
		},
		{
			name: "a host alone", change: func(o *daemon.Options) { o.DiagnosticAddr = "localhost" },
			want: []string{`--diagnostic-addr: "localhost" is not an address such as :8443 or 127.0.0.1:8443`},
		},
		{
			name: "a certificate without its key", change: func(o *daemon.Options) { o.TLSCertFile = "tls.crt" },
			want: []string{"--tls-cert-file and --tls-private-key-file go together"},
		},
		{
			name: "a key without its certificate", change: func(o *daemon.Options) { o.TLSPrivateKeyFile = "tls.key" },
			want: []string{"--tls-cert-file and --tls-private-key-file go together"},
		},
		{
			name: "a CA of our own beside a certificate of somebody else's",
			change: func(o *daemon.Options) {
				o.TLSCertFile, o.TLSPrivateKeyFile = "tls.crt", "tls.key"
				o.WebhookConfigurations = []string{"kube-rego"}
			},
			want: []string{"--webhook-configuration puts in the CA that kube-rego makes itself: it has no use beside --tls-cert-file"},
		},
		{
			name: "a webhook configuration without a cluster",
			change: func(o *daemon.Options) {
				o.Manifests, o.WebhookConfigurations = []string{"policies"}, []string{"kube-rego"}
			},
			want: []string{"--webhook-configuration needs a cluster: it has no use beside --manifests"},
		},
		{
			name: "a webhook configuration that Kubernetes would not take", change: func(o *daemon.Options) { o.WebhookConfigurations = []string{"ok", "not ok"} },
			want: []string{`--webhook-configuration: "not ok": `},
		},
		{
			name: "no entrypoint", change: func(o *daemon.Options) { o.Entrypoint = "" },
			want: []string{`--entrypoint: "" is not the path of a decision: want, for example, system/main`},
		},
		{
			name: "a Rego version to come", change: func(o *daemon.Options) { o.RegoVersion = "v2" },
			want: []string{`--rego-version: unknown Rego version "v2": want auto, v0 or v1`},
		},
		{
			name: "built-ins that are on anyway, or none", change: func(o *daemon.Options) { o.Builtins = []string{"count", "opa.runtime", "http.get"} },
			want: []string{`--enable-builtin: "count" is not one of those`, `--enable-builtin: "http.get" is not one of those`},
		},
		{
			name: "an API for all", change: func(o *daemon.Options) { o.APIAddr = ":8181" },
			want: []string{"--api-addr: whoever reaches :8181 could read all policies and data: give --api-token-file"},
		},
		{
			name: "an API on an address that is not of the loopback interface", change: func(o *daemon.Options) { o.APIAddr = "10.0.0.1:8181" },
			want: []string{"--api-addr: whoever reaches 10.0.0.1:8181 could"},
		},
		{
			name: "an API nowhere", change: func(o *daemon.Options) { o.APIAddr = "8181" },
			want: []string{`--api-addr: "8181" is not an address`},
		},
		{
			name: "an API with an authorization that OPA does not know", change: func(o *daemon.Options) { o.APIAuthorization = "token" },
			want: []string{`--api-authorization: "token" is neither auto nor basic`},
		},
		{
			name:   "no option at all: every error is told",
			change: func(o *daemon.Options) { *o = daemon.Options{} },
			want: []string{
				"--namespaces: ", `--policy-label: "": `, `--data-label: "": `, "--enable-policies=false and", `--replicate-path: "" is not`, `--addr: "" is not`, `--diagnostic-addr: "" is not`, `--api-authorization: "" is`, `--entrypoint: "" is not`, `--on-undefined: ""`, `--on-error: ""`, `--rego-version: `,
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := defaults()
			test.change(&o)
			var got []string
			if err := o.Validate(); err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			if len(got) != len(test.want) {
				t.Fatalf("got %d errors, want %d:\n%s", len(got), len(test.want), strings.Join(got, "\n"))
			}
			for i, want := range test.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("got  %s\nwant %s", got[i], want)
				}
			}
		})
	}
}
