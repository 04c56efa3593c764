package overview

import (
	"context"
	"fmt"
	"io"
	"time"
)

// inexact goes to whoever may be about to save what is not the text.
const inexact = "kube-rego: characters that a terminal would act on are replaced in this text; -o json has it exactly\n"

// Run reads the cluster and writes to stdout what the options ask for, and to
// stderr if that is not exact. An error says what could not be read.
func Run(ctx context.Context, o Options, stdout, stderr io.Writer) error {
	if err := o.Validate(); err != nil {
		return err
	}
	client, err := connect(o.Kubeconfig)
	if err != nil {
		return err
	}
	r := &reader{Options: o, client: client}
	switch {
	case o.Revision != nil:
		return r.printRevision(ctx, *o.Revision, stdout, stderr)
	case o.History:
		return r.printHistory(ctx, stdout)
	}
	now := time.Now()
	overview, err := r.overview(ctx, now)
	if err != nil {
		return err
	}
	return r.print(stdout, overview, now)
}

// printable is what can be printed in both forms.
type printable interface{ Text(now time.Time) string }

func (r *reader) print(stdout io.Writer, p printable, now time.Time) error {
	text := p.Text(now)
	if r.Output == JSON {
		var err error
		if text, err = encode(p); err != nil {
			return err
		}
	}
	_, err := io.WriteString(stdout, text)
	return err
}

func (r *reader) printHistory(ctx context.Context, stdout io.Writer) error {
	history, err := r.history(ctx)
	if err != nil {
		return err
	}
	if err := r.print(stdout, history, time.Now()); err != nil {
		return err
	}
	unreadable := 0
	for _, revision := range history.Revisions {
		if revision.Error != "" {
			unreadable++
		}
	}
	if unreadable > 0 {
		return fmt.Errorf("of %d revisions of ConfigMap %s/%s %d could not be read", len(history.Revisions), r.Namespace, r.Name, unreadable)
	}
	return nil
}

func (r *reader) printRevision(ctx context.Context, number int64, stdout, stderr io.Writer) error {
	revision, err := r.revision(ctx, number)
	if err != nil {
		return err
	}
	text, exact := sourceText(revision)
	if r.Output == JSON {
		exact = true
		if text, err = encode(manifest(revision, r.labels(revision))); err != nil {
			return err
		}
	}
	if _, err = io.WriteString(stdout, text); err == nil && !exact {
		_, err = io.WriteString(stderr, inexact)
	}
	return err
}
