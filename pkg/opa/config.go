package opa

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"

	"sigs.k8s.io/yaml"
)

// Configuration is OPA's own configuration, as JSON.
type Configuration struct {
	text    []byte
	entries map[string]any
}

// ReadConfiguration reads a file of OPA's configuration, YAML or JSON, and puts in
// the variables of the environment. No file is an empty configuration.
func ReadConfiguration(file string) (Configuration, error) {
	if file == "" {
		return parseConfiguration(nil)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return Configuration{}, fmt.Errorf("reading OPA's configuration: %w", err)
	}
	c, err := parseConfiguration(substitute(text))
	if err != nil {
		return Configuration{}, fmt.Errorf("reading OPA's configuration in %s: %w", file, err)
	}
	return c, nil
}

func parseConfiguration(text []byte) (Configuration, error) {
	c := Configuration{entries: make(map[string]any)}
	if err := yaml.Unmarshal(text, &c.entries); err != nil {
		var wrongType *json.UnmarshalTypeError
		if errors.As(err, &wrongType) {
			return c, errors.New("want an object with services, bundles, decision_logs and so on")
		}
		return c, err
	}
	c.boundLogs()
	return c, c.encode()
}

// maxLogBytes bounds the decisions that wait to be sent to a service that does not take
// them: OPA's own default is no bound. It is some 100,000 decisions, compressed, and an
// eighth of the memory that the manifests allow.
const maxLogBytes = 64 << 20

// boundLogs bounds what OPA's plugin keeps of decisions, where nobody has said how.
func (c *Configuration) boundLogs() {
	logs, _ := c.entries["decision_logs"].(map[string]any)
	if logs == nil {
		return
	}
	reporting, _ := logs["reporting"].(map[string]any)
	for _, other := range []string{"buffer_size_limit_bytes", "buffer_size_limit_events", "buffer_type", "max_decisions_per_second"} {
		if reporting[other] != nil {
			return
		}
	}
	if reporting == nil {
		reporting = make(map[string]any)
	}
	reporting["buffer_size_limit_bytes"] = maxLogBytes
	logs["reporting"] = reporting
}

func (c *Configuration) encode() (err error) {
	if c.entries == nil {
		c.entries = make(map[string]any)
	}
	c.text, err = json.Marshal(c.entries)
	return err
}

// DefaultDecision is the path of default_decision; empty if there is none.
func (c Configuration) DefaultDecision() string {
	path, _ := c.entries["default_decision"].(string)
	return path
}

// WithDefaultDecision is the configuration with this default_decision, unless it has
// one.
func (c Configuration) WithDefaultDecision(path string) (Configuration, error) {
	if c.DefaultDecision() != "" {
		return c, nil
	}
	with := Configuration{entries: map[string]any{"default_decision": path}}
	for key, value := range c.entries {
		if key != "default_decision" {
			with.entries[key] = value
		}
	}
	return with, with.encode()
}

// LogsDecisions reports whether decisions may come to be logged: by this
// configuration, or by one that it discovers.
func (c Configuration) LogsDecisions() bool {
	return c.entries["decision_logs"] != nil || c.entries["discovery"] != nil
}

// variable is how OPA's configuration names a variable of the environment.
var variable = regexp.MustCompile(`(?U:\${.*})`)

// substitute puts in variables of the environment as opa run does: one that is not
// set stays as it is written. OPA's own code for that cannot be imported.
func substitute(text []byte) []byte {
	return variable.ReplaceAllFunc(text, func(name []byte) []byte {
		if value, ok := os.LookupEnv(string(name[len("${") : len(name)-len("}")])); ok {
			return []byte(value)
		}
		return name
	})
}
