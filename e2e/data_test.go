package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const dataLabel = "openpolicyagent.org/data"

// document makes a data ConfigMap; keys and texts alternate.
func document(namespace, name string, keysAndTexts ...string) *corev1.ConfigMap {
	cm := policy(namespace, name, keysAndTexts...)
	cm.Labels = map[string]string{dataLabel: "opa"}
	return cm
}

// denyTelling refuses ConfigMaps that carry the label deny with this value, and tells what it reads: a JSON array with the
// value of the term, or with nothing if it is undefined.
func denyTelling(value, term string) string {
	return fmt.Sprintf(`package kubernetes.admission

deny contains json.marshal([x | x := %[2]s]) if input.request.object.metadata.labels.deny == %[1]q
`, value, term)
}

// tells waits until the label value is refused with exactly this message.
func tells(t testing.TB, value, message string) {
	t.Helper()
	eventually(t, "the decision about "+value, func(ctx context.Context) error {
		if err := try(ctx, value); err == nil || err.Error() != refusal(message) {
			return fmt.Errorf("got %w, want %s", err, message)
		}
		return nil
	})
}

// stillTells fails unless the label value is refused with this message now.
func stillTells(t *testing.T, value, message string) {
	t.Helper()
	if err := try(t.Context(), value); err == nil || err.Error() != refusal(message) {
		t.Errorf("the decision about %s is %v, want %s", value, err, message)
	}
}

// createAnnotated creates ConfigMaps in the namespace opa and waits until each is in force everywhere and recorded.
func createAnnotated(t *testing.T, all ...*corev1.ConfigMap) {
	t.Helper()
	for _, cm := range all {
		create(t, cm)
	}
	for _, cm := range all {
		annotation(t, cm.Namespace, cm.Name, is(statusOK))
	}
}

// Each key of a data ConfigMap is a document: any JSON, or YAML of the same meaning.
func TestDataArrivesAtItsPath(t *testing.T) {
	_, instance := install(t)
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("settings", "data.opa.settings")),
	)
	tells(t, "settings", `[]`)
	for _, c := range []struct{ sentence, key, text, want string }{
		{"an object", "object", `{"a": {"b": [1, "two", null]}}`, `{"a":{"b":[1,"two",null]}}`},
		{"an array", "array", "[1, [2]]\n", `[1,[2]]`},
		{"a string", "string", `"text"`, `"text"`},
		{"a number with all its digits", "number", "12345678901234567890.5", `12345678901234567890.5`},
		{"false", "false", "false", `false`},
		{"null", "null", " null ", `null`},
		{"an empty object", "empty", "{}", `{}`},
		{"a name with a dot and a dash", "some-file.json", `{"x": 1}`, `{"x":1}`},
		{"YAML with comments and an anchor", "yaml", "# a comment\na: &a\n  - 1\n  - b: no\nc: *a\n", `{"a":[1,{"b":"no"}],"c":[1,{"b":"no"}]}`},
		{"a text in YAML's quotes", "word", "'hello'", `"hello"`},
		{"YAML with text of several lines", "text", "a: |\n  one\n  two\n", `{"a":"one\ntwo\n"}`},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			cm := document(opa, "settings", c.key, c.text)
			createAnnotated(t, cm)
			tells(t, "settings", fmt.Sprintf(`[{%q:%s}]`, c.key, c.want))
			inForce(t, instance, map[string]string{
				"opa/main/main": "current", "opa/tell/main": "current", "opa/settings/" + c.key: "current",
			})
			remove(t, opa, "settings")
			tells(t, "settings", `[]`)
			forgotten(t, "settings")
		})
	}
	create(t, document(opa, "settings", "a", "1"))
	tells(t, "settings", `[{"a":1}]`)
	status, err := instance.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range status.Modules {
		if want := map[string]string{"opa/settings/a": "data"}[m.ID]; m.Kind != want {
			t.Errorf("%s is of the kind %q, want %q", m.ID, m.Kind, want)
		}
	}
}

// A key that goes takes its own path along and nothing else; so does a ConfigMap with two keys, of which one that goes the
// way of the first would take all data along.
func TestDataGoesByItsOwnPathAlone(t *testing.T) {
	allowReading(t, "namespaces")
	install(t, "--replicate-cluster=v1/namespaces")
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("all", "{\"opa\": data.opa, \"default\": data.kubernetes.namespaces[\"default\"].metadata.name}")),
		document(opa, "first", "a", "1", "b", "2"),
		document(opa, "second", "a", "3"),
		document(opa, "third", "a", `{"x": 4}`),
	)
	tells(t, "all", `[{"default":"default","opa":{"first":{"a":1,"b":2},"second":{"a":3},"third":{"a":{"x":4}}}}]`)
	edit(t, opa, "first", func(cm *corev1.ConfigMap) { delete(cm.Data, "a") })
	tells(t, "all", `[{"default":"default","opa":{"first":{"b":2},"second":{"a":3},"third":{"a":{"x":4}}}}]`)
	edit(t, opa, "first", func(cm *corev1.ConfigMap) { cm.Data["a"] = "5" })
	tells(t, "all", `[{"default":"default","opa":{"first":{"a":5,"b":2},"second":{"a":3},"third":{"a":{"x":4}}}}]`)
	annotation(t, opa, "first", is(statusOK))
	remove(t, opa, "first")
	tells(t, "all", `[{"default":"default","opa":{"second":{"a":3},"third":{"a":{"x":4}}}}]`)
	forgotten(t, "first")
	for _, name := range []string{"second", "third"} {
		annotation(t, opa, name, is(statusOK))
	}
	edit(t, opa, "second", func(cm *corev1.ConfigMap) { cm.Data = nil }) // a ConfigMap that holds nothing
	tells(t, "all", `[{"default":"default","opa":{"third":{"a":{"x":4}}}}]`)
	annotation(t, opa, "second", is(statusOK))
}

// A broken edit changes nothing but the status: decisions go on with the value before, through restarts too.
func TestABrokenEditOfDataIsHeld(t *testing.T) {
	installation, first := install(t)
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("settings", "data.opa.settings")),
		document(opa, "settings", "json", `{"a": 1}`, "yaml", "a: 1\n"),
	)
	before := `[{"json":{"a":1},"yaml":{"a":1}}]`
	tells(t, "settings", before)
	recorded(t, "settings", "json", `{"a": 1}`)

	edit(t, opa, "settings", func(cm *corev1.ConfigMap) {
		cm.Data["json"] = "{\n  \"a\": 1,\n  \"b\": }\n}"
		cm.Data["yaml"] = "a: 1\nb: [1\n"
	})
	held := contains(`"status":"error"`, `"inForce":"previous"`,
		`{"code":"invalid_parameter","message":"the data cannot be read: `,
		`"location":{"file":"opa/settings/json","row":3,"col":8}}`, `"location":{"file":"opa/settings/yaml","row":`)
	annotation(t, opa, "settings", held)
	stillTells(t, "settings", before)
	annotation(t, opa, "tell", is(statusOK))
	told(t, "settings", "Warning PolicyHeld json: held, the version before stays in force")
	states := map[string]string{
		"opa/main/main": "current", "opa/tell/main": "current", "opa/settings/json": "previous", "opa/settings/yaml": "previous",
	}
	inForce(t, first, states)

	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	second, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, second) })
	inForce(t, second, states)
	tells(t, "settings", before)
	annotation(t, opa, "settings", held)

	edit(t, opa, "settings", func(cm *corev1.ConfigMap) { cm.Data = map[string]string{"json": `{"a": 2}`, "yaml": "a: 2\n"} })
	after := `[{"json":{"a":2},"yaml":{"a":2}}]`
	tells(t, "settings", after)
	annotation(t, opa, "settings", is(statusOK))
	recorded(t, "settings", "json", `{"a": 2}`)

	// An edit that is made while nobody runs.
	if err := second.Kill(); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "patch", "configmap", "settings", "-n", opa, "--type=merge", "-p", `{"data":{"json":"{"}}`)
	third, err := installation.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, third) })
	states["opa/settings/yaml"] = "current"
	inForce(t, third, states)
	tells(t, "settings", after)
	annotation(t, opa, "settings", contains(`"inForce":"previous"`, "the JSON document ends too early", `"file":"opa/settings/json","row":1`))
}

// Data and a rule cannot both be at one path: which came later is held, and the other goes on.
func TestDataThatClashesWithARule(t *testing.T) {
	_, instance := install(t)
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("limits", "data.opa.limits")),
	)
	rule := func(name, value string) string { return fmt.Sprintf("package opa.limits\n\n%s := %s\n", name, value) }
	for _, c := range []struct {
		sentence      string
		first, second *corev1.ConfigMap
		before        string // is told while the second is held
		status        []string
		after         string // is told when the first is gone
	}{{
		sentence: "data where a rule is",
		first:    policy(opa, "rules", "main", rule("pods", "1")),
		second:   document(opa, "limits", "pods", "2"),
		before:   `[{"pods":1}]`,
		status:   []string{`"inForce":"none"`, "conflicting rule for data path opa/limits/pods", "seen at opa/rules/main:3", `"file":"opa/limits/pods"`},
		after:    `[{"pods":2}]`,
	}, {
		sentence: "a rule where data is",
		first:    document(opa, "limits", "pods", "3"),
		second:   policy(opa, "rules", "main", rule("pods", "4")),
		before:   `[{"pods":3}]`,
		status:   []string{`"inForce":"none"`, "conflicting rule for data path opa/limits/pods", `"file":"opa/rules/main","row":3,"col":1`},
		after:    `[{"pods":4}]`,
	}, {
		sentence: "a package below a field of data",
		first:    document(opa, "limits", "pods", `{"soft": 5}`),
		second:   policy(opa, "rules", "main", "package opa.limits.pods.soft\n\nx := 6\n"),
		before:   `[{"pods":{"soft":5}}]`,
		status:   []string{`"inForce":"none"`, "conflicting rule for data path opa/limits/pods/soft", `"file":"opa/rules/main"`},
		after:    `[{"pods":{"soft":{"x":6}}}]`,
	}} {
		ok := t.Run(c.sentence, func(t *testing.T) {
			createAnnotated(t, c.first)
			tells(t, "limits", c.before)
			create(t, c.second)
			annotation(t, opa, c.second.Name, contains(c.status...))
			for key := range c.second.Data {
				onlyHeld(t, instance, "opa/"+c.second.Name+"/"+key)
			}
			stillTells(t, "limits", c.before)
			annotation(t, opa, c.first.Name, is(statusOK))
			remove(t, opa, c.first.Name)
			tells(t, "limits", c.after)
			annotation(t, opa, c.second.Name, is(statusOK))
			remove(t, opa, c.second.Name)
			tells(t, "limits", `[]`)
			forgotten(t, c.first.Name)
			forgotten(t, c.second.Name)
		})
		if !ok {
			return
		}
	}
	t.Run("data beside rules of one package", func(t *testing.T) {
		createAnnotated(t, policy(opa, "rules", "main", rule("pods", "7")), document(opa, "limits", "nodes", "8"))
		tells(t, "limits", `[{"nodes":8,"pods":7}]`)
	})
}

// A ConfigMap with both labels is data, and says that it is not policy; taking a label away makes it what is left.
func TestAConfigMapWithBothLabelsIsData(t *testing.T) {
	_, instance := install(t)
	const text = "package: 1\n" // YAML, and no Rego
	rego := denyLabel("rego")
	both := policy(opa, "both", "main", text)
	both.Labels[dataLabel] = "opa"
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("both", "data.opa.both")),
	)
	create(t, both)
	tells(t, "both", `[{"main":{"package":1}}]`)
	warning := annotation(t, opa, "both", contains(`"status":"warning"`, dataLabel+"=opa", policyLabel+"=rego", "it is data", "take one label away"))
	if contains(`"error"`)(warning) || !json.Valid([]byte(warning)) {
		t.Errorf("the warning is %s", warning)
	}

	// What is told of it goes with the label.
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { delete(cm.Labels, policyLabel) })
	annotation(t, opa, "both", is(statusOK))
	stillTells(t, "both", `[{"main":{"package":1}}]`)

	// From data to policy, with Rego that is none yet: the data stays until the policy is good.
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{policyLabel: "rego"} })
	annotation(t, opa, "both", contains(`"status":"error"`, `"inForce":"previous"`, "rego_parse_error", `"file":"opa/both/main"`))
	stillTells(t, "both", `[{"main":{"package":1}}]`)
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Data["main"] = rego })
	tells(t, "both", `[]`)
	refuses(t, "rego")
	annotation(t, opa, "both", is(statusOK))
	recorded(t, "both", "main", rego)

	// From policy to both, with text that is no data yet: the policy stays until it is.
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Labels[dataLabel] = "opa" })
	annotation(t, opa, "both", contains(`"status":"error"`, `"inForce":"previous"`, "the data cannot be read"))
	stillRefuses(t, "rego")
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Data["main"] = text })
	allows(t, "rego")
	tells(t, "both", `[{"main":{"package":1}}]`)
	annotation(t, opa, "both", contains(`"status":"warning"`))

	// From both to policy at once, and to nothing.
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Labels, cm.Data["main"] = map[string]string{policyLabel: "rego"}, rego })
	refuses(t, "rego")
	tells(t, "both", `[]`)
	annotation(t, opa, "both", is(statusOK))
	edit(t, opa, "both", func(cm *corev1.ConfigMap) { cm.Labels = nil })
	allows(t, "rego")
	annotation(t, opa, "both", is(""))
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/tell/main": "current"})
}

// What is no good as data is told on its own ConfigMap, at its place; everything else goes on.
func TestBadData(t *testing.T) {
	_, instance := install(t)
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("good", "data.opa.good")+denyCount("big", "data.opa.big.key")),
		document(opa, "good", "key", `"good"`),
	)
	binary := document(opa, "binary")
	binary.BinaryData = map[string][]byte{"key": {0xff, 0xfe}}
	for _, c := range []struct {
		sentence string
		cm       *corev1.ConfigMap
		status   []string
	}{
		{"10,000 levels of arrays", document(opa, "arrays", "key", strings.Repeat("[", 10_000)+strings.Repeat("]", 10_000)),
			[]string{"values are nested more than 1000 deep", `"row":1,"col":1002`}},
		{"10,000 levels of objects", document(opa, "objects", "key", strings.Repeat("{\"a\":\n", 10_000)+"1"+strings.Repeat("}", 10_000)),
			[]string{"values are nested more than 1000 deep", `"row":1002,"col":1`}},
		{"10,000 levels of YAML", document(opa, "levels", "key", strings.Repeat("- ", 10_000)+"1"),
			[]string{"values are nested more than 1000 deep", `"row":1,"col":2003`}},
		{"a key that is there twice in JSON", document(opa, "twice-json", "key", "{\"a\": 1,\n \"b\": 2, \"a\": 3}"),
			[]string{`the key \"a\" is there twice`, `"row":2`}},
		{"a key that is there twice in YAML", document(opa, "twice-yaml", "key", "a: 1\nb: 2\na: 3\n"),
			[]string{`\"a\"`, `"row":3,"col":1`}},
		{"NaN in JSON", document(opa, "nan-json", "key", `{"a": NaN}`), []string{"invalid character 'N'", `"row":1,"col":7`}},
		{"NaN in YAML", document(opa, "nan-yaml", "key", "a: .nan\n"), []string{`\".nan\" is no number that JSON knows`, `"row":1,"col":4`}},
		{"infinity in YAML", document(opa, "infinity", "key", "a:\n  - -.inf\n"), []string{`\"-.inf\" is no number that JSON knows`, `"row":2,"col":5`}},
		{"aliases that unfold to billions", document(opa, "bomb", "key", bomb(12)), []string{"aliases", `"row":`}},
		{"an alias that contains itself", document(opa, "itself", "key", "a: &a\n  - *a\n"), []string{"the data cannot be read", `"row":`}},
		{"binaryData", binary, []string{"binaryData"}},
		{"nothing", document(opa, "empty", "key", ""), []string{"there is no document, neither JSON nor YAML", `"row":1,"col":1`}},
		{"blanks and a comment", document(opa, "comment", "key", "\n# nothing\n"), []string{"there is no document, neither JSON nor YAML"}},
		{"two documents", document(opa, "two", "key", "a: 1\n---\nb: 2\n"), []string{"more than one YAML document", `"row":`}},
		{"text behind the document", document(opa, "behind", "key", "{\"a\": 1}\n}"), []string{"behind the end of the JSON document", `"row":2,"col":1`}},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			create(t, c.cm)
			status := append(c.status, `"status":"error"`, `"inForce":"none"`, `"invalid_parameter"`, `"file":"opa/`+c.cm.Name+`/key"`)
			annotation(t, opa, c.cm.Name, contains(status...))
			stillTells(t, "good", `[{"key":"good"}]`)
			states, err := modules(t.Context(), instance)
			if err != nil {
				t.Fatal(err)
			}
			if got := states["opa/"+c.cm.Name+"/key"]; got != "none" {
				t.Errorf("in force of it: %q, want none", got)
			}
		})
	}
	t.Run("a bad key leaves the others of its ConfigMap in force", func(t *testing.T) {
		edit(t, opa, "good", func(cm *corev1.ConfigMap) { cm.Data["bad"], cm.Data["more"] = "{", "1" })
		tells(t, "good", `[{"key":"good","more":1}]`)
		annotation(t, opa, "good", contains(`"file":"opa/good/bad"`))
	})
	t.Run("1 MiB of data is in force", func(t *testing.T) {
		const size = 1 << 20
		text := "[" + strings.Repeat("1,", (size-3)/2)
		text += strings.Repeat(" ", size-len(text)-2) + "1]"
		createAnnotated(t, document(opa, "big", "key", text))
		tells(t, "big", fmt.Sprint((size-3)/2+1))
	})
}

// denyCount is a further rule of denyTelling that tells how many elements something has.
func denyCount(value, term string) string {
	return fmt.Sprintf("\ndeny contains json.marshal(count(%s)) if input.request.object.metadata.labels.deny == %q\n", term, value)
}

// bomb is YAML of which each level holds the one below ten times.
func bomb(levels int) string {
	var b strings.Builder
	b.WriteString("l0: &l0 [x, x, x, x, x, x, x, x, x, x]\n")
	for n := range levels {
		fmt.Fprintf(&b, "l%d: &l%d [%s]\n", n+1, n+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*l%d, ", n), 10), ", "))
	}
	return b.String()
}

// Data that would be where objects are replicated is held, and the objects stay.
func TestDataInTheWayOfReplicatedObjects(t *testing.T) {
	allowAllNamespaces(t)
	allowReading(t, "pods")
	const namespace = "kubernetes"
	createNamespace(t, namespace)
	_, instance := install(t, "--namespaces=*", "--replicate=v1/pods")
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("pods", "data.kubernetes.pods")),
	)
	tells(t, "pods", `[{}]`)
	for _, name := range []string{"pods", "anything"} {
		create(t, document(namespace, name, "key", `"in the way"`))
		annotation(t, namespace, name, contains(`"inForce":"none"`, "data.kubernetes."+name+".key is where objects of the cluster are replicated",
			"--replicate-path", `"file":"kubernetes/`+name+`/key"`))
	}
	stillTells(t, "pods", `[{}]`)
	// Nor may a rule be there.
	create(t, policy(namespace, "rule", "main", "package kubernetes.pods\n\nx := 1\n"))
	annotation(t, namespace, "rule", contains(`"inForce":"none"`, "conflicting rule for data path kubernetes/pods/x", `"file":"kubernetes/rule/main","row":3,"col":1`))
	inForce(t, instance, map[string]string{
		"opa/main/main": "current", "opa/tell/main": "current",
		"kubernetes/pods/key": "none", "kubernetes/anything/key": "none", "kubernetes/rule/main": "none",
	})
	stillTells(t, "pods", `[{}]`)
}

// Without data ConfigMaps those that carry the label are none of kube-rego's business.
func TestDataThatIsSwitchedOff(t *testing.T) {
	_, instance := install(t, "--enable-data=false")
	create(t, document(opa, "settings", "key", "1"))
	both := policy(opa, "both", "main", denyLabel("both"))
	both.Labels[dataLabel] = "opa"
	createAnnotated(t,
		policy(opa, "main", "main", entrypoint),
		policy(opa, "tell", "main", denyTelling("settings", "data.opa.settings")),
		both,
	)
	tells(t, "settings", `[]`)
	refuses(t, "both")
	annotation(t, opa, "settings", is(""))
	inForce(t, instance, map[string]string{"opa/main/main": "current", "opa/tell/main": "current", "opa/both/main": "current"})
}
