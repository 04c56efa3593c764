package status

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// reasonTimeout is the reason of the event on a policy that took too long.
const reasonTimeout = "PolicyTimeout"

// Alarms tell authors what their policies do on this replica, whoever is elected to
// write statuses. Events of one kind on one ConfigMap are counted up, and bounded by
// client-go: 25 at once and then one in five minutes.
type Alarms struct{ recorder record.EventRecorder }

// NewAlarms makes alarms that are raised through events until ctx ends.
func NewAlarms(ctx context.Context, events typedcorev1.EventsGetter) *Alarms {
	return &Alarms{recorder: newRecorder(ctx, events)}
}

// Timeout raises the event that a policy of a ConfigMap took too long.
func (a *Alarms) Timeout(configMap *corev1.ConfigMap, message string) {
	a.recorder.Event(configMap, corev1.EventTypeWarning, reasonTimeout, message[:min(len(message), maxEventBytes)])
}
