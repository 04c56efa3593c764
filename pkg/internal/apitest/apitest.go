// Package apitest has a Kubernetes API server in memory, for tests. client-go's own
// clients talk to it in HTTP, but without a network, so that it works in a bubble of
// testing/synctest, where time is not the real one.
//
// It knows objects of any kind, resource versions and the conflicts that follow from
// them, selectors, pages, watches and discovery. It validates nothing, asks nobody for
// rights and fills in no defaults: what depends on these needs the real API server, in
// e2e/.
package apitest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
)

func init() {
	// The second of client-go's handlers makes whoever reports an error wait, by the
	// time of the last one. That may have been in another bubble, in years to come.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
}

// Resource is a kind of objects that the API server has.
type Resource struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
	// Verbs are what may be done with it; nil: everything.
	Verbs []string
}

// Builtin makes a Resource of Kubernetes' own: its path, such as apps/v1/deployments or
// v1/pods, and its kind.
func Builtin(path, kind string, namespaced bool) Resource {
	parts := strings.Split(path, "/")
	if len(parts) == 2 {
		parts = append([]string{""}, parts...)
	}
	return Resource{
		GroupVersionResource: schema.GroupVersionResource{Group: parts[0], Version: parts[1], Resource: parts[2]},
		Kind:                 kind, Namespaced: namespaced,
	}
}

// Request is what a client asks for.
type Request struct {
	// Verb is one of get, list, watch, create, update, patch and delete.
	Verb string
	// Resource is the plural, with its group if it has one, as in deployments.apps;
	// empty for discovery.
	Resource string
	// Namespace and Name are those of the object; both are empty for a list of all.
	Namespace, Name string
	// Path is that of the URL.
	Path string
	// Client is the user agent.
	Client string
}

// Writes reports whether the request would change something.
func (r Request) Writes() bool { return !slices.Contains([]string{"get", "list", "watch"}, r.Verb) }

// String is the request in one line, such as "patch configmaps opa/main".
func (r Request) String() string {
	return r.Verb + " " + r.Resource + " " + strings.TrimPrefix(r.Namespace+"/"+r.Name, "/")
}

// Server is an API server. It implements http.RoundTripper.
type Server struct {
	mu        sync.Mutex
	resources []Resource
	store     store
	intercept func(Request) error
	requests  []Request
	changed   chan struct{} // closed when the store has changed
	hangUp    chan struct{} // closed when all watches are to end
}

// New makes a Server that has these resources and no objects.
func New(resources ...Resource) *Server {
	s := &Server{store: newStore(), changed: make(chan struct{}), hangUp: make(chan struct{})}
	for _, r := range resources {
		s.Serve(r)
	}
	return s
}

// Config leads clients to the server, in JSON. Their rate is not limited.
func (s *Server) Config() *rest.Config {
	inJSON := rest.ContentConfig{AcceptContentTypes: runtime.ContentTypeJSON, ContentType: runtime.ContentTypeJSON}
	return &rest.Config{Host: "http://apiserver", Transport: s, QPS: -1, ContentConfig: inJSON}
}

// Serve makes the server have a resource, in no other version than this.
func (s *Server) Serve(r Resource) {
	s.Withdraw(r.GroupResource().String())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources = append(s.resources, r)
}

// Withdraw takes a resource from the server, such as deployments.apps, and ends its
// watches. Its objects come back with it.
func (s *Server) Withdraw(resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resources = slices.DeleteFunc(s.resources, func(r Resource) bool { return r.GroupResource().String() == resource })
	s.wakeWatches()
}

// wakeWatches lets watches look what has changed.
func (s *Server) wakeWatches() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Intercept has answer asked before each request: its error is what the client gets, as
// a Status if it is one, and else as if there were no connection. It replaces the one
// before; nil: none. It may change the server's objects.
func (s *Server) Intercept(answer func(Request) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = answer
}

// Requests are those that were made so far and that match, in one line each.
func (s *Server) Requests(match func(Request) bool) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, r := range s.requests {
		if match(r) {
			all = append(all, r.String())
		}
	}
	return all
}

// Changed is closed when something has changed after the call.
func (s *Server) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// HangUp ends all watches.
func (s *Server) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.hangUp)
	s.hangUp = make(chan struct{})
}

// Expire forgets all that has happened so far, and ends all watches: nobody can go on
// with what was listed before.
func (s *Server) Expire() {
	s.mu.Lock()
	s.store.expire()
	s.mu.Unlock()
	s.HangUp()
}

// RoundTrip answers a request.
func (s *Server) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	c := s.callOf(r)
	if c.Verb == "create" {
		if o, err := read(body); err == nil {
			c.Name = o.GetName()
		}
	}
	s.mu.Lock()
	s.requests = append(s.requests, c.Request)
	intercept := s.intercept
	s.mu.Unlock()
	var err error
	if intercept != nil {
		err = intercept(c.Request)
	}
	var answer any
	if err == nil {
		answer, err = s.answer(c, r, body)
	}
	var status apierrors.APIStatus
	switch {
	case err != nil && !errors.As(err, &status):
		return nil, err
	case err != nil:
		return respond(r, int(status.Status().Code), status.Status())
	}
	if w, ok := answer.(*watcher); ok {
		return s.follow(r, w), nil
	}
	return respond(r, http.StatusOK, answer)
}

// respond is a response with a value in JSON.
func respond(r *http.Request, code int, value any) (*http.Response, error) {
	if status, ok := value.(metav1.Status); ok {
		status.Kind, status.APIVersion = "Status", "v1"
		value = status
	}
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return response(r, code, io.NopCloser(bytes.NewReader(text))), nil
}

func response(r *http.Request, code int, body io.ReadCloser) *http.Response {
	return &http.Response{
		Status: strconv.Itoa(code) + " " + http.StatusText(code), StatusCode: code,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: body, Request: r,
	}
}

// call is a request, and the resource it is about; nil if the server does not have it.
type call struct {
	Request
	resource *Resource
	query    url.Values
}

// callOf reads the path of a URL: api/v1/… or apis/<group>/<version>/…, then
// namespaces/<namespace>/ for what is in one, a plural and perhaps a name.
func (s *Server) callOf(r *http.Request) call {
	c := call{Request: Request{Path: r.URL.Path, Client: r.UserAgent()}, query: r.URL.Query()}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "api" {
		parts = slices.Insert(parts, 1, "")
	}
	parts = parts[1:]
	c.Verb = "get"
	if len(parts) < 3 {
		return c
	}
	gvr := schema.GroupVersionResource{Group: parts[0], Version: parts[1]}
	if parts = parts[2:]; parts[0] == "namespaces" && len(parts) > 2 {
		c.Namespace, parts = parts[1], parts[2:]
	}
	gvr.Resource = parts[0]
	c.Resource = gvr.GroupResource().String()
	if len(parts) > 1 {
		c.Name = parts[1]
	}
	c.Verb = verbOf(r.Method, c.Name, c.query)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, resource := range s.resources {
		if resource.GroupVersionResource == gvr {
			c.resource = &resource
		}
	}
	return c
}

func verbOf(method, name string, query url.Values) string {
	switch {
	case method == http.MethodPost:
		return "create"
	case method == http.MethodPut:
		return "update"
	case method == http.MethodPatch:
		return "patch"
	case method == http.MethodDelete:
		return "delete"
	case query.Get("watch") == "true":
		return "watch"
	case name == "":
		return "list"
	}
	return "get"
}

// answer is what to answer: a value, or a watcher.
func (s *Server) answer(c call, r *http.Request, body []byte) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Resource == "" {
		return discover(s.resources, c.Path)
	}
	if c.resource == nil {
		return nil, pageNotFound()
	}
	if c.resource.Verbs != nil && !slices.Contains(c.resource.Verbs, c.Verb) {
		return nil, apierrors.NewMethodNotSupported(c.resource.GroupResource(), c.Verb)
	}
	before := s.store.version
	answer, err := s.store.do(c, body)
	if s.store.version != before {
		s.wakeWatches()
	}
	if err != nil || !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
		return answer, err
	}
	return onlyMetadata(answer), nil
}

// pageNotFound is the answer for a path that leads nowhere.
func pageNotFound() error {
	return apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{}, "", "404 page not found", 0, true)
}

// onlyMetadata leaves out of an answer what metadata clients do not want.
func onlyMetadata(answer any) any {
	list, ok := answer.(map[string]any)
	items, isList := list["items"].([]any)
	if !ok || !isList {
		return answer
	}
	for n, item := range items {
		item, _ := item.(map[string]any)
		items[n] = map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": item["metadata"]}
	}
	list["apiVersion"], list["kind"] = "meta.k8s.io/v1", "PartialObjectMetadataList"
	return list
}

// Put creates or replaces an object of a resource such as deployments.apps, as if
// somebody else had. It may be of any type that JSON can be made of.
func (s *Server) Put(resource string, object any) {
	s.change(func() error { return s.store.put(resource, object) })
}

// Remove deletes an object, as if somebody else had.
func (s *Server) Remove(resource, namespace, name string) {
	s.change(func() error { s.store.remove(resource, namespace, name); return nil })
}

// change changes the store. An error is a mistake in the test.
func (s *Server) change(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := f(); err != nil {
		panic(err)
	}
	s.wakeWatches()
}

// Get is an object of a resource such as deployments.apps as it is stored; nil if there
// is none.
func Get[T any](s *Server, resource, namespace, name string) *T {
	for _, o := range all[T](s, resource, func(n, m string) bool { return n == namespace && m == name }) {
		return &o
	}
	return nil
}

// List is all objects of a resource as they are stored, by namespace and name.
func List[T any](s *Server, resource string) []T {
	return all[T](s, resource, func(string, string) bool { return true })
}

func all[T any](s *Server, resource string, match func(namespace, name string) bool) []T {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []T
	for _, o := range s.store.list(resource) {
		if !match(o.GetNamespace(), o.GetName()) {
			continue
		}
		var read T
		text, err := json.Marshal(o.Object)
		if err == nil {
			err = json.Unmarshal(text, &read)
		}
		if err != nil {
			panic(fmt.Errorf("reading %s %s/%s: %w", resource, o.GetNamespace(), o.GetName(), err))
		}
		list = append(list, read)
	}
	return list
}

// follow is the response to a watch: it goes on until the client has enough.
func (s *Server) follow(r *http.Request, w *watcher) *http.Response {
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(r.Context())
	go func() {
		defer cancel()
		_ = writer.CloseWithError(s.stream(ctx, w, writer))
	}()
	return response(r, http.StatusOK, &stream{PipeReader: reader, cancel: cancel})
}

// stream is a body whose end the server notices.
type stream struct {
	*io.PipeReader
	cancel func()
}

// Close ends the watch.
func (b *stream) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
