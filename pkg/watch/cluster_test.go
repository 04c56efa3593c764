package watch

import (
	"errors"
	"fmt"
	"io"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A watch that ends as watches do is no reason to say that policies cannot be
// read.
func TestOnlyRealTroubleIsTold(t *testing.T) {
	for sentence, test := range map[string]struct {
		err     error
		routine bool
	}{
		"the server closed the watch":       {io.EOF, true},
		"the connection broke off":          {fmt.Errorf("watching: %w", io.ErrUnexpectedEOF), true},
		"the resource version is too old":   {apierrors.NewResourceExpired("too old resource version"), true},
		"the version is gone":               {&apierrors.StatusError{ErrStatus: metav1.Status{Reason: metav1.StatusReasonGone}}, true},
		"we may not":                        {apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, "", errors.New("no")), false},
		"the API server is in some trouble": {apierrors.NewInternalError(errors.New("etcd")), false},
	} {
		if got := isRoutine(test.err); got != test.routine {
			t.Errorf("%s: routine is %t, want %t", sentence, got, test.routine)
		}
	}
}
