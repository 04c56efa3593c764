package e2e_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// answer is what came back.
type answer struct {
	status int
	header http.Header
	// body is as it came, but not zipped.
	body []byte
}

func (a answer) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", a.status)
	for _, name := range slices.Sorted(maps.Keys(a.header)) {
		fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(a.header[name], "; "))
	}
	fmt.Fprintf(&b, "\n%s", a.body)
	return b.String()
}

// around are two texts, if they are long as far as they differ.
func around(a, b string) (string, string) {
	const before, after = 500, 2000
	first := 0
	for first < min(len(a), len(b)) && a[first] == b[first] {
		first++
	}
	cut := func(text string) string {
		if len(text) <= before+after {
			return text
		}
		from, to := max(0, first-before), min(len(text), first+after)
		return fmt.Sprintf("… %q … (%d of %d bytes)", text[from:to], to-from, len(text))
	}
	return cut(a), cut(b)
}

// exchange writes a request as it is, which no client library does: they clean paths and add headers.
func exchange(ctx context.Context, address string, q question) (answer, error) {
	var dialer net.Dialer
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return answer{}, err
	}
	// A server may answer and close before it has read all; what it says counts then.
	_, writeErr := conn.Write(q.wire())
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: q.method})
	if errors.Is(err, io.ErrUnexpectedEOF) { // a server that panics is one that says nothing
		return answer{body: []byte("the connection was closed")}, nil
	}
	if err != nil {
		return answer{}, errors.Join(err, writeErr)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && len(body) > 0 && response.Header.Get("Content-Encoding") == "gzip" {
		body, err = unzipped(body)
	}
	return answer{response.StatusCode, response.Header, body}, err
}

func (q question) wire() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: oracle.example.com\r\nConnection: close\r\n", q.method, q.target)
	sized := q.body != ""
	for _, header := range q.headers {
		fmt.Fprintf(&b, "%s\r\n", header)
		sized = sized && !strings.HasPrefix(header, "Transfer-Encoding:")
	}
	if sized {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(q.body))
	}
	fmt.Fprintf(&b, "\r\n%s", q.body)
	return b.Bytes()
}

func unzipped(body []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

const uuid = `"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"`

var (
	decisionID = regexp.MustCompile(`("decision_id": ?)"[0-9A-Za-z-]{20,}"`)
	instanceID = regexp.MustCompile(`("id": ?)` + uuid)
	moment     = regexp.MustCompile(`("last_[a-z_]+": ?)"[0-9T:.Z-]+"`)
	timer      = regexp.MustCompile(`("timer_[a-z_]+_ns": ?)\d+`)
	histogram  = regexp.MustCompile(`"histogram_[a-z_]+": ?\{[^}]*\}`)
	quantile   = regexp.MustCompile(`("(?:[0-9.]+%|max|mean|median|min|stddev)": ?)[0-9.e+-]+`)
	bundleFile = regexp.MustCompile(`(["\s])(?:first|second)?/main\.rego`)
	local      = regexp.MustCompile(`__local[a-z]*\d+__`)
)

// normalised is the answer without what two runs of one OPA differ in:
//   - Date and Connection;
//   - the ids of decisions (decision_id) and of the server (labels.id);
//   - times: last_* of a bundle, metrics timer_*_ns, and all of a histogram_* but its count;
//   - metrics of the whole process: GET /metrics, and what GET /v1/status has of them;
//   - what comes in the order of a map: GET /v1/policies, errors about several unsafe variables, the locals of an explanation;
//   - the bundle of a file, which OPA tells or not, depending on which of two bundles came first;
//   - the names that the compiler gives to local variables (__local7__): it counts those of all modules, here they are counted by
//     their place in the answer.
//
// If that changes the body, its length goes too. Everything else stays, to the byte.
func (a answer) normalised(q question) answer {
	a.header = a.header.Clone()
	a.header.Del("Date")
	a.header.Del("Connection")
	before := a.body
	a.body = normalisedBody(q, a.body)
	if !bytes.Equal(before, a.body) || a.header.Get("Content-Encoding") != "" {
		a.header.Del("Content-Length")
	}
	return a
}

func normalisedBody(q question, body []byte) []byte {
	switch {
	case strings.HasPrefix(q.target, "/metrics") && bytes.HasPrefix(body, []byte("# HELP")):
		return []byte("metrics")
	case strings.HasPrefix(q.target, "/v1/policies"):
		body = reordered(body, sortPolicies)
	case strings.HasPrefix(q.target, "/v1/status"):
		body = reordered(body, withoutPrometheus)
	case bytes.Count(body, []byte(`"rego_unsafe_var_error"`)) > 1:
		body = reordered(body, sortErrors)
	case bytes.Contains(body, []byte(`"explanation"`)):
		body = reordered(body, sortLocals)
	}
	body = decisionID.ReplaceAll(body, []byte(`$1"a decision"`))
	body = bundleFile.ReplaceAll(body, []byte(`$1/main.rego`))
	body = instanceID.ReplaceAll(body, []byte(`$1"an instance"`))
	body = moment.ReplaceAll(body, []byte(`$1"a moment"`))
	body = timer.ReplaceAll(body, []byte(`${1}0`))
	body = histogram.ReplaceAllFunc(body, func(found []byte) []byte { return quantile.ReplaceAll(found, []byte(`${1}0`)) })
	return renamed(body, map[string]string{})
}

// renamed counts the names of local variables by their place, those that are not in names yet.
func renamed(text []byte, names map[string]string) []byte {
	return local.ReplaceAllFunc(text, func(found []byte) []byte {
		name, known := names[string(found)]
		if !known {
			name = fmt.Sprintf("__local_%05d__", len(names))
			names[string(found)] = name
		}
		return []byte(name)
	})
}

// reordered changes the order of something in a body, which stays as it is if there is nothing like it.
func reordered(body []byte, sort func(fields map[string]json.RawMessage) error) []byte {
	var fields map[string]json.RawMessage
	if json.Unmarshal(body, &fields) != nil || sort(fields) != nil {
		return body
	}
	sorted, err := json.Marshal(fields)
	if err == nil && bytes.Contains(body, []byte("\n  ")) {
		var pretty bytes.Buffer
		err = json.Indent(&pretty, sorted, "", "  ")
		sorted = pretty.Bytes()
	}
	if err != nil {
		return body
	}
	return sorted
}

// sortList sorts a list by what key makes of its elements.
func sortList(fields map[string]json.RawMessage, name string, key func(json.RawMessage) string) error {
	var list []json.RawMessage
	if err := json.Unmarshal(fields[name], &list); err != nil {
		return err
	}
	slices.SortStableFunc(list, func(a, b json.RawMessage) int { return strings.Compare(key(a), key(b)) })
	var err error
	fields[name], err = json.Marshal(list)
	return err
}

func sortPolicies(fields map[string]json.RawMessage) error {
	return sortList(fields, "result", func(policy json.RawMessage) string {
		var named struct{ ID string }
		_ = json.Unmarshal(policy, &named) // nothing comes first
		return named.ID
	})
}

func sortErrors(fields map[string]json.RawMessage) error {
	return sortList(fields, "errors", func(err json.RawMessage) string { return string(err) })
}

func withoutPrometheus(fields map[string]json.RawMessage) error {
	var result map[string]json.RawMessage
	if err := json.Unmarshal(fields["result"], &result); err != nil {
		return err
	}
	if _, ok := result["metrics"]; ok {
		result["metrics"] = json.RawMessage(`{"prometheus":"metrics"}`)
	}
	var err error
	fields["result"], err = json.Marshal(result)
	return err
}

// sortLocals sorts the locals of each event. Their names are those of the events without them: several may have one value.
func sortLocals(fields map[string]json.RawMessage) error {
	var events []map[string]json.RawMessage
	if err := json.Unmarshal(fields["explanation"], &events); err != nil {
		return err
	}
	names := map[string]string{}
	for _, event := range events {
		event["node"] = renamed(event["node"], names)
	}
	for _, event := range events {
		event["locals"] = renamed(event["locals"], names)
		if err := sortList(event, "locals", func(local json.RawMessage) string { return string(local) }); err != nil {
			return err
		}
	}
	var err error
	fields["explanation"], err = json.Marshal(events)
	return err
}

// same says what two answers differ in, or "".
func same(a, b answer) string {
	var list []string
	if a.status != b.status {
		list = append(list, "status")
	}
	names := map[string]bool{}
	for name := range a.header {
		names[name] = true
	}
	for name := range b.header {
		names[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if name == "Content-Length" && (a.header[name] == nil || b.header[name] == nil || !bytes.Equal(a.body, b.body)) {
			continue // not that of what is compared, or says nothing more
		}
		if !slices.Equal(a.header[name], b.header[name]) {
			list = append(list, name)
		}
	}
	if !bytes.Equal(a.body, b.body) {
		list = append(list, "body")
	}
	return strings.Join(list, ", ")
}
