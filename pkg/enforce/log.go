package enforce

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// logActivated logs which modules are in force from now on.
func (l *Loop) logActivated(next *compile.Snapshot, report policy.Report, took time.Duration) {
	modules, entrypoint := len(next.IDs()), l.config.Entrypoint
	l.config.Log.Info("policy set in force", "fingerprint", report.Fingerprint, "modules", modules, "held", len(report.Held()), "took", took)
	if !next.Defines(entrypoint) {
		l.config.Log.Warn("no policy in force defines the entrypoint: there is no decision, and every review is refused",
			"entrypoint", entrypoint, "modules", modules)
	}
	if _, instead := next.BuiltinEntrypoint(); instead {
		l.config.Log.Warn("a policy of the package system is held and nothing of it in force: the built-in entrypoint answers instead", "entrypoint", entrypoint)
	}
}

// logHeld logs which modules came to be held and which no longer are.
func (l *Loop) logHeld(ctx context.Context, before, after policy.Report) {
	was := make(map[policy.ID]policy.Status, len(before.Modules))
	for _, s := range before.Modules {
		was[s.ID] = s
	}
	for _, s := range after.Modules {
		switch {
		case s.Pending():
		case s.Held() && !slices.Equal(s.Problems, was[s.ID].Problems):
			l.logProblems(ctx, s)
		case !s.Held() && was[s.ID].Held() && !was[s.ID].Pending():
			l.config.Log.Info("module in force again", "module", s.ID.String())
		}
	}
}

func (l *Loop) logProblems(ctx context.Context, s policy.Status) {
	level := slog.LevelWarn
	if s.InForce == policy.None {
		level = slog.LevelError // nothing of what its author wants is enforced
	}
	log := l.config.Log
	if s.Deleted {
		log = log.With("deleted", true)
	}
	log.Log(ctx, level, "module held", "module", s.ID.String(), "inForce", s.InForce, "problems", problems(s))
	for _, p := range s.Problems {
		if p.Source != "" {
			log.Log(ctx, level, "module held at", "module", s.ID.String(), "row", p.Row, "col", p.Col, "source", p.Source, "caret", p.Caret)
		}
	}
}

// problems returns the problems of a module in one line.
func problems(s policy.Status) string {
	all := make([]string, 0, len(s.Problems))
	for _, p := range s.Problems {
		all = append(all, p.String())
	}
	return strings.Join(all, "; ")
}

// sourceFailed logs when an error of the source comes, changes or goes.
func (l *Loop) sourceFailed(err error) {
	before := l.condition.setSourceError(err)
	switch {
	case err != nil && (before == nil || before.Error() != err.Error()):
		l.config.Log.Error("policies cannot be read; what was read before stays in force", "error", err)
	case err == nil && before != nil:
		l.config.Log.Info("policies can be read again")
	}
}
