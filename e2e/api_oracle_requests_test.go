package e2e_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// question is one request to OPA's REST API, as it goes over the wire.
type question struct {
	method string
	// target is the path with the query, not cleaned and not escaped by anybody.
	target string
	// headers are lines such as "Accept-Encoding: gzip".
	headers []string
	body    string
}

// name is what a test of the question is called.
func (q question) name() string {
	name := q.method + " " + q.target
	for _, header := range q.headers {
		name += ", " + header
	}
	if q.body != "" {
		name += ", " + q.body
	}
	if limit := 200; len(name) > limit {
		name = fmt.Sprintf("%s… (%d bytes)", name[:limit], len(name))
	}
	if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		name = strconv.Quote(name)
	}
	return name
}

// questions are those of one sentence. They are asked in their order, as some answers depend on what was asked before.
type questions struct {
	sentence string
	list     []question
}

func get(targets ...string) []question {
	var list []question
	for _, target := range targets {
		list = append(list, question{method: "GET", target: target})
	}
	return list
}

func post(target string, bodies ...string) []question {
	var list []question
	for _, body := range bodies {
		list = append(list, question{method: "POST", target: target, body: body})
	}
	return list
}

// with adds a header to all of them.
func with(header string, list []question) []question {
	list = slices.Clone(list)
	for i := range list {
		list[i].headers = append(slices.Clone(list[i].headers), header)
	}
	return list
}

// withParameters asks all of them once for each query string.
func withParameters(list []question, parameters ...string) []question {
	var all []question
	for _, parameter := range parameters {
		for _, q := range list {
			separator := "?"
			if strings.Contains(q.target, "?") {
				separator = "&"
			}
			q.target += separator + parameter
			all = append(all, q)
		}
	}
	return all
}

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text)) // a buffer takes all
	_ = w.Close()
	return b.String()
}

// chunked is a body of two chunks, as it is sent when its length is not known.
func chunked(text string) string {
	half := len(text) / 2
	return fmt.Sprintf("%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", half, text[:half], len(text)-half, text[half:])
}

const (
	alice    = `{"user": "alice", "action": "read", "object": "code"}`
	conflict = `{"a": true, "b": true}`
)

func input(text string) string { return `{"input": ` + text + `}` }

// dataPaths are places below /data: rules, packages, base documents, parts of them, and nothing.
var dataPaths = []string{
	"", "/app", "/app/rbac", "/app/rbac/allow", "/app/rbac/is_admin", "/app/rbac/permissions", "/app/rbac/by_role",
	"/app/rbac/by_role/dev", "/app/rbac/by_role/dev/bob", "/app/rbac/by_role/nobody", "/app/rbac/readers/0", "/app/rbac/readers/7",
	"/app/rbac/greeting", "/app/rbac/reasons", "/app/rbac/permitted", "/app/names", "/app/names/greet", "/app/names/uppercase",
	"/values", "/values/empty_set", "/values/empty_object", "/values/empty_array", "/values/nothing", "/values/no", "/values/set_of_things",
	"/values/set_of_things/three", "/values/huge", "/values/tiny", "/values/exact", "/values/minus", "/values/unicode", "/values/escapes",
	"/values/echo", "/values/echo/user", "/values/echo/nobody", "/values/partial", "/values/nested", "/values/nested/deep",
	"/values/nested/deep/value",
	"/values/nested/deep/other", "/values/list/1/name", "/values/large/199", "/values/undefined", "/values/undefined_object",
	"/values/number_keys", "/values/number_keys/1", "/values/with_mock", "/values/else_chain",
	"/labelled", "/team/rules/violations", "/team/rules/uses_library", "/team", "/system", "/system/main", "/system/main/answer",
	"/system/health/live",
	"/opa", "/opa/settings", "/opa/settings/users/alice", "/opa/settings/users/alice/roles/0", "/opa/settings/users/alice/roles/9",
	"/opa/settings/users/nobody", "/opa/settings/numbers", "/opa/settings/numbers/4", "/opa/settings/list/1/name", "/opa/settings/list/-1",
	"/opa/settings/list/01", "/opa/settings/nothing", "/opa/settings/nothing/below", "/opa/settings/no", "/opa/settings/text",
	"/opa/settings/text/below",
	"/opa/settings/odd", "/opa/settings/odd/1", "/team/settings/dashed-key.json/dashed-name",
	"/nowhere", "/nowhere/at/all", "/values/nowhere", "/data", "/input",
}

// oddPaths are paths that somebody could write to get past a list of paths, or by mistake.
var oddPaths = []string{
	"/v1/data/", "/v1/data//", "//v1/data", "/v1//data", "/v1/data//values/yes", "/v1/data/values//yes", "/v1/data/values/yes/",
	"/v1/data/values/yes//",
	"/v1/data/./values/yes", "/v1/data/values/../values/yes", "/v1/data/../data/values/yes", "/v1/../v1/data/values/yes", "/v1/data/..",
	"/v1/data/../..", "/..", "/.",
	"/v1/data/%2e%2e/values", "/v1/%64ata/values/yes", "/v1/data/%76alues/yes", "/v1%2Fdata/values/yes", "/v1/data%2Fvalues/yes",
	"/v1/data/values%2Fyes",
	"/%2e%2e/v1/data", "/v1/data/%2F", "/v1/data/opa/settings/odd/a%2Fb", "/v1/data/opa/settings/odd/a%2Fb/c", "/v1/data/opa/settings/odd/a/b",
	"/v1/data/opa/settings/odd/x%20y", "/v1/data/opa/settings/odd/x+y", "/v1/data/opa/settings/odd/+", "/v1/data/opa/settings/odd/%2B",
	"/v1/data/opa/settings/odd/%C3%BC",
	"/v1/data/opa/settings/odd/ü", "/v1/data/opa/settings/odd/%FF", "/v1/data/opa/settings/odd/%252F", "/v1/data/opa/settings/odd/%2E%2E",
	"/v1/data/opa/settings/odd/q%22q",
	"/v1/data/opa/settings/odd/%00", "/v1/data/opa/settings/odd/%0a", "/v1/data/values/keys/a%2Fb", "/v1/data/values/keys/dot.ted",
	"/v1/data/values.yes", "/v1/data/values/yes;x=y",
	"/v1/data/values/yes#fragment", "/v1/data/values/%", "/v1/data/values/%zz", "/v1/data/values/yes%3Fpretty", "/v1/data/values[yes]",
	"/v1/data/values/yes%20",
	`/v1/data/values\yes`, "/v1/data/_", "/v1/data/$", "/v1/data/true", "/v1/data/1", "/v1/data/99999999999999999999",
	"/v1/data/with%20input%20as%201",
	"/v1/data/system.main", "/v1/data/values/yes%0d%0aX-Injected:%20yes", "/V1/DATA/values/yes", "/v1/Data/values/yes", "/v0/data/values/yes",
	"/v2/data/values/yes",
	"/v1/data/values/yes?pretty=true;metrics=true", "/v1/data/values/yes?%zz", "/v1/data/values/yes?input", "/v1/data/values/yes??",
	"/v1/data/values/yes?pretty&pretty=false",
	"/v1/data" + strings.Repeat("/a", 300),
}

// beside are paths that are not OPA's, or not of its REST API.
var beside = []string{
	"/", "/index.html", "/v0", "/v1", "/v1/", "/v2", "/v1/dataset", "/v1/datax/values", "/v1/policiesx", "/v1/queryx", "/v1/compilex", "/v1/configx",
	"/v1/statusx", "/healthx",
	"/v1/config/x", "/v1/status/x", "/v0/query", "/v0/policies", "/v0/compile", "/v0/config", "/metrics", "/metrics/x", "/debug/pprof/",
	"/debug/pprof/heap", "/favicon.ico",
	"/healthz", "/readyz", "/status", "/livez", "/apis", "/v1/query/x", "/v1/query/", "/v1/config/", "/v1/status/", "/health/",
}

// explanations are those that answers can be asked for.
var explanations = []string{
	"explain=notes", "explain=fails", "explain=full", "explain=debug", "explain=off", "explain=nonsense", "explain",
	"explain=notes&pretty", "explain=fails&pretty", "explain=full&pretty", "explain=debug&pretty",
}

var otherParameters = []string{
	"pretty", "pretty=true", "pretty=false", "pretty=TRUE", "pretty=1", "metrics", "metrics&pretty", "instrument", "instrument=true&metrics=true",
	"provenance", "provenance&pretty", "strict-builtin-errors", "strict-builtin-errors=false", "rule_labels", "unknown=parameter",
	"pretty&metrics&provenance&rule_labels&explain=full",
}

// oddBodies are bodies that may be wrong, for all that takes a body.
var oddBodies = []string{
	"", " ", "null", "{}", "[]", "1", `"text"`, "true", "{", "}", `{"input"}`, `{"input":}`, `{"input": null}`, `{"input": {}} trailing`,
	`{"input": 1}{"input": 2}`, `{"input": {"a": 1}, "input": {"a": 2}}`,
	`{"input": {"a": 1, "a": 2}}`, `{"Input": {"a": 1}}`, `{"INPUT": 1, "other": 2}`, `{'input': 1}`, `{"input": NaN}`, `{"input": 1e400}`,
	`{"input": -0}`, `{"input": 1.0}`, `{"input": 1E2}`,
	`{"input": 123456789012345678901234567890.123456789012345678901234567890}`, `{"input": 0123}`, `{"input": "\ud800"}`, "{\"input\": \"\xff\"}",
	`{"input": "\u0000"}`, `{"input": "grüße 世界 🦀"}`,
	"\xef\xbb\xbf{\"input\": 1}", `{"input": {"": 1}}`, `{"input": [1, [2, [3]]], "metadata": {"trace": "x"}}`, "input: yaml\n",
	"input: {a: yes, b: [1, 2.50, 0x10]}\n", "a: [\n", "--- 1\n--- 2\n",
	`{"query": 1}`, `{"input": ` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`,
	`{"input": ` + strings.Repeat("[", 11_000) + strings.Repeat("]", 11_000) + `}`, // more than encoding/json takes
}

var queries = []string{
	"x = 1", "x := 1", "true", "false", "1", "null", "x = 1; y = 2", "x = y", "x", "x := data.values.yes", "data.values.yes", "data.values.no",
	"data.nowhere", "data.values.undefined", "not data.nowhere",
	"data.app.rbac.by_role[role][user]", "data.opa.settings.users[user].roles[i] = role", "some user in data.app.rbac.readers",
	"x = data.opa.settings.list[i]", "data.app.names.greet(\"bob\", x)",
	"x := data.app.names.greet(\"bob\")", "x := [y | y := data.opa.settings.numbers[_]]", "x := {1, 2}; y := {\"a\": x}", "input", "x := input.user",
	"x := input", "data.app.rbac.allow", "data.app.rbac.reasons[x]",
	"x = data.errors.complete with input as {\"a\": 1, \"b\": 1}", "x := 1 / 0", "x := to_number(\"a\")", "every x in [1, 2] { x > 0 }",
	"x := count(data.values.large)", "_ = 1", "x[_] = 1; x = [1]", "x := sprintf(\"%d\", [3])",
	"x := data.values.huge", "x := 0.1 + 0.2", "x := \"<&>\"", "print(\"x\")", "print(\"x\"); x := 2", "trace(\"a note\")",
	"x := time.parse_ns(\"2006\", \"2026\")",
	"http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1:1\"}, x)", "x := http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1:1\"})",
	"x := 1 with input as http.send({})", "x := count([]) with count as http.send",
	"x := opa.runtime()", "x := opa.runtime().env", "x := net.lookup_ip_addr(\"localhost\")", "x := json.match_schema({}, {})",
	"x := json.verify_schema({})", "x := rego.parse_module(\"a\", \"package a\")",
	"", " ", "# nothing", "x =", "x := ", ")", "x := nobody()", "x := data.app.names.greet(1, 2, 3)", "x := concat(1, 2)", "p := 1; p := 2",
	"package x", "p if true", "p[x] { x := 1 }", "data.app.rbac.allow = x { true }",
	"import data.x", "x := {y | y = z}", "not x", "x > 1", "some x", "default x := 1", "x := data.values.with_mock with data.values.echo as 3", "data",
	"x = data.system.main", "x := input.user; x == \"alice\"",
	"x := \"a", "x := 1\ny := 2", "walk(data.opa.settings.list, [path, value])", "x = {\"a\": y}; y = 1", "data.values.partial[k] = v",
	"x := numbers.range(1, 3)[_]", strings.Repeat("1+", 500) + "1",
}

// partial are requests to evaluate in part.
var partial = []string{
	`{"query": "data.filters.allow == true", "input": {"user": "alice"}, "unknowns": ["data.pets"]}`,
	`{"query": "data.filters.allow == true", "input": {"user": "bob"}, "unknowns": ["data.pets.owner"]}`,
	`{"query": "data.filters.allow", "unknowns": ["input"]}`, `{"query": "data.filters.allow"}`, `{"query": "data.filters.allow = x"}`,
	`{"query": "data.filters.always == true", "unknowns": ["input"]}`, `{"query": "data.filters.never == true", "unknowns": ["input"]}`,
	`{"query": "data.filters.include", "unknowns": ["input.pets"], "input": {"user": "x"}}`,
	`{"query": "data.filters.deny[x]", "unknowns": ["data.pets"]}`, `{"query": "data.app.rbac.allow == true", "unknowns": ["input"]}`,
	`{"query": "data.app.rbac.allow == true", "unknowns": ["input.action"], "input": {"user": "bob", "object": "code"}}`,
	`{"query": "data.app.rbac.allow == true", "unknowns": ["input"], "options": {"disableInlining": ["data.app.rbac.is_admin"]}}`,
	`{"query": "data.filters.include", "unknowns": ["input"], "options": {"disableInlining": ["data.filters"]}}`,
	`{"query": "data.filters.include", "options": {"disableInlining": ["nonsense["]}}`,
	`{"query": "data.filters.include", "options": {"nondeterministicBuiltins": true}}`,
	`{"query": "data.values.undefined"}`, `{"query": "x = input.y; x > 1"}`, `{"query": "input.x == 1; input.y == data.opa.settings.text"}`,
	`{"query": "data.opa.settings.text == input.x", "unknowns": ["data.opa"]}`,
	`{"query": "data.team.rules.every_is_fine", "unknowns": ["input"]}`,
	`{"query": "data.errors.complete", "unknowns": ["data.pets"], "input": {"a": 1, "b": 1}}`, `{"query": "data.errors.complete"}`,
	`{"query": "x := 1 / 0"}`, `{"query": "print(input.x)"}`, `{"query": "http.send({}, x)"}`, `{"query": "x := http.send(input.x)"}`,
	`{"query": "x := opa.runtime()"}`, `{"query": "time.now_ns() == input.x"}`, `{"query": "rand.intn(\"x\", 2) == 5"}`,
	`{"query": ""}`, `{"query": "x ="}`, `{"query": "x := nobody()"}`, `{"query": "x > 1"}`, `{"query": "not input.x", "unknowns": ["input.x"]}`,
	`{"query": "data.filters.allow", "unknowns": ["nonsense["]}`, `{"query": "data.filters.allow", "unknowns": "input"}`,
	`{"query": "data.filters.allow", "unknowns": []}`, `{"query": "data.filters.allow", "unknowns": null, "input": null}`, `{"unknowns": ["input"]}`,
	`{"query": ["x"]}`, `{"query": "data.filters.allow", "options": 1}`, `{"query": "p if true"}`,
	`{"query": "data.filters.with_function", "unknowns": ["input.pets"], "input": {"prefix": "r"}}`,
	`{"query": "data.app.names.greet(input.x) == \"Good day\""}`,
}

// filterBodies are requests to turn a rule into a filter for another system.
var filterBodies = []string{
	"", `{}`, `{"input": {"user": "alice"}}`, `{"input": {"user": "alice"}, "unknowns": ["input.pets"]}`,
	`{"unknowns": ["input.pets"], "options": {"targetSQLTableMappings": {"postgresql": {"pets": {"$self": "p", "name": "label"}}}}}`,
	`{"options": {"maskRule": "masks"}}`, `{"options": {"maskRule": "data.filters.masks"}}`, `{"options": {"maskRule": "no["}}`,
	`{"options": {"targetDialects": ["sql+postgresql", "ucast+prisma"]}, "unknowns": ["input.pets"]}`, `{"unknowns": ["no["]}`, `{`}

var filterTargets = []string{
	"", "application/json", "application/vnd.opa.multitarget+json", "application/vnd.opa.ucast.all+json", "application/vnd.opa.ucast.minimal+json",
	"application/vnd.opa.ucast.prisma+json",
	"application/vnd.opa.ucast.linq+json", "application/vnd.opa.sql.postgresql+json", "application/vnd.opa.sql.mysql+json",
	"application/vnd.opa.sql.sqlserver+json", "application/vnd.opa.sql.sqlite+json", "text/html", "application/json, text/html",
}

var contentTypes = []string{
	"application/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream", "multipart/form-data; boundary=x", "nonsense",
	"",
}

var encodings = []string{
	"gzip", "gzip, deflate, br, zstd", "gzip;q=0", "identity", "*", "*/*", "deflate", "zstd", "GZIP", "gzip;q=0.5, identity;q=1",
}

var healthParameters = []string{
	"", "plugins", "bundles", "bundle", "plugins&bundles", "plugins&exclude-plugin=status", "exclude-plugin", "plugins=false", "pretty",
}

var healthPaths = []string{
	"", "?pretty", "/", "/live", "/ready", "/odd", "/empty", "/plugins", "/nowhere", "/live/", "//live", "/%2Flive", "/live/below", "/x%22",
}

var policyPaths = []string{
	"", "?pretty", "/", "/opa/main/main.rego", "/opa/main/main.rego?pretty", "/opa/app/main.rego", "/opa/app/more.rego", "/opa%2Fmain%2Fmain.rego",
	"//opa/main/main.rego", "/opa/main/main.rego/", "/opa/main", "/nowhere", "/no%22where", "/../data", "/%2e%2e/data",
}

// filterPaths are rules to make filters of, and what is none.
var filterPaths = []string{
	"/filters/always", "/filters/never", "/filters/nope", "/filters/with_function", "/filters/bound", "/filters/nowhere", "/nowhere",
	"/app/rbac/allow",
	"/filters", "/", "/filters/include/", "//filters/include", "/filters%2Finclude", "/filters/x%22", "/opa/settings/text", "/values/unicode",
}

// identities are those that the policy in authz knows.
var identities = []string{"root", "nobody", "told", "object", "half", "odd", "text", "undefined", "conflict"}

var oddIdentities = []string{
	"X-Key: open", "x-key: open", "Authorization: Bearer", "Authorization: bearer root", "Authorization: Bearer  root", "Authorization: Bearer root x",
	"Authorization: Basic cm9vdDo=", "Authorization: root", "X-Forwarded-User: root",
}

var versionZeroPaths = []string{
	"", "/rules", "/rules/allow", "/rules/deny", "/rules/roles", "/rules/roles/bob", "/rules/complete", "/rules/doubled", "/rules/twice", "/mixed",
	"/mixed/allow", "/mixed/denials", "/system/main", "/nowhere",
}

// takers are the places that take a body, with one that is good for each.
var takers = []struct{ target, body string }{
	{"/v1/data/values/echo", input(alice)},
	{"/v0/data/values/echo", alice},
	{"/", alice},
	{"/v1/query", `{"query": "x = input.user", "input": ` + alice + `}`},
	{"/v1/compile", partial[0]},
	{"/v1/compile/filters/include", `{}`},
}

// allQuestions are those for servers without a configuration. Those that change what an OPA knows come last.
func allQuestions() []questions {
	return slices.Concat(
		// Before OPA has seen a body that is zipped: after that the answer depends on luck.
		[]questions{{"bodies that say they are zipped and are not", notZipped()}},
		dataQuestions(), parameterQuestions(), errorQuestions(), bodyQuestions(), queryQuestions(), compileQuestions(), gzipQuestions(), administration(),
		[]questions{
			{"methods that nothing is for", methods("HEAD", "OPTIONS", "TRACE", "POST", "GET", "PROPFIND", "get", "CONNECT")},
			{"writes", oracleWrites()},
		},
	)
}

// below are the paths below prefix, each with suffix.
func below(prefix, suffix string, paths []string) []string {
	var targets []string
	for _, path := range paths {
		targets = append(targets, prefix+path+suffix)
	}
	return targets
}

// posts sends the same body to each.
func posts(targets []string, body string) []question {
	var list []question
	for _, target := range targets {
		list = append(list, post(target, body)...)
	}
	return list
}

func dataQuestions() []questions {
	odd := []string{"{", "", "1&input=2", "%22x%22", "null", "nan", url.QueryEscape(alice) + "%"}
	return []questions{
		{"GET of data", get(below("/v1/data", "", dataPaths)...)},
		{"GET of data with an input in the query", get(below("/v1/data", "?input="+url.QueryEscape(alice), dataPaths)...)},
		{"POST of data", posts(below("/v1/data", "", dataPaths), input(alice))},
		{"POST of data without a body", posts(below("/v1/data", "", dataPaths), "")},
		{"POST of data, version 0", posts(below("/v0/data", "", dataPaths), alice)},
		{"an input in the query that is odd", get(below("/v1/data/values/echo?input=", "", odd)...)},
		{"odd paths", slices.Concat(get(oddPaths...), posts(oddPaths, input(alice)))},
		{"paths that are not of the API", slices.Concat(get(beside...), posts(beside, input(alice)))},
	}
}

func parameterQuestions() []questions {
	pods := `{"pods": [{"name": "p", "labels": {"team": "green"}}, {"name": "q", "labels": {"team": "red"}}]}`
	asked := slices.Concat(
		get("/v1/data/labelled?input="+url.QueryEscape(`{"role": "admin"}`), "/v1/data/values/undefined", "/v1/data/opa/settings/users"),
		post("/v1/data/app/rbac", input(alice)),
		post("/v1/data/errors/divided", input(`{"zero": 0}`)),
		post("/v1/data/labelled/allow", input(`{"role": "owner"}`)),
		post("/v1/data/team/rules", input(pods)),
		post("/v1/query", `{"query": "data.labelled.allow; x := data.app.rbac.readers[_]", "input": {"role": "admin"}}`),
		get("/v1/query?q="+url.QueryEscape("x = data.app.rbac.by_role[_][_]")),
		post("/v1/compile", partial[0], partial[8]),
	)
	other := slices.Concat(asked,
		post("/", alice),
		post("/v0/data/values/list", alice),
		get("/v1/config", "/v1/status", "/v1/policies/opa/main/main.rego", "/health"),
	)
	return []questions{
		{"explanations", withParameters(asked, explanations...)},
		{"other parameters", withParameters(other, otherParameters...)},
		{"health with its parameters", withParameters(get("/health", "/health/live", "/health/ready"), healthParameters...)},
	}
}

// goingWrong are inputs for the rules of the package errors. Not all of them go wrong.
var goingWrong = []struct {
	rule   string
	inputs []string
}{
	{"", []string{conflict}},
	{"/complete", []string{conflict, `{"a": 1}`, `{}`}},
	{"/function", []string{`{"x": 2}`, `{"x": 1}`, `{"x": 0}`}},
	{"/object", []string{`{"values": [1, 2]}`, `{"values": [1]}`}},
	{"/divided", []string{`{"zero": 0}`, `{"zero": "x"}`, `{"zero": 2}`}},
	{"/parsed", []string{`{"text": "x"}`, `{"text": "1"}`}},
	{"/decoded", []string{`{"text": "{"}`, `{"text": "{}"}`}},
	{"/matched", []string{`{"pattern": "("}`}},
	{"/size", []string{`{"text": "10MB"}`, `{"text": "x"}`, `{"text": 1}`}},
	{"/below", []string{conflict}},
	{"/below/conflict", []string{conflict}},
	{"/below/fine", []string{conflict}},
}

func errorQuestions() []questions {
	var list []question
	for _, wrong := range goingWrong {
		for _, i := range wrong.inputs {
			both := slices.Concat(post("/v1/data/errors"+wrong.rule, input(i)), post("/v0/data/errors"+wrong.rule, i))
			list = append(list, both...)
			list = append(list, withParameters(both, "strict-builtin-errors", "explain=full&pretty&metrics")...)
			list = append(list, get("/v1/data/errors"+wrong.rule+"?input="+url.QueryEscape(i))...)
		}
	}
	defaults := post("/", `{"request": {"user": "alice", "conflict": true}}`, `{"request": {"user": "alice"}}`, `{"request": {"user": "bob"}}`)
	return []questions{{"rules that go wrong", list}, {"a default decision that goes wrong", defaults}}
}

// bodyQuestions are about bodies: good ones, broken ones, and how they are wrapped.
func bodyQuestions() []questions {
	yamls := []string{
		"", "input: {user: alice}\n", "input: [1, 2.50, yes]\n", "user: alice\n", "query: x = 1\n", "a: [\n", "{", `{"input": {"a": 1}}`,
		"a: &a 1\nb: *a\n",
		"query: data.values.yes\ninput: {}\n",
	}
	var odd, yaml, types, chunks []question
	for _, taker := range takers {
		odd = append(odd, post(taker.target, oddBodies...)...)
		for _, contentType := range []string{"application/yaml", "text/x-yaml", "application/x-yaml; charset=utf-8"} {
			yaml = append(yaml, with("Content-Type: "+contentType, post(taker.target, yamls...))...)
		}
		for _, contentType := range contentTypes {
			types = append(types, with("Content-Type: "+contentType, post(taker.target, taker.body))...)
		}
		chunks = append(chunks, with("Transfer-Encoding: chunked", post(taker.target, chunked(taker.body)))...)
	}
	return []questions{
		{"bodies that may be wrong", odd},
		{"YAML", yaml},
		{"types of content", types},
		{"bodies in chunks", chunks},
		{"a large body", post("/v1/data/values/echo", input(`"`+strings.Repeat("x", 1_000_000)+`"`))},
		{"bodies that nobody reads", with("Content-Encoding: gzip", slices.Concat(
			get("/v1/data/values/echo", "/v1/query?q=x%3D1", "/v1/policies/opa/main/main.rego", "/v1/config", "/health", "/nowhere"), methods("HEAD", "OPTIONS"),
		))},
		{"a GET with a body", []question{
			{method: "GET", target: "/v1/data/values/echo", body: input(alice)},
			{method: "GET", target: "/v1/query", body: `{"query": "x = 1"}`},
		}},
	}
}

func queryQuestions() []questions {
	var list []question
	for _, query := range queries {
		list = append(list, get("/v1/query?q="+url.QueryEscape(query))...)
		list = append(list, post("/v1/query", fmt.Sprintf(`{"query": %q, "input": %s}`, query, alice))...)
	}
	otherwise := []string{"", "?q=", "?q", "?q=x=1&q=y=2", "?Q=x=1", "?query=x=1", "?q=%zz", "?q=x%3D1&input=1", "/?q=x=1"}
	return []questions{
		{"queries", list},
		{"a query that is written otherwise", get(below("/v1/query", "", otherwise)...)},
	}
}

func compileQuestions() []questions {
	var filters []question
	for _, accept := range filterTargets {
		var header []string
		if accept != "" {
			header = []string{"Accept: " + accept}
		}
		for _, body := range filterBodies {
			filters = append(filters, question{method: "POST", target: "/v1/compile/filters/include", headers: header, body: body})
		}
	}
	filters = append(filters, with("Accept: application/vnd.opa.sql.postgresql+json", slices.Concat(
		posts(below("/v1/compile", "", filterPaths), `{"unknowns": ["input.pets"], "input": {"user": "alice", "prefix": "r"}}`),
		get("/v1/compile/filters/include", "/v1/compile/filters/nowhere"),
		withParameters(post("/v1/compile/filters/include", `{"input": {"user": "alice"}}`), otherParameters...),
	))...)
	return []questions{
		{"partial evaluation", slices.Concat(post("/v1/compile", partial...), get("/v1/compile"))},
		{"filters", filters},
	}
}

func gzipQuestions() []questions {
	asked := slices.Concat(
		get("/v1/data/values/large", "/v1/policies", "/v1/query?q=x+%3D+data.values.large"),
		post("/v0/data/values/large", alice),
		post("/v1/data/values/large", input(alice)),
		post("/v1/compile", `{"query": "data.app.rbac.allow == true", "unknowns": ["input", "data"]}`),
		post("/v1/data/errors/complete", input(conflict)),
		get("/v1/data/values/yes", "/v1/data/nowhere", "/v1/config", "/health", "/nowhere"),
	)
	var answers, bodies []question
	for _, encoding := range encodings {
		answers = append(answers, with("Accept-Encoding: "+encoding, asked)...)
	}
	for _, taker := range takers {
		wrapped := []string{
			zipped(taker.body), zipped(""), zipped(taker.body)[:12], zipped(taker.body) + "x", zipped(zipped(taker.body)),
			zipped(strings.Repeat(" ", 1_000_000) + taker.body),
		}
		bodies = append(bodies, with("Content-Encoding: gzip", post(taker.target, wrapped...))...)
		bodies = append(bodies, with("Content-Encoding: deflate", post(taker.target, taker.body))...)
		bodies = append(bodies, with("Content-Encoding: gzip, gzip", post(taker.target, zipped(taker.body)))...)
	}
	return []questions{{"answers that are zipped", answers}, {"bodies that are zipped", bodies}}
}

// notZipped are bodies that no gzip reader takes.
func notZipped() []question {
	var list []question
	for _, taker := range takers {
		list = append(list, with("Content-Encoding: gzip", post(taker.target, "", "{}", zipped("{}")[:9]))...)
	}
	return list
}

// administration is what tells of the server itself.
func administration() []questions {
	return []questions{
		{"policies", get(below("/v1/policies", "", policyPaths)...)},
		{"configuration and status", get("/v1/config", "/v1/config?pretty", "/v1/status", "/v1/status?pretty", "/v1/config?metrics")},
		{"health", get(below("/health", "", healthPaths)...)},
	}
}

// resources are those that methods are tried on.
var resources = []string{
	"/", "/v0/data", "/v0/data/values/yes", "/v1/data", "/v1/data/", "/v1/data/written", "/v1/data/opa/settings/text", "/v1/data/values/yes",
	"/v1/policies", "/v1/policies/opa/main/main.rego", "/v1/policies/written.rego", "/v1/query", "/v1/query/x", "/v1/compile",
	"/v1/compile/filters/include",
	"/v1/config", "/v1/status", "/health", "/health/live", "/metrics", "/nowhere", "/v1//data", "/v1/data/../policies",
}

func methods(names ...string) []question {
	var list []question
	for _, target := range resources {
		for _, name := range names {
			list = append(list, question{method: name, target: target})
		}
	}
	return list
}

// oracleWrites change what an OPA knows, so nothing that is the same is asked after them.
func oracleWrites() []question {
	list := methods("DELETE")
	for _, target := range resources {
		list = append(list,
			question{method: "PUT", target: target, body: `{"written": true}`},
			question{method: "PUT", target: target, body: "package written"},
			question{method: "PATCH", target: target, body: `[{"op": "add", "path": "/x", "value": 1}]`},
			question{method: "PATCH", target: target, body: "{"},
		)
	}
	return list
}

// authorizationQuestions are for a server with a policy system.authz.
func authorizationQuestions() []questions {
	gets := []string{
		"/health", "/health/live", "/v1/data", "/v1/data/values/yes?pretty&a=1&a=2", "/v1/data/opa/settings/odd/a%2Fb",
		"/v1/policies/opa%2Fvalues/main.rego",
		"/v1/query?q=x%3D1", "/v1/config", "/v1/status", "/nowhere", "/", "/v1/data/values/yes/", "/v1//data", "/v1/data/../data",
	}
	asked := slices.Concat(get(gets...),
		post("/v1/data/values/echo", input(alice), "", "{", `{"other": 1}`, "[1]", input("null")),
		post("/v0/data/values/echo", alice, "", "{"),
		post("/", alice, "", "{"),
		post("/v1/query", `{"query": "x = input", "input": 1}`, "{", "[]", `{"query": 1}`),
		post("/v1/compile", partial[0], "1", `{"query": "x = 1", "unknowns": [1]}`, `{"query": "x = 1", "options": {"disableInlining": 1}}`),
		post("/v1/compile/values/yes", "{}"),
		with("Content-Type: application/yaml", post("/v1/data/values/echo", "input: {a: 1}", "a: [")),
		with("Content-Encoding: gzip", post("/v1/data/values/echo", zipped(input(alice)), zipped("{"))),
		with("Transfer-Encoding: chunked", post("/v1/data/values/echo", chunked(input(alice)))),
		methods("OPTIONS"),
		[]question{{method: "HEAD", target: "/v1/data/values/yes"}, {method: "HEAD", target: "/health"}},
	)
	all := []questions{{"without an identity", asked}}
	for _, identity := range identities {
		all = append(all, questions{"as " + identity, with("Authorization: Bearer "+identity, asked)})
	}
	odd := slices.Concat(
		get("/v1/data/values/yes?key=open", "/v1/data/values/yes?key=closed&key=open", "/health?key=open"),
		post("/v1/data/values/echo", input(`{"please": true}`), input(`{"please": false}`), input(`{"please": true}`)+"x"),
		with("Authorization: Bearer nobody", with("Authorization: Bearer root", get("/v1/data/values/yes"))),
	)
	for _, header := range oddIdentities {
		odd = append(odd, with(header, get("/v1/data/values/yes"))...)
	}
	return append(all, questions{"identities and keys that are odd", odd})
}

// configurationQuestions are for a server with a configuration.
func configurationQuestions() []questions {
	text := func(length int) string { return input(`"` + strings.Repeat("x", length) + `"`) }
	limits := slices.Concat(
		post("/v1/data/values/echo", text(1_900), text(2_100)),
		post("/", text(2_100)),
		with("Transfer-Encoding: chunked", post("/v1/data/values/echo", chunked(text(1_900)), chunked(text(2_100)))),
		with("Content-Encoding: gzip", post("/v1/data/values/echo", zipped(text(2_900)), zipped(text(3_100)))),
		with("Accept-Encoding: gzip", get("/v1/data/values/yes", "/v1/data/values/unicode", "/v1/data/values/keys", "/v1/data/values")),
		with("Accept-Encoding: gzip", post("/v1/data/app/rbac", input(alice))),
	)
	decisions := slices.Concat(
		get(below("/v1/data", "", dataPaths)...), posts(below("/v1/data", "", dataPaths), input(alice)), posts(below("/v0/data", "", dataPaths), alice),
	)
	return slices.Concat([]questions{
		{"the default decision", post("/", alice, `{"user": "bob", "action": "read", "object": "code"}`, "{}", "", "{")},
		{"limits and thresholds", limits},
		{"decisions with their ids", decisions},
	}, administration(), parameterQuestions())
}

// versionZeroQuestions are for a server with policies of Rego v0.
func versionZeroQuestions() []questions {
	var list []question
	for _, path := range versionZeroPaths {
		list = append(list, get("/v1/data"+path)...)
		list = append(list, post("/v1/data"+path, input(`{"user": "bob", "a": 1, "n": 3}`), input(conflict))...)
		list = append(list, post("/v0/data"+path, `{"user": "alice"}`, conflict)...)
		explained := withParameters(post("/v1/data"+path, input(`{"user": "alice"}`)), "explain=full&pretty", "explain=full", "explain=fails&pretty", "instrument&pretty")
		list = append(list, explained...)
	}
	partial := []string{
		`{"query": "data.rules.allow == true", "unknowns": ["input"]}`,
		`{"query": "data.rules.deny[x]", "unknowns": ["input"]}`,
		`{"query": "data.mixed.allow", "unknowns": ["input"], "options": {"disableInlining": ["data.rules.allow"]}}`,
	}
	return []questions{
		{"data", list},
		{"the default decision", post("/", "{}", `{"request": 1}`)},
		{"policies", get("/v1/policies", "/v1/policies/opa/rules/main.rego", "/v1/policies/opa/mixed/main.rego?pretty")},
		{"queries", get(
			"/v1/query?q="+url.QueryEscape("data.rules.deny[x]"),
			"/v1/query?q="+url.QueryEscape(`x = data.mixed.denials with input as {"user": "bob"}`),
		)},
		{"partial evaluation", post("/v1/compile", partial...)},
		{"filters", with("Accept: application/vnd.opa.sql.postgresql+json", post("/v1/compile/rules/include", `{"unknowns": ["input.pets"]}`, `{}`))},
	}
}

// bundlePaths are below what the bundle brings, and beside it.
var bundlePaths = []string{
	"", "/bundled", "/bundled/allow", "/bundled/admins", "/bundled/text", "/bundled/number", "/bundled/wrong", "/bundled/nowhere", "/other", "/other/admins",
	"/other/greeting", "/shared", "/shared/data",
	"/shared/data/users/0", "/system/bundles", "/system/bundles/first", "/system/bundle", "/app/rbac/allow",
}

// bundleQuestions are for a server that has a bundle too.
func bundleQuestions() []questions {
	var data []question
	for _, path := range bundlePaths {
		both := slices.Concat(get("/v1/data"+path), post("/v1/data"+path, input(alice), input(conflict)), post("/v0/data"+path, alice))
		data = append(data, both...)
		data = append(data, withParameters(both, "provenance&pretty", "instrument")...)
		if path != "" { // that of everything is long
			data = append(data, withParameters(both, "explain=full")...)
		}
	}
	filters := with("Accept: application/vnd.opa.sql.postgresql+json", post("/v1/compile/filters/include", `{"unknowns": ["input.pets"], "input": {"user": "alice"}}`))
	return []questions{
		{"data", data},
		{"policies", get("/v1/policies", "/v1/policies/first/main.rego", "/v1/policies/bundle:second/main.rego", "/v1/policies/opa/main/main.rego")},
		{"queries", get("/v1/query?q="+url.QueryEscape("x = data.bundled.admins"), "/v1/query?q="+url.QueryEscape("x = data.system.bundles"))},
		{"partial evaluation", slices.Concat(post("/v1/compile", `{"query": "data.bundled.allow", "unknowns": ["input"]}`), filters)},
		{"configuration and status", get("/v1/config", "/v1/status", "/v1/status?pretty")},
		{"health", withParameters(get("/health", "/health/live"), healthParameters...)},
	}
}
