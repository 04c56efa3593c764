package daemon_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// metrics is what Prometheus reads.
func (d *running) metrics() string {
	d.t.Helper()
	status, body := d.get("/metrics")
	if status != 200 {
		d.t.Fatalf("/metrics is %d: %s", status, body)
	}
	return string(body)
}

// metric is the one value of a metric whose labels, if any, are part of the name.
func (d *running) metric(name string) float64 {
	d.t.Helper()
	body := d.metrics()
	matches := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(name)+` (\S+)$`).FindAllStringSubmatch(body, -1)
	if len(matches) != 1 {
		d.t.Fatalf("there are %d lines of %s in %s", len(matches), name, body)
	}
	value, err := strconv.ParseFloat(matches[0][1], 64)
	if err != nil {
		d.t.Fatal(err)
	}
	return value
}

// has fails the test unless the metric has that value.
func (d *running) has(name string, want float64) {
	d.t.Helper()
	if got := d.metric(name); got != want {
		d.t.Errorf("%s is %v, want %v", name, got, want)
	}
}

func TestMetricsFollowThePolicySet(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl})
	d.awaitReady()
	const (
		generation = "kube_rego_policy_set_generation"
		since      = "kube_rego_policy_set_activated_timestamp_seconds"
		propagated = "kube_rego_propagation_duration_seconds_count"
		compiled   = "kube_rego_compile_duration_seconds_count"
	)
	held := func(change string) string { return `kube_rego_held_changes{change="` + change + `"}` }

	// info is the fingerprint that the metric tells.
	info := func() string {
		matches := regexp.MustCompile(`(?m)^kube_rego_policy_set_info\{fingerprint="(\w+)"\} 1$`).FindAllStringSubmatch(d.metrics(), -1)
		if len(matches) != 1 {
			t.Fatalf("%d policy sets are in force by the metric", len(matches))
		}
		return matches[0][1]
	}
	first := d.await("it is in force", func(p statusPage) bool { return p.Fingerprint != "" }).Fingerprint
	if got := info(); got != first {
		t.Errorf("the fingerprint is %s, want %s", got, first)
	}
	d.has(generation, 1)
	d.has(propagated, 0) // a start is no change
	began := d.metric(since)
	if at := time.UnixMilli(int64(began * 1000)); at.After(time.Now()) || at.Before(time.Now().Add(-time.Hour)) {
		t.Errorf("the set is in force since %s", at)
	}
	compilations := d.metric(compiled)
	if compilations == 0 {
		t.Error("no compilation was measured")
	}

	d.edit("images", strings.ReplaceAll(noCurl, "curl", "wget"))
	second := d.await("the edit is in force", func(p statusPage) bool { return p.Fingerprint != first }).Fingerprint
	if got := info(); got != second {
		t.Errorf("the fingerprint is %s, want %s", got, second)
	}
	d.has(generation, 2)
	d.has(propagated, 1)
	if now := d.metric(since); now <= began {
		t.Errorf("the second set is in force since %v, the first since %v", now, began)
	}
	if now := d.metric(compiled); now <= compilations {
		t.Errorf("%v compilations were measured after the edit, and %v before", now, compilations)
	}

	d.edit("images", "package")
	d.awaitState("opa/images/main", "held previous")
	d.edit("more", "package")
	d.awaitState("opa/more/main", "held none")
	d.has(held("edit"), 1)
	d.has(held("add"), 1)
	d.has(held("delete"), 0)
	d.has(generation, 2) // what is held brings nothing into force
	d.has(propagated, 1)
}

// promlint is what promtool check metrics runs; promtool itself would bring all of
// Prometheus with it.
func TestPrometheusLinterFindsNothing(t *testing.T) {
	d := start(t, map[string]string{"opa-main": opaMain, "images": noCurl, "broken": "package"})
	d.awaitReady()
	d.ask("curl") // so that there is a series of each kind
	for _, body := range []string{"", "{}"} {
		d.do("POST", d.webhook, strings.NewReader(body))
	}
	d.do("GET", d.api+"/v1/data", nil)
	metrics := d.metrics()
	problems, err := promlint.New(strings.NewReader(metrics)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	docs, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`(?m)^# TYPE (kube_rego_\w+) `).FindAllStringSubmatch(metrics, -1) {
		if !regexp.MustCompile("(?m)^\\| `" + match[1] + `[{` + "`]").Match(docs) {
			t.Errorf("docs/operations.md does not tell of %s", match[1])
		}
	}
}
