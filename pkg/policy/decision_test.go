package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

func TestCheckPath(t *testing.T) {
	for _, path := range []string{"system/main", "/system/main", "system/main/", "system", "a/b/c/d", "kubernetes/admission/deny"} {
		if err := policy.CheckPath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"", "/", "//"} {
		if err := policy.CheckPath(path); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", path)) {
			t.Errorf("%q: got error %v, want one that names it", path, err)
		}
	}
}
