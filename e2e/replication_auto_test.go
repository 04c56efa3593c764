package e2e_test

import (
	"context"
	"fmt"
	"testing"
)

// What nobody reads any more is gone from data, and nobody can take the place of what somebody reads.
func TestObjectsAreInDataAsLongAsAPolicyReadsThem(t *testing.T) {
	allowReading(t, networkPolicies)
	deleteObjects(t, "default", "networkpolicy", "one")
	applyObjects(t, networkPolicy("default", "one", "1"))
	_, instance := install(t, "--replicate-auto", "--replicate-path=cluster")
	createAnnotated(t, policy(opa, "main", "main", entrypoint))
	// It names no resource, so that it makes nothing replicated and sees what is there.
	create(t, policy(opa, "any", "main", denyTelling("any", `{k: count(v) | some k in ["networkpolicies"]; v := data.cluster[k]}`)))
	annotation(t, opa, "any", contains(`"status":"warning"`, "does not say which resource is read", `"file":"opa/any/main","row":3`))
	tells(t, "any", `[{}]`)

	create(t, policy(opa, "tell", "main", denyTelling("tell", "count(data.cluster.networkpolicies)")))
	tells(t, "tell", `[1]`)
	stillTells(t, "any", `[{"networkpolicies":1}]`)
	for series, want := range map[string]float64{
		`kube_rego_replicated_objects{path="data.cluster.networkpolicies",resource="networking.k8s.io/v1/networkpolicies"}`: 1,
		`kube_rego_replicated_resources{state="loaded"}`:                                                                    1,
		`kube_rego_replicated_resources{state="failed"}`:                                                                    0,
	} {
		eventually(t, series, func(ctx context.Context) error {
			got, err := metric(ctx, instance, series)
			if err == nil && got != want {
				err = fmt.Errorf("it is %v, want %v", got, want)
			}
			return err
		})
	}

	create(t, policy(opa, "taker", "main", "package cluster.networkpolicies\n\nx := 1\n"))
	annotation(t, opa, "taker", contains(`"inForce":"none"`, "has the objects of the cluster that opa/tell/main reads", `"row":1`))
	stillTells(t, "tell", `[1]`)
	remove(t, opa, "taker")

	remove(t, opa, "tell")
	tells(t, "any", `[{}]`)
	notReplicated(t, instance, "data.cluster.networkpolicies")
}
