package daemon

import (
	"context"
	"errors"
	"testing"
)

// client-go may sleep for half a minute when the API server does not answer.
func TestTheEndDoesNotWaitForWhatSleeps(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	asleep := make(chan struct{})
	defer close(asleep)
	sleeps := func(context.Context, func()) error {
		cancel()
		<-asleep
		return nil
	}
	if err := abandoned(ctx, sleeps, func() {}); err != nil {
		t.Error(err)
	}
	failed := errors.New("it cannot be watched")
	if err := abandoned(t.Context(), func(context.Context, func()) error { return failed }, func() {}); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}
