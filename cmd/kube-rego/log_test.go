package main

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestLogFormats(t *testing.T) {
	for _, test := range []struct {
		name string
		with logFormat
		want string // of the line, behind the time
	}{
		{"text", formatText, ` level=WARN msg="no decision" decisionID=D1 took=1.5ms error="two words"` + "\n"},
		{"JSON", formatJSON, `,"level":"WARN","msg":"no decision","decisionID":"D1","took":"1.5ms","error":"two words"}` + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var lines bytes.Buffer
			log := newLog(&lines, test.with, slog.LevelInfo)
			log.Debug("not worth a line")
			log.Warn("no decision", "decisionID", "D1", "took", 1500*time.Microsecond, "error", errors.New("two words"))
			if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, test.want) {
				t.Errorf("got  %swant …%s", got, test.want)
			}
		})
	}
}
