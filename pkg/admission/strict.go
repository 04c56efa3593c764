package admission

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// strictly reports the first thing in an answer that is not right as it is.
func strictly(answer, response map[string]any, review review) error {
	for _, f := range []struct{ name, want string }{{"apiVersion", review.apiVersion}, {"kind", review.kind.name}} {
		if text(answer[f.name]) != f.want {
			return fmt.Errorf("%s is %s, want %q", f.name, describe(answer[f.name]), f.want)
		}
	}
	if text(response["uid"]) != review.uid {
		return fmt.Errorf("response.uid is %s, want that of the request", describe(response["uid"]))
	}
	for _, check := range []func(map[string]any) error{strictStatus, strictPatch, strictWarnings, strictAnnotations} {
		if err := check(response); err != nil {
			return err
		}
	}
	return nil
}

// describe returns a text as it is, and the type of everything else.
func describe(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	return jsonType(v)
}

func strictStatus(response map[string]any) error {
	status, err := statusOf(response)
	if err != nil || response["allowed"] != false {
		return err
	}
	if text(status["message"]) == "" {
		return errors.New("response.status.message is missing: a denial must say why")
	}
	if code, err := statusCode(status["code"]); err != nil || status["code"] != code && status["code"] != nil {
		return errors.New("response.status.code is not the number of an HTTP error")
	}
	return nil
}

func strictPatch(response map[string]any) error {
	patch, ok := response["patch"].(string)
	switch {
	case response["patch"] == nil && response["patchType"] == nil:
		return nil
	case !ok:
		return fmt.Errorf("response.patch is %s, want base64", jsonType(response["patch"]))
	case response["patchType"] != patchTypeJSON:
		return fmt.Errorf("response.patchType is %s, want %q", describe(response["patchType"]), patchTypeJSON)
	case response["allowed"] != true:
		return errors.New("response.patch stands beside a denial")
	}
	if decoded, err := base64.StdEncoding.DecodeString(patch); err != nil || !strings.HasPrefix(strings.TrimSpace(string(decoded)), "[") {
		return errors.New("response.patch is not the base64 of a JSON patch")
	}
	return nil
}

func strictWarnings(response map[string]any) error {
	given := response["warnings"]
	warnings, ok := given.([]any)
	if given != nil && !ok {
		return fmt.Errorf("response.warnings is %s, want an array", jsonType(given))
	}
	for n, warning := range warnings {
		if s, ok := warning.(string); !ok || s != printable(s) {
			return fmt.Errorf("response.warnings[%d] is no text that the API server shows", n)
		}
	}
	return nil
}

func strictAnnotations(response map[string]any) error {
	given := response["auditAnnotations"]
	annotations, ok := given.(map[string]any)
	if given != nil && !ok {
		return fmt.Errorf("response.auditAnnotations is %s, want an object", jsonType(given))
	}
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if _, ok := annotations[key].(string); !ok {
			return fmt.Errorf("response.auditAnnotations[%q] is %s, want a string", key, jsonType(annotations[key]))
		}
		if annotationKey(key) != key {
			return fmt.Errorf("response.auditAnnotations[%q]: the API server takes no such key", key)
		}
	}
	return nil
}
