package status

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// The reasons of events on ConfigMaps.
const (
	reasonHeld    = "PolicyHeld"
	reasonInForce = "PolicyInForce"
)

// maxEventBytes is what the API server takes of a message
// (k8s.io/kubernetes/pkg/apis/core/validation, NoteLengthLimit).
const maxEventBytes = 1024

// newRecorder makes a recorder that writes through events until ctx ends.
func newRecorder(ctx context.Context, events typedcorev1.EventsGetter) record.EventRecorder {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: events.Events("")})
	return broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kube-rego"})
}

// announce raises an event for what is new: changes held for other reasons than
// those last told, or another version in force. What the annotation said before
// this term began was announced by whoever wrote it.
func (t *term) announce(name types.NamespacedName, want desired, have written) {
	held := !want.good()
	switch {
	case have.reported && have.text == want.text && (held || have.fingerprint == want.fingerprint):
		return
	case !have.reported && !have.news && t.reportedBefore(want, held):
		return
	case held:
		t.recorder.Event(object(name, want), corev1.EventTypeWarning, reasonHeld, heldMessage(want.held))
	default:
		t.recorder.Event(object(name, want), corev1.EventTypeNormal, reasonInForce, inForceMessage(want.newest(have)))
	}
}

// reportedBefore reports whether an earlier term has reported it, as far as one can see:
// without annotations nothing is known of good ones.
func (t *term) reportedBefore(want desired, held bool) bool {
	switch {
	case t.config.Annotation == "":
		return !held
	case want.configMap == nil:
		return false
	}
	return want.configMap.Annotations[t.config.Annotation] == want.text
}

// object is what the event is about; one that is gone has its name only.
func object(name types.NamespacedName, want desired) runtime.Object {
	if want.configMap != nil {
		return want.configMap
	}
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "ConfigMap", Namespace: name.Namespace, Name: name.Name}
}

func inForceMessage(r configmap.Revision) string {
	if r.Number == 0 {
		return "it has no keys: there is nothing to enforce"
	}
	return fmt.Sprintf("in force on every replica (revision %d)", r.Number)
}

func heldMessage(held []policy.Status) string {
	var lines []string
	for _, s := range held {
		what := "held, nothing of it is in force"
		if s.InForce == policy.Previous {
			what = "held, the version before stays in force"
		}
		if s.Deleted {
			what = "its deletion is held, it stays in force"
		}
		lines = append(lines, fmt.Sprintf("%s: %s", s.ID.Key, what))
		for _, p := range s.Problems {
			lines = append(lines, p.String())
		}
	}
	text := strings.Join(lines, "\n")
	if len(text) > maxEventBytes {
		text = strings.ToValidUTF8(text[:maxEventBytes-len("…")], "") + "…"
	}
	return text
}
