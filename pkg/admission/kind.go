package admission

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	imagepolicyv1alpha1 "k8s.io/api/imagepolicy/v1alpha1"

	"github.com/kube-rego/kube-rego/pkg/policy"
)

// kind is one kind of review that an API server sends to a webhook.
type kind struct {
	name     string
	group    string
	versions []string
	// describe says what a request asks about, or why it is malformed.
	describe func(input map[string]any) (Request, error)
	// field is where the answer stands beside apiVersion and kind, and answer makes it
	// of what the policies gave.
	field  string
	answer func(config Config, review review, decision policy.Decision) (map[string]any, error)
	// decoded is what the API server decodes the answer to.
	decoded func() any
}

const (
	subjectAccessReview = "SubjectAccessReview"
	// responseField is where the answer to an AdmissionReview stands.
	responseField = "response"
)

// fail words the error for who sent a review: the user of an AdmissionReview reads it, and
// can tell the id to who can find out more.
func (k kind) fail(err error, decisionID string) error {
	if k.field != responseField {
		return err
	}
	return fmt.Errorf("%w (decision %s)", err, decisionID)
}

// kinds are the reviews that are answered.
var kinds = []kind{
	{
		name: "AdmissionReview", group: "admission.k8s.io", versions: []string{"v1", "v1beta1"},
		describe: describeAdmission,
		field:    responseField, answer: normalise,
		decoded: func() any { return new(admissionv1.AdmissionReview) },
	},
	{
		name: subjectAccessReview, group: "authorization.k8s.io", versions: []string{"v1", "v1beta1"},
		describe: describeAccess,
		field:    "status", answer: accessStatus,
		decoded: func() any { return new(authorizationv1.SubjectAccessReview) },
	},
	{
		name: "ImageReview", group: "imagepolicy.k8s.io", versions: []string{"v1alpha1"},
		describe: describeImages,
		field:    "status", answer: imageStatus,
		decoded: func() any { return new(imagepolicyv1alpha1.ImageReview) },
	},
}

func findKind(apiVersion, name string) (kind, error) {
	group, version, _ := strings.Cut(apiVersion, "/")
	var known []string
	for _, k := range kinds {
		if k.name == name && k.group == group && slices.Contains(k.versions, version) {
			return k, nil
		}
		known = append(known, fmt.Sprintf("%s of %s/%s", k.name, k.group, strings.Join(k.versions, " or ")))
	}
	last := len(known) - 1
	return kind{}, invalid("apiVersion is %q and kind is %q; want %s or %s", apiVersion, name, strings.Join(known[:last], ", "), known[last])
}

func describeAdmission(input map[string]any) (Request, error) {
	request, ok := input["request"].(map[string]any)
	if !ok {
		return Request{}, invalid("request is %s, want an object", jsonType(input["request"]))
	}
	kind, user := object(request["kind"]), object(request["userInfo"])
	about := Request{
		UID:       text(request["uid"]),
		Operation: text(request["operation"]),
		Kind:      strings.TrimSuffix(text(kind["kind"])+"/"+text(request["subResource"]), "/"),
		Namespace: text(request["namespace"]),
		Name:      text(request["name"]),
		User:      text(user["username"]),
	}
	if about.UID == "" {
		return Request{}, invalid("request.uid is %s, want one that is not empty", jsonType(request["uid"]))
	}
	return about, nil
}

func describeAccess(input map[string]any) (Request, error) {
	spec, err := specOf(input)
	if err != nil {
		return Request{}, err
	}
	user := text(spec["user"])
	if other := object(spec["nonResourceAttributes"]); other != nil {
		return Request{Operation: text(other["verb"]), Name: text(other["path"]), User: user}, nil
	}
	resource := object(spec["resourceAttributes"])
	return Request{
		Operation: text(resource["verb"]),
		Kind:      strings.TrimSuffix(text(resource["resource"])+"/"+text(resource["subresource"]), "/"),
		Namespace: text(resource["namespace"]),
		Name:      text(resource["name"]),
		User:      user,
	}, nil
}

// describeImages knows no more than that a pod of some namespace is to run them.
func describeImages(input map[string]any) (Request, error) {
	spec, err := specOf(input)
	return Request{Kind: "Pod", Namespace: text(spec["namespace"])}, err
}

func specOf(input map[string]any) (map[string]any, error) {
	spec, ok := input["spec"].(map[string]any)
	if !ok {
		return nil, invalid("spec is %s, want an object", jsonType(input["spec"]))
	}
	return spec, nil
}

// object is v if it is an object.
func object(v any) map[string]any {
	o, _ := v.(map[string]any)
	return o
}
