package certs

import (
	"context"
	"log/slog"
	"time"
)

// reloadInterval is how often files are read again: the kubelet needs about a
// minute to bring a changed Secret into a volume, so ten seconds more are not
// felt.
const reloadInterval = 10 * time.Second

// keepNew reloads what, which is read from file, from time to time until ctx
// ends. What cannot be read changes nothing.
func keepNew(ctx context.Context, what, file string, reload func() (changed bool, err error), log *slog.Logger) {
	log = log.With("what", what, "file", file)
	ticker := time.NewTicker(reloadInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch changed, err := reload(); {
		case err != nil:
			log.Error("a file cannot be reloaded; what it held before stays in use", "error", err)
		case changed:
			log.Info("file reloaded")
		}
	}
}
