package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/kube-rego/kube-rego/pkg/admission"
	"github.com/kube-rego/kube-rego/pkg/status"
)

// runaways finds out which policies took all the time of a review. That is to make the
// decision once more, so it is done beside the reviews, one at a time.
type runaways struct {
	// answers has one place: while one is looked at, further ones are only counted.
	answers chan admission.Answer
	// ranOut counts a module.
	ranOut func(module string)
	// alarm tells the author of a module; nil where there is nobody to tell.
	alarm func(module, message string)
	log   *slog.Logger
}

const (
	// suspectAfter is how long a decision is made once more until it is looked at where
	// it is: more than a thousand times as long as one takes as a rule.
	suspectAfter = time.Second
	// suspectEvery is how often at most, so that it takes a tenth of one processor.
	suspectEvery = 10 * time.Second
)

// add hands over a review whose policies ran out of time. It returns at once.
func (r *runaways) add(answer admission.Answer) {
	if answer.Witness == nil {
		return
	}
	select {
	case r.answers <- answer:
	default:
	}
}

func (r *runaways) run(ctx context.Context) {
	wait.UntilWithContext(ctx, func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case answer := <-r.answers:
			r.look(ctx, answer)
		}
	}, suspectEvery)
}

// look names who is being evaluated when the time is up.
func (r *runaways) look(ctx context.Context, answer admission.Answer) {
	limited, cancel := context.WithTimeout(ctx, suspectAfter)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // as a review lives through a panic of OPA
			r.log.Error("panic while looking for a policy that ran out of time", "panic", fmt.Sprint(p))
		}
	}()
	suspects := answer.Witness.Suspects(limited)
	if len(suspects) == 0 || ctx.Err() != nil {
		return // it was the machine that had no time
	}
	module := suspects[0]
	r.ranOut(module)
	r.log.Warn("policy ran out of time", "decisionID", answer.DecisionID, "module", module, "calledBy", suspects[1:])
	if r.alarm != nil {
		message := fmt.Sprintf("%s was being evaluated when the time of an admission review was up", module)
		if callers := suspects[1:]; len(callers) > 0 {
			message += ", called by " + strings.Join(callers, ", ")
		}
		r.alarm(module, fmt.Sprintf("%s (decision %s)", message, answer.DecisionID))
	}
}

// followRunaways names runaway policies until ctx ends, where there is a cluster by events
// too.
func (d *daemon) followRunaways(ctx context.Context) {
	if d.cluster != nil {
		alarms := status.NewAlarms(ctx, d.cluster.events)
		d.runaways.alarm = func(module, message string) {
			if cm := d.loop.configMapOf(module); cm != nil {
				alarms.Timeout(cm, message)
			}
		}
	}
	d.runaways.run(ctx)
}

// configMapOf is the ConfigMap of a module, as it is now; nil if it is in none.
func (l *loop) configMapOf(module string) *corev1.ConfigMap {
	configMaps, err := l.source.ConfigMaps()
	if err != nil && configMaps == nil {
		return nil
	}
	for _, cm := range configMaps {
		if strings.HasPrefix(module, cm.Namespace+"/"+cm.Name+"/") {
			return cm
		}
	}
	return nil
}
