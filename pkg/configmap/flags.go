package configmap

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
)

// CheckLabels gathers what is wrong with the labels of policies and data, each error
// naming the flag.
func CheckLabels(policyLabel, policyValue, dataLabel, dataValue string) error {
	return errors.Join(
		CheckFlag("--policy-label", policyLabel, validation.IsQualifiedName),
		CheckFlag("--policy-value", policyValue, validation.IsValidLabelValue),
		CheckFlag("--data-label", dataLabel, validation.IsQualifiedName),
		CheckFlag("--data-value", dataValue, validation.IsValidLabelValue),
	)
}

// CheckFlag returns an error that names the flag if check, which is one of
// apimachinery's, finds problems with its value.
func CheckFlag(flag, value string, check func(string) []string) error {
	problems := check(value)
	if len(problems) == 0 {
		return nil
	}
	first, _, _ := strings.Cut(problems[0], " (e.g.") // examples and a regular expression follow
	return fmt.Errorf("%s: %q: %s", flag, value, first)
}
