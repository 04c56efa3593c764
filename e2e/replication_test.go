package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// allowReading gives kube-rego the right to list and watch resources, named resource.group, until the test ends or the
// function that is returned is called.
func allowReading(t *testing.T, resources ...string) (forbid func()) {
	t.Helper()
	var forbids []func()
	for _, resource := range resources {
		forbids = append(forbids, allowReadingOne(t, schema.ParseGroupResource(resource)))
	}
	return func() {
		for _, forbid := range forbids {
			forbid()
		}
	}
}

func allowReadingOne(t *testing.T, resource schema.GroupResource) (forbid func()) {
	t.Helper()
	rbac := cluster.Client().RbacV1()
	name := "read-" + resource.String()
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{resource.Group}, Resources: []string{resource.Resource}, Verbs: []string{"list", "watch"}}},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: opa, Name: "kube-rego"}},
	}
	// While kube-rego is not ready nobody may write, unless the webhook says so.
	eventually(t, "the ClusterRole "+name, func(ctx context.Context) error {
		_, err := rbac.ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
		return err
	})
	eventually(t, "the ClusterRoleBinding "+name, func(ctx context.Context) error {
		_, err := rbac.ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
		return err
	})
	given := true
	forbid = func() {
		if !given {
			return
		}
		given = false
		// The role can stay without its binding, but the next test wants to create it.
		for _, err := range []error{
			rbac.ClusterRoleBindings().Delete(context.Background(), name, metav1.DeleteOptions{}),
			rbac.ClusterRoles().Delete(context.Background(), name, metav1.DeleteOptions{}),
		} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(forbid)
	allowed(t, resource, true)
	return func() { forbid(); allowed(t, resource, false) }
}

// allowed waits until the API server knows whether kube-rego may watch a resource: it learns of rights by a watch of its own.
func allowed(t *testing.T, resource schema.GroupResource, wanted bool) {
	t.Helper()
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:               "system:serviceaccount:opa:kube-rego",
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "watch", Group: resource.Group, Resource: resource.Resource},
	}}
	eventually(t, fmt.Sprintf("the right to watch %s is %v", resource, wanted), func(ctx context.Context) error {
		answer, err := cluster.Client().AuthorizationV1().SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
		if err == nil && answer.Status.Allowed != wanted {
			err = fmt.Errorf("it is not: %s", strings.TrimSpace(answer.Status.Reason))
		}
		return err
	})
}
