package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
)

// deviation is what kube-rego answers otherwise than OPA, on purpose. docs/api.md has them all.
type deviation struct {
	// what differs, and why.
	what, because string
	// only is the case where it is to be seen; empty: all of them.
	only string
	// concerns says which questions are answered otherwise, of which OPA's answer is known: all of them must be.
	concerns func(q question, opa answer) bool
	// check is an error if the answer is not the one that is meant.
	check func(q question, opa, kubeRego answer) error
}

// routes are what is served: the methods of each path, and of the paths below it if it ends in a slash.
var routes = map[string]string{
	"/": "POST", "/v0/data": "POST", "/v0/data/": "POST", "/v1/data": "GET, POST", "/v1/data/": "GET, POST", "/v1/query": "GET, POST",
	"/v1/compile": "POST", "/v1/compile/": "GET, POST", "/v1/policies": "GET", "/v1/policies/": "GET", "/v1/config": "GET", "/v1/status": "GET",
	"/health": "GET", "/health/": "GET",
}

// allowed are the methods of what the question asks for; empty if there is no such thing. A slash that is escaped is no slash.
func (q question) allowed() string {
	path := decoded(q.path())
	if methods, ok := routes[path]; ok {
		return methods
	}
	for at := strings.LastIndex(path, "/"); at > 0; at = strings.LastIndex(path[:at], "/") {
		if methods, ok := routes[path[:at+1]]; ok {
			return methods
		}
	}
	return ""
}

func decoded(path string) string {
	names := strings.Split(path, "/")
	for i, name := range names {
		if plain, err := url.PathUnescape(name); err == nil && !strings.Contains(plain, "/") {
			names[i] = plain
		}
	}
	return strings.Join(names, "/")
}

// serves says whether the method is one of those that are allowed. Where there is GET, OPA refuses HEAD by itself.
func (q question) serves() bool {
	method := strings.Replace(q.method, "HEAD", "GET", 1)
	return slices.Contains(strings.Split(q.allowed(), ", "), method)
}

// refused says whether the policy about requests has the word: then it is the same here.
func refused(a answer) bool {
	return a.status == http.StatusUnauthorized || a.status == http.StatusInternalServerError && !bytes.Contains(a.body, []byte(`"result"`))
}

// cleaned says whether the server asks for the same path without //, . and .., as Go's does.
func (q question) cleaned(a answer) bool {
	return a.status == http.StatusTemporaryRedirect && path.Clean(q.path()) != strings.TrimSuffix(q.path(), "/")
}

// apiError is an error of the API, as OPA words one.
func apiError(a answer, status int, code string, parts ...string) error {
	var said struct{ Code, Message string }
	err := json.Unmarshal(a.body, &said)
	if err != nil || a.status != status || a.header.Get("Content-Type") != "application/json" || said.Code != code || !contains(parts...)(said.Message) {
		return fmt.Errorf("it should be %d %s with %q, %w", status, code, parts, err)
	}
	return nil
}

var deviations = []deviation{{
	what:    "`PUT`, `PATCH`, `DELETE`, and every other method that a path does not have: `405` with `Allow` and an error in OPA's form",
	because: "policies and data are ConfigMaps, and the next event would undo what a client changed here; OPA answers such methods in three ways, most without a word",
	concerns: func(q question, opa answer) bool {
		atOnce := opa.status == http.StatusMovedPermanently || q.method == http.MethodHead && opa.status == http.StatusMethodNotAllowed
		return q.allowed() != "" && !q.serves() && !atOnce && !q.cleaned(opa) && !refused(opa)
	},
	check: func(q question, _, kubeRego answer) error {
		if q.method == http.MethodHead && kubeRego.status == http.StatusMethodNotAllowed {
			return nil // without a word, as OPA elsewhere
		}
		if kubeRego.header.Get("Location") == strings.TrimSuffix(q.path(), "/") {
			return nil // first of all the slash at the end has to go, as OPA says elsewhere
		}
		if kubeRego.header.Get("Allow") != q.allowed() {
			return fmt.Errorf("it should allow %q", q.allowed())
		}
		return apiError(kubeRego, http.StatusMethodNotAllowed, "method_not_allowed", q.method, "ConfigMaps")
	},
}, {
	what:    "paths that are not listed above, `/metrics` and the page at `GET /` among them: `404` with an error in OPA's form",
	because: "what is listed is what was looked at; metrics and the state of kube-rego are at `--diagnostic-addr`",
	concerns: func(q question, opa answer) bool {
		return q.allowed() == "" && !q.cleaned(opa) && !refused(opa) && opa.status != http.StatusBadRequest
	},
	check: func(q question, _, kubeRego answer) error {
		if q.method == http.MethodHead && kubeRego.status == http.StatusNotFound {
			return nil // has no body
		}
		return apiError(kubeRego, http.StatusNotFound, "resource_not_found")
	},
}, {
	what:     "a body with `Content-Encoding: gzip` that is no gzip: `400`",
	because:  "OPA panics and closes the connection, as long as it has seen no good one",
	concerns: func(_ question, opa answer) bool { return opa.status == 0 },
	check: func(_ question, _, kubeRego answer) error {
		return apiError(kubeRego, http.StatusBadRequest, "invalid_parameter", "could not decompress the body: ")
	},
}, {
	what:    "queries that call `http.send`, `opa.runtime`, `net.lookup_ip_addr`, `json.match_schema` or `json.verify_schema`: `400`, undefined function",
	because: "they lend the authority of the process, its network, files and environment; `--enable-builtin` switches them on, but for `http.send`, which OPA refuses in queries too, in other words",
	concerns: func(q question, _ answer) bool {
		text, _ := url.QueryUnescape(q.target)
		return strings.HasSuffix(q.path(), "/query") && builtinsOff.MatchString(text+q.body) || q.path() == "/v1/compile" && builtinsOff.MatchString(q.body)
	},
	check: func(_ question, _, kubeRego answer) error {
		if !bytes.Contains(kubeRego.body, []byte(`"message": "undefined function `)) {
			return errors.New("no function is undefined")
		}
		return apiError(kubeRego, http.StatusBadRequest, "invalid_parameter", "error(s) occurred while compiling ")
	},
}, {
	what:    "`GET /v1/policies`: `ast` is the module as it is written",
	because: "OPA shows what its compiler made of it, with names of its own; here modules of one package are compiled as one",
	concerns: func(q question, opa answer) bool {
		return strings.HasPrefix(q.path(), "/v1/policies") && opa.status == http.StatusOK
	},
	check: func(_ question, opa, kubeRego answer) error {
		var err [2]error
		opa.body, err[0] = withoutRules(opa.body)
		kubeRego.body, err[1] = withoutRules(kubeRego.body)
		return errors.Join(err[0], err[1], sameBut(opa, kubeRego, "Content-Length"))
	},
}, {
	what:    "`GET /v1/status` has no metrics",
	because: "they are those of the process, and at `--diagnostic-addr`",
	concerns: func(q question, opa answer) bool {
		return q.path() == "/v1/status" && bytes.Contains(opa.body, []byte(`"metrics"`))
	},
	check: func(_ question, opa, kubeRego answer) error {
		opa.body = ownMetrics.ReplaceAll(opa.body, nil)
		return sameBut(opa, kubeRego, "Content-Length")
	},
}, {
	what:     "with `decision_logs` there is a `data.system.log.mask`, unless you define one",
	because:  "what is in a Secret has no place in a log",
	only:     configured,
	concerns: func(q question, _ answer) bool { return strings.HasSuffix(q.path(), "/data/system") },
	check: func(_ question, opa, kubeRego answer) error {
		kubeRego.body = ownMask.ReplaceAll(kubeRego.body, nil)
		return sameBut(opa, kubeRego, "Content-Length")
	},
}, {
	what:     "with `decision_logs`, `GET /v1/config` shows a `reporting.buffer_size_limit_bytes` of 64 MiB, unless you set one",
	because:  "OPA keeps all that it cannot send, until decisions have no memory left",
	only:     configured,
	concerns: func(q question, _ answer) bool { return q.path() == "/v1/config" },
	check: func(_ question, opa, kubeRego answer) error {
		kubeRego.body = ownLimit.ReplaceAll(kubeRego.body, nil)
		return sameBut(opa, kubeRego, "Content-Length")
	},
}}

// sameBut is an error if two answers differ in anything but a header.
func sameBut(opa, kubeRego answer, header string) error {
	opa.header, kubeRego.header = opa.header.Clone(), kubeRego.header.Clone()
	opa.header.Del(header)
	kubeRego.header.Del(header)
	if differ := same(opa, kubeRego); differ != "" {
		return fmt.Errorf("%s differ too", differ)
	}
	return nil
}

var (
	ownMask    = regexp.MustCompile(`,"log":\{"mask":\[\]\}`)
	ownLimit   = regexp.MustCompile(`,\s*"reporting": ?\{\s*"buffer_size_limit_bytes": ?67108864\s*\}`)
	ownMetrics = regexp.MustCompile(`"metrics": ?\{[^}]*\},\s*`)
)

// withoutRules is an answer of GET /v1/policies of which each ast has its package only.
func withoutRules(body []byte) ([]byte, error) {
	var answer struct{ Result json.RawMessage }
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	type policy struct {
		ID, Raw string
		AST     struct{ Package any }
	}
	var list []policy
	if err := json.Unmarshal(answer.Result, &list); err != nil {
		list = make([]policy, 1)
		if err := json.Unmarshal(answer.Result, &list[0]); err != nil {
			return nil, err
		}
	}
	return json.Marshal(list)
}

// builtinsOff are the built-ins that are off unless they are switched on.
var builtinsOff = regexp.MustCompile(`(http\.send|opa\.runtime|net\.lookup_ip_addr|json\.match_schema|json\.verify_schema)\(`)

// path is the target without the query.
func (q question) path() string {
	path, _, _ := strings.Cut(q.target, "?")
	return path
}
