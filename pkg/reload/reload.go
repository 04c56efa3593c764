// Package reload reads files again that somebody else writes: certificates, CAs,
// tokens. It touches the files that it is given, and reads them only.
package reload

import (
	"context"
	"log/slog"
	"time"
)

// interval is how often files are read again: the kubelet needs about a minute to
// bring a changed Secret into a volume, so ten seconds more are not felt.
const interval = 10 * time.Second

// Run calls read from time to time until ctx ends. read reads file again and
// reports whether what it holds has changed; after an error what it held before
// stays in use. The log calls it what.
func Run(ctx context.Context, what, file string, read func() (changed bool, err error), log *slog.Logger) {
	log = log.With("what", what, "file", file)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch changed, err := read(); {
		case err != nil:
			log.Error("a file cannot be reloaded; what it held before stays in use", "error", err)
		case changed:
			log.Info("file reloaded")
		}
	}
}
