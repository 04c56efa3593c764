package main

import (
	"fmt"
	"io"
	"log/slog"
)

// logFormat is how lines of the log are written.
type logFormat string

const (
	formatText logFormat = "text"
	formatJSON logFormat = "json"
)

// MarshalText is its name.
func (f logFormat) MarshalText() ([]byte, error) { return []byte(f), nil }

// UnmarshalText takes a name.
func (f *logFormat) UnmarshalText(text []byte) error {
	switch given := logFormat(text); given {
	case formatText, formatJSON:
		*f = given
		return nil
	}
	return fmt.Errorf("%q is neither text nor json", text)
}

// newLog is a log that writes lines to w.
func newLog(w io.Writer, format logFormat, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == formatJSON {
		options.ReplaceAttr = durationAsText
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// durationAsText has a duration look the same in both formats: in JSON it would be a
// number of nanoseconds.
func durationAsText(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
