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
	// mend takes it out of both answers, or says that it is not the one that is meant.
	mend func(q question, opa, kubeRego *answer) error
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
	mend: instead(func(q question, kubeRego answer) error {
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
	}),
}, {
	what:    "paths that are not listed above, `/metrics` and the page at `GET /` among them: `404` with an error in OPA's form",
	because: "what is listed is what was looked at; metrics and the state of kube-rego are at `--diagnostic-addr`",
	concerns: func(q question, opa answer) bool {
		return q.allowed() == "" && !q.cleaned(opa) && !refused(opa) && opa.status != http.StatusBadRequest
	},
	mend: instead(func(q question, kubeRego answer) error {
		if q.method == http.MethodHead && kubeRego.status == http.StatusNotFound {
			return nil // has no body
		}
		return apiError(kubeRego, http.StatusNotFound, "resource_not_found")
	}),
}, {
	what:     "a body with `Content-Encoding: gzip` that is no gzip: `400`",
	because:  "OPA panics and closes the connection, as long as it has seen no good one",
	concerns: func(_ question, opa answer) bool { return opa.status == 0 },
	mend: instead(func(_ question, kubeRego answer) error {
		return apiError(kubeRego, http.StatusBadRequest, "invalid_parameter", "could not decompress the body: ")
	}),
}, {
	what:    "queries that call `http.send`, `opa.runtime`, `net.lookup_ip_addr`, `json.match_schema` or `json.verify_schema`: `400`, undefined function",
	because: "they lend the authority of the process, its network, files and environment; `--enable-builtin` switches them on, but for `http.send`, which OPA refuses in queries too, in other words",
	concerns: func(q question, _ answer) bool {
		text, _ := url.QueryUnescape(q.target)
		return strings.HasSuffix(q.path(), "/query") && builtinsOff.MatchString(text+q.body) || q.path() == "/v1/compile" && builtinsOff.MatchString(q.body)
	},
	mend: instead(func(_ question, kubeRego answer) error {
		if !bytes.Contains(kubeRego.body, []byte(`"message": "undefined function `)) {
			return errors.New("no function is undefined")
		}
		return apiError(kubeRego, http.StatusBadRequest, "invalid_parameter", "error(s) occurred while compiling ")
	}),
}, {
	what:    "`GET /v1/policies`: `ast` is the module as it is written",
	because: "OPA shows what its compiler made of it, with names of its own; here modules of one package are compiled as one",
	concerns: func(q question, opa answer) bool {
		return q.method == http.MethodGet && strings.HasPrefix(q.path(), "/v1/policies") && opa.status == http.StatusOK && !strings.Contains(q.path(), "first")
	},
	mend: func(_ question, opa, kubeRego *answer) error {
		return errors.Join(withoutRules(opa), withoutRules(kubeRego))
	},
}, {
	what:    "`GET /v1/status` has no metrics of the process, and of a bundle not the time to parse its data",
	because: "those of the process are at `--diagnostic-addr`; data is parsed by ourselves",
	concerns: func(q question, opa answer) bool {
		return q.path() == "/v1/status" && bytes.Contains(opa.body, []byte(`"metrics"`))
	},
	mend: func(_ question, opa, _ *answer) error {
		opa.replace(dataParsed, "")
		return opa.without(ownMetrics)
	},
}, {
	what:     "with `decision_logs` there is a `data.system.log.mask`, unless you define one",
	because:  "what is in a Secret has no place in a log",
	only:     configured,
	concerns: func(q question, _ answer) bool { return strings.HasSuffix(q.path(), "/data/system") },
	mend:     func(_ question, _, kubeRego *answer) error { return kubeRego.without(ownMask) },
}, {
	what:     "with `decision_logs`, `GET /v1/config` shows a `reporting.buffer_size_limit_bytes` of 64 MiB, unless you set one",
	because:  "OPA keeps all that it cannot send, until decisions have no memory left",
	only:     configured,
	concerns: func(q question, _ answer) bool { return q.path() == "/v1/config" },
	mend:     func(_ question, _, kubeRego *answer) error { return kubeRego.without(ownLimit) },
}, {
	what:    "a module of a bundle is called `bundle:<bundle>/<path>`",
	because: "a bundle may be called like a namespace; OPA says `<bundle>/<path>`, or `/<path>` where it is told in an error",
	only:    bundled,
	concerns: func(q question, opa answer) bool {
		return bundleFile.Match(opa.body) || strings.HasPrefix(q.path(), "/v1/policies") && !strings.HasSuffix(q.path(), "/opa/main/main.rego")
	},
	mend: func(q question, opa, kubeRego *answer) error {
		kubeRego.replace(ownFile, "/main.rego")
		switch q.path() {
		case "/v1/policies":
			return errors.Join(opa.sort(), kubeRego.sort())
		case "/v1/policies/first/main.rego":
			return instead(func(_ question, kubeRego answer) error {
				return apiError(kubeRego, http.StatusNotFound, "resource_not_found")
			})(q, opa, kubeRego)
		case "/v1/policies/bundle:second/main.rego":
			return instead(func(_ question, kubeRego answer) error {
				if kubeRego.status != http.StatusOK || !bytes.Contains(kubeRego.body, []byte(`package other`)) {
					return errors.New("it is not there")
				}
				return nil
			})(q, opa, kubeRego)
		}
		return nil
	},
}, {
	what:    "with `?instrument` nothing is in the query cache: `counter_server_query_cache_hit` is 0, and there are times of preparing the query",
	because: "OPA's compiler is written to then, which others read at the same time",
	concerns: func(q question, opa answer) bool {
		return strings.Contains(q.target, "instrument") && (cacheHit.Match(opa.body) || strings.HasPrefix(q.path(), "/v1/compile/") && opa.status == http.StatusOK)
	},
	mend: func(_ question, opa, kubeRego *answer) error {
		for _, each := range []*regexp.Regexp{cacheHits, timers} {
			opa.replace(each, "")
			kubeRego.replace(each, "")
		}
		return nil
	},
}}

// instead is for an answer that is another one, which check knows.
func instead(check func(q question, kubeRego answer) error) func(question, *answer, *answer) error {
	return func(q question, opa, kubeRego *answer) error {
		err := check(q, *kubeRego)
		*kubeRego = *opa
		return err
	}
}

// replace changes what is found in the body.
func (a *answer) replace(found *regexp.Regexp, text string) {
	a.body = found.ReplaceAll(a.body, []byte(text))
}

// without takes something out of the body that must be there.
func (a *answer) without(found *regexp.Regexp) error {
	if !found.Match(a.body) {
		return fmt.Errorf("there is no %s", found)
	}
	a.replace(found, "")
	return nil
}

var (
	ownMask    = regexp.MustCompile(`,"log":\{"mask":\[\]\}`)
	ownLimit   = regexp.MustCompile(`,\s*"reporting": ?\{\s*"buffer_size_limit_bytes": ?67108864\s*\}`)
	ownMetrics = regexp.MustCompile(`"metrics": ?\{\s*"prometheus": ?"metrics"\s*\},\s*`)
	cacheHit   = regexp.MustCompile(`"counter_server_query_cache_hit": ?1`)
	cacheHits  = regexp.MustCompile(`"counter_server_query_cache_hit": ?[01],?\s*`)
	timers     = regexp.MustCompile(`,?\s*"timer_[a-z_]+_ns": ?0`)
	dataParsed = regexp.MustCompile(`"timer_rego_data_parse_ns": ?0,\s*`)
	ownFile    = regexp.MustCompile(`bundle:(first|second)/main\.rego`)
)

// sort sorts a body that is a list.
func (a *answer) sort() error {
	var list []json.RawMessage
	if err := json.Unmarshal(a.body, &list); err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b json.RawMessage) int { return bytes.Compare(a, b) })
	body, err := json.Marshal(list)
	a.body = body
	return err
}

// withoutRules leaves of each ast in an answer of GET /v1/policies its package only.
func withoutRules(a *answer) error {
	var all struct{ Result json.RawMessage }
	if err := json.Unmarshal(a.body, &all); err != nil {
		return err
	}
	type module struct {
		ID, Raw string
		AST     struct{ Package any }
	}
	var list []module
	if err := json.Unmarshal(all.Result, &list); err != nil {
		list = make([]module, 1)
		if err := json.Unmarshal(all.Result, &list[0]); err != nil {
			return err
		}
	}
	body, err := json.Marshal(list)
	a.body = body
	return err
}

// builtinsOff are the built-ins that are off unless they are switched on.
var builtinsOff = regexp.MustCompile(`(http\.send|opa\.runtime|net\.lookup_ip_addr|json\.match_schema|json\.verify_schema)\(`)

// path is the target without the query.
func (q question) path() string {
	path, _, _ := strings.Cut(q.target, "?")
	return path
}
