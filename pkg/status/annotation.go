package status

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	corev1 "k8s.io/api/core/v1"
)

const (
	// patience is how long an ok of the version before stays while replicas catch
	// up. They take milliseconds, so that a good edit costs no write at all.
	patience = time.Second
	// lookAgain is how often a status that waits for replicas is looked at: one
	// that is gone raises no event.
	lookAgain = time.Second
	// Somebody who takes a status away gets it back at once, and the same one
	// again only after firstRewrite, then twice that, up to lastRewrite: a person
	// does not notice, and a tool that keeps resetting it causes no loop.
	firstRewrite = 10 * time.Second
	lastRewrite  = 10 * time.Minute
	// pageSize is how many ConfigMaps the sweep lists at once, as kubectl does.
	pageSize = 500
)

// writes are those of one annotation in this term.
type writes struct {
	text    string // last written
	on      string // the version of the ConfigMap that it was written on
	last    time.Time
	repeats int // of the same text on the same modules
	modules string
}

// delay is how long the same text waits before it is written once more.
func (w writes) delay(text, modules string) time.Duration {
	if w.text != text || w.modules != modules || w.repeats == 0 {
		return 0
	}
	pause := firstRewrite << min(w.repeats-1, 10)
	return min(pause, lastRewrite) - time.Since(w.last)
}

func (w writes) with(text, modules, on string) writes {
	next := writes{text: text, modules: modules, on: on, last: time.Now()}
	if w.text == text && w.modules == modules && time.Since(w.last) < 2*lastRewrite {
		next.repeats = w.repeats + 1
	}
	return next
}

// annotate writes the text where it differs, on the version of the ConfigMap that
// it speaks of: if its author was faster, the next report is on its way. It
// reports whether the text is there.
func (t *term) annotate(ctx context.Context, name types.NamespacedName, want desired, text string, have *written) (bool, error) {
	cm := want.configMap
	switch {
	case t.config.Annotation == "":
		return true, nil
	case cm == nil:
		return true, t.annotateOther(ctx, name, text)
	case cm.Annotations[t.config.Annotation] == text:
		return true, nil
	case cm.ResourceVersion == have.writes.on:
		return have.writes.text == text, nil // written already; the event is on its way
	}
	if delay := have.writes.delay(text, want.fingerprint); delay > 0 {
		t.queue.AddAfter(name, delay)
		return false, nil
	}
	written, err := t.patch(ctx, name, cm.ResourceVersion, text)
	if written {
		have.writes = have.writes.with(text, want.fingerprint, cm.ResourceVersion)
	}
	return written, err
}

// annotateOther sees to the annotation on an object that is no policy any more:
// the text, or none if that is empty.
func (t *term) annotateOther(ctx context.Context, name types.NamespacedName, text string) error {
	cm, err := t.config.ConfigMaps.ConfigMaps(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading ConfigMap %s: %w", name, err)
	}
	if t.config.Kinds.Match(cm.Labels) || cm.Annotations[t.config.Annotation] == text {
		return nil
	}
	written, err := t.patch(ctx, name, cm.ResourceVersion, text)
	if err == nil && !written {
		err = fmt.Errorf("ConfigMap %s has changed meanwhile", name) // no event will tell us
	}
	return err
}

// patch writes the annotation, or takes it away if the text is empty, and reports
// whether it did: not if the ConfigMap has changed meanwhile or is gone.
func (t *term) patch(ctx context.Context, name types.NamespacedName, version, text string) (bool, error) {
	var value any // nil removes the key
	if text != "" {
		value = text
	}
	body, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": version,
		"annotations":     map[string]any{t.config.Annotation: value},
	}})
	if err != nil {
		return false, fmt.Errorf("encoding the status: %w", err)
	}
	_, err = t.config.ConfigMaps.ConfigMaps(name.Namespace).
		Patch(ctx, name.Name, types.MergePatchType, body, metav1.PatchOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("patching the annotation: %w", err)
	}
	return true, nil
}

// takeLeave takes away all that was written for a ConfigMap that is no policy any
// more and of which nothing is in force. The API server has the last word on that:
// the revisions of a policy may be seen here before the policy itself.
func (t *term) takeLeave(ctx context.Context, name types.NamespacedName, want desired) error {
	cm, err := t.config.ConfigMaps.ConfigMaps(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return fmt.Errorf("reading ConfigMap %s: %w", name, err)
	case t.config.Kinds.Match(cm.Labels):
		return nil // the event is on its way
	}
	if t.config.Annotation != "" {
		if err := t.annotateOther(ctx, name, ""); err != nil {
			return err
		}
	}
	if err := t.removeRevisions(ctx, want.revisions); err != nil {
		return err
	}
	t.forgotten(name)
	return nil
}

// sweep takes the status off ConfigMaps whose label went while nobody was
// looking. Only their metadata cross the network, once in a term.
func (t *term) sweep(ctx context.Context) error {
	if t.config.Annotation == "" {
		return nil
	}
	configMaps := corev1.SchemeGroupVersion.WithResource("configmaps")
	for _, namespace := range t.config.Namespaces {
		options := metav1.ListOptions{Limit: pageSize}
		for {
			page, err := t.config.Metadata.Resource(configMaps).Namespace(namespace).List(ctx, options)
			if err != nil {
				return fmt.Errorf("listing ConfigMaps in namespace %q: %w", namespace, err)
			}
			for _, item := range page.Items {
				if err := t.sweepOne(ctx, item); err != nil {
					return err
				}
			}
			if options.Continue = page.Continue; page.Continue == "" {
				break
			}
		}
	}
	return nil
}

func (t *term) sweepOne(ctx context.Context, item metav1.PartialObjectMetadata) error {
	name := types.NamespacedName{Namespace: item.Namespace, Name: item.Name}
	_, annotated := item.Annotations[t.config.Annotation]
	if !annotated || t.config.Kinds.Match(item.Labels) || t.isHeld(name) {
		return nil
	}
	return t.annotateOther(ctx, name, "")
}

// isHeld reports whether something of the ConfigMap is in force although it is no
// policy any more.
func (t *term) isHeld(name types.NamespacedName) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.desired[name].modules) > 0
}
