package enforce

import (
	"context"

	"github.com/kube-rego/kube-rego/pkg/compile"
)

// base makes the base of a plan.
func (l *Loop) base(ctx context.Context, p plan, now inputs) (*compile.Snapshot, error) {
	l.rescue(p.rescues)
	switch p.base {
	case onRestored:
		return l.restore(ctx, now)
	case onAdopted:
		return l.adopt(ctx, now)
	case onOverlay:
		l.attempts.noteOverlaid(p.overlay)
		return l.settle(ctx, l.inForce(), p.overlay, now.resources)
	case onInForce:
	}
	return l.inForce(), nil
}

// adopt makes the set that the writer has in force. If not all of it compiles
// here, as when the writer has another version of OPA, ours stays.
func (l *Loop) adopt(ctx context.Context, now inputs) (*compile.Snapshot, error) {
	writers := now.history.Fingerprint()
	l.attempts.noteAdopted(now)
	snapshot, err := l.settle(ctx, l.config.Compiler.Bare(l.inForce()), now.history.InForce(), now.resources)
	if err != nil {
		return nil, err
	}
	if snapshot.Fingerprint() != writers || !snapshot.Compiles() {
		l.config.Log.Warn("the writer has a set in force that does not compile here; keeping ours", "fingerprint", writers)
		return l.inForce(), nil
	}
	l.config.Log.Info("the writer has another set in force; taking it over", "fingerprint", writers)
	return snapshot, nil
}

// rescue has revisions recorded that the writer has not seen.
func (l *Loop) rescue(rescues []rescue) {
	for _, r := range rescues {
		l.attempts.noteRescued(r)
		l.config.Log.Info("recording a good version that the writer has not seen", "configMap", r.name.String())
		l.config.Publisher.Rescue(r.name, r.number, r.modules)
	}
}
