package opa

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/open-policy-agent/opa/v1/logging"
)

// logger passes on what OPA's plugins log.
type logger struct{ log *slog.Logger }

// Debug logs.
func (l logger) Debug(format string, values ...any) { l.at(slog.LevelDebug, format, values) }

// Info logs one level lower: what plugins say of each poll is of interest to those who
// look for something.
func (l logger) Info(format string, values ...any) { l.at(slog.LevelDebug, format, values) }

// Warn logs.
func (l logger) Warn(format string, values ...any) { l.at(slog.LevelWarn, format, values) }

// Error logs.
func (l logger) Error(format string, values ...any) { l.at(slog.LevelError, format, values) }

func (l logger) at(level slog.Level, format string, values []any) {
	if l.log.Enabled(context.Background(), level) {
		l.log.Log(context.Background(), level, strings.TrimSuffix(fmt.Sprintf(format, values...), "."))
	}
}

// WithFields adds attributes.
func (l logger) WithFields(fields map[string]any) logging.Logger {
	log := l.log
	for key, value := range fields {
		log = log.With(key, value)
	}
	return logger{log}
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
