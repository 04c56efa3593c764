package rbac

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/replication"
)

// Run reads the policies and writes the ClusterRole that they need to stdout, and to
// stderr what its reader should know. With an error there is no role: one that is too
// small would be found out too late.
func Run(ctx context.Context, o Options, stdin io.Reader, stdout, stderr io.Writer) error {
	done := make(chan error, 1)
	go func() { done <- run(o, stdin, stdout, stderr) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done(): // nothing else ends the reading of standard input
		return ctx.Err()
	}
}

func run(o Options, stdin io.Reader, stdout, stderr io.Writer) error {
	if err := o.Validate(); err != nil {
		return err
	}
	r, err := o.read(stdin)
	if err != nil {
		return err
	}
	resolver, err := o.resolver(r.defined)
	if err != nil {
		return err
	}
	needs, err := o.needs(r.policies, resolver)
	if err != nil {
		return err
	}
	text, err := role(o.Name, needs.resources)
	if err != nil {
		return err
	}
	if _, err = io.WriteString(stdout, text); err == nil {
		_, err = io.WriteString(stderr, needs.remarks())
	}
	return err
}

// read reads all files. None with a policy is an error: whoever typed a wrong path, or
// whose kubectl failed before the pipe, does not want to take all rights away.
func (o Options) read(stdin io.Reader) (*reader, error) {
	r := &reader{kinds: o.kinds(), stdin: stdin, policies: make(policy.Set), from: make(map[string]string)}
	var errs []error
	for _, name := range o.Filenames {
		errs = append(errs, r.read(name))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if len(o.Filenames) > 0 && len(r.policies) == 0 {
		return nil, fmt.Errorf("no policy was found: neither a ConfigMap with the label %s nor a %s file", r.kinds.Policy, regoExtension)
	}
	return r, nil
}

// resolver knows the resources of the cluster, or of Kubernetes itself, and those that
// manifests define.
func (o Options) resolver(defined []replication.Resource) (*replication.Resolver, error) {
	r := builtin()
	if o.Kubeconfig != "" {
		var err error
		if r, err = discover(o.Kubeconfig); err != nil {
			return nil, err
		}
	}
	for _, resource := range defined {
		r.Add(resource)
	}
	return r, nil
}
