package opa

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadConfiguration(t *testing.T) {
	t.Setenv("KUBE_REGO_TEST_TOKEN", "s3cret")
	for name, test := range map[string]struct{ text, want string }{
		"an empty file":                {"", `{}`},
		"YAML":                         {"labels:\n  a: b\n", `{"labels":{"a":"b"}}`},
		"JSON":                         {`{"labels":{"a":"b"}}`, `{"labels":{"a":"b"}}`},
		"a variable":                   {"labels: {a: '${KUBE_REGO_TEST_TOKEN}'}", `{"labels":{"a":"s3cret"}}`},
		"a variable that is not set":   {"labels: {a: '${KUBE_REGO_TEST_NONE}'}", `{"labels":{"a":"${KUBE_REGO_TEST_NONE}"}}`},
		"two variables on a line":      {"labels: {a: '${KUBE_REGO_TEST_TOKEN} ${KUBE_REGO_TEST_TOKEN}'}", `{"labels":{"a":"s3cret s3cret"}}`},
		"logs without a bound":         {"decision_logs: {service: s}", `{"decision_logs":{"reporting":{"buffer_size_limit_bytes":67108864},"service":"s"}}`},
		"logs with a bound":            {"decision_logs: {reporting: {buffer_size_limit_bytes: 5}}", `{"decision_logs":{"reporting":{"buffer_size_limit_bytes":5}}}`},
		"logs with a bound of a rate":  {"decision_logs: {reporting: {max_decisions_per_second: 5}}", `{"decision_logs":{"reporting":{"max_decisions_per_second":5}}}`},
		"logs in the other buffer":     {"decision_logs: {reporting: {buffer_type: event}}", `{"decision_logs":{"reporting":{"buffer_type":"event"}}}`},
		"logs that are sent by and by": {"decision_logs: {reporting: {min_delay_seconds: 5}}", `{"decision_logs":{"reporting":{"buffer_size_limit_bytes":67108864,"min_delay_seconds":5}}}`},
		"a list":                       {"- a\n", "error: reading OPA's configuration in FILE: want an object with services, bundles, decision_logs and so on"},
		"a word":                       {"services", "error: reading OPA's configuration in FILE: want an object"},
		"a tab":                        {"a:\n\tb: c", "error: reading OPA's configuration in FILE: error converting YAML to JSON: yaml: line 2: "},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(file, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := ReadConfiguration(file)
			got := string(c.text)
			if err != nil {
				got = "error: " + strings.ReplaceAll(err.Error(), file, "FILE")
			}
			if !strings.HasPrefix(got, test.want) {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	if _, err := ReadConfiguration(filepath.Join(t.TempDir(), "none")); err == nil || !strings.HasPrefix(err.Error(), "reading OPA's configuration: open ") {
		t.Errorf("no such file: got %v", err)
	}
	if c, err := ReadConfiguration(""); err != nil || string(c.text) != "{}" {
		t.Errorf("no file: got %s, %v", c.text, err)
	}
}

func TestTheDefaultDecision(t *testing.T) {
	for text, want := range map[string]string{
		"{}":                               `{"default_decision":"/system/main"}`,
		"default_decision: /authz/allow":   `{"default_decision":"/authz/allow"}`,
		"default_decision: ''\nlabels: {}": `{"default_decision":"/system/main","labels":{}}`,
	} {
		c, err := parseConfiguration([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		before := string(c.text)
		with, err := c.WithDefaultDecision("/system/main")
		if err != nil || string(with.text) != want {
			t.Errorf("%s: got %s, %v, want %s", text, with.text, err, want)
		}
		if string(c.text) != before {
			t.Errorf("%s: it was changed to %s", text, c.text)
		}
	}
}

func TestWhetherDecisionsAreLogged(t *testing.T) {
	for text, want := range map[string]bool{
		"{}": false, "decision_logs: {console: true}": true, "discovery: {name: x}": true, "bundles: {}": false,
	} {
		c, err := parseConfiguration([]byte(text))
		if err != nil || c.LogsDecisions() != want {
			t.Errorf("%s: got %v, %v", text, c.LogsDecisions(), err)
		}
	}
}
