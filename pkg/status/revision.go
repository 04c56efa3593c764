package status

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedappsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"

	"github.com/kube-rego/kube-rego/pkg/configmap"
)

// historyLimit is how many revisions of a ConfigMap are kept: as many as of a
// Deployment (k8s.io/api/apps/v1, DeploymentSpec.RevisionHistoryLimit).
const historyLimit = 10

// newest is the last revision of the ConfigMap: of those that the informer knows
// and that this term has written.
func (d desired) newest(have written) configmap.Revision {
	newest := have.revision
	if len(d.revisions) > 0 && d.revisions[0].Number >= newest.Number {
		newest = d.revisions[0]
	}
	return newest
}

// knows reports whether the informer has seen a revision that this term wrote, or
// a later one.
func (d desired) knows(written configmap.Revision) bool {
	return written.Number > 0 && len(d.revisions) > 0 && d.revisions[0].Number >= written.Number
}

// recorded reports whether the newest revision is what is in force. Where there
// was never anything in force, there is nothing to record.
func (d desired) recorded(have written) bool {
	newest := d.newest(have)
	if newest.Number == 0 {
		return len(d.modules) == 0
	}
	return newest.Fingerprint == d.fingerprint
}

// errBehind says that the ConfigMap is known here in an older version than was
// recorded: its informer has not caught up yet.
var errBehind = errors.New("a later version was recorded than the one known here; waiting for it")

// behind reports whether what is in force was seen in an older version of the
// ConfigMap than what was recorded last.
func (d desired) behind(have written) bool {
	if d.configMap == nil {
		return false
	}
	for _, m := range d.newest(have).Modules {
		if m.Created.Equal(d.configMap.CreationTimestamp.Time) && m.ObjectVersion > configmap.ObjectVersion(d.configMap) {
			return true
		}
	}
	return false
}

// record writes what is in force of a ConfigMap as its next revision, unless the
// last one says the same, and removes those beyond the limit.
//
// The revisions have no owner reference, and are not in the namespace of the
// ConfigMap: they must outlive a ConfigMap whose deletion is held, also with its
// namespace, and one that is deleted while nobody is there to hold that.
func (t *term) record(ctx context.Context, name types.NamespacedName, want desired, have *written) error {
	if want.recorded(*have) {
		return t.removeBeyond(ctx, want, historyLimit)
	}
	if want.behind(*have) {
		return errBehind
	}
	next := configmap.NewRevision(t.config.Namespace, name.Namespace, name.Name, want.newest(*have).Number+1, want.modules)
	err := create(ctx, t.config.Revisions, next)
	if apierrors.IsAlreadyExists(err) {
		// The writer before us was faster, or somebody else has an object of this
		// name. The next attempt takes the next number.
		have.revision = configmap.Revision{Number: next.Number}
	}
	if err != nil {
		return fmt.Errorf("recording revision %d of what is in force: %w", next.Number, err)
	}
	have.revision = next
	return t.removeBeyond(ctx, want, historyLimit-1) // the next one is not among them yet
}

// removeBeyond leaves so many revisions, the newest.
func (t *term) removeBeyond(ctx context.Context, want desired, limit int) error {
	return t.removeRevisions(ctx, want.revisions[min(limit, len(want.revisions)):])
}

func create(ctx context.Context, revisions typedappsv1.ControllerRevisionsGetter, revision configmap.Revision) error {
	object, err := revision.Object()
	if err != nil {
		return err
	}
	_, err = revisions.ControllerRevisions(revision.Home).Create(ctx, object, metav1.CreateOptions{})
	return err
}

func (t *term) removeRevisions(ctx context.Context, revisions []configmap.Revision) error {
	var errs []error
	for _, r := range revisions {
		err := t.config.Revisions.ControllerRevisions(r.Home).Delete(ctx, r.ObjectName, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("removing an old revision: %w", err))
		}
	}
	return errors.Join(errs...)
}
