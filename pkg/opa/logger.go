package opa

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/open-policy-agent/opa/v1/logging"
)

// logger passes on what OPA's plugins log.
type logger struct {
	log *slog.Logger
	// info is the level of what they log as information.
	info slog.Level
}

// newLogger is for what plugins say of themselves. Their information is about each poll,
// of interest to those who look for something only.
func newLogger(log *slog.Logger) logger {
	return logger{log: log.With("component", "opa"), info: slog.LevelDebug}
}

// newConsole is for decisions and statuses that are logged to the console: a line of JSON
// each, with the names that opa run gives.
func newConsole(w io.Writer) logger {
	handler := slog.NewJSONHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.LevelKey {
			a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
		}
		return a
	}})
	return logger{log: slog.New(handler), info: slog.LevelInfo}
}

// Debug logs.
func (l logger) Debug(format string, values ...any) { l.at(slog.LevelDebug, format, values) }

// Info logs.
func (l logger) Info(format string, values ...any) { l.at(l.info, format, values) }

// Warn logs.
func (l logger) Warn(format string, values ...any) { l.at(slog.LevelWarn, format, values) }

// Error logs.
func (l logger) Error(format string, values ...any) { l.at(slog.LevelError, format, values) }

func (l logger) at(level slog.Level, format string, values []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, strings.TrimSuffix(fmt.Sprintf(format, values...), ".")) //nolint:sloglint // the message is OPA's
	}
}

// WithFields adds attributes.
func (l logger) WithFields(fields map[string]any) logging.Logger {
	log := l.log
	for key, value := range fields {
		log = log.With(key, value)
	}
	return logger{log: log, info: l.info}
}

// GetLevel is OPA's word for the level.
func (l logger) GetLevel() logging.Level {
	switch {
	case l.log.Enabled(context.Background(), slog.LevelDebug):
		return logging.Debug
	case l.log.Enabled(context.Background(), slog.LevelInfo):
		return logging.Info
	case l.log.Enabled(context.Background(), slog.LevelWarn):
		return logging.Warn
	}
	return logging.Error
}

// SetLevel does nothing: --log-level decides.
func (logger) SetLevel(logging.Level) {}
