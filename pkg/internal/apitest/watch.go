package apitest

import (
	"cmp"
	"context"
	"io"
	"slices"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
)

// watcher is what one watch has to tell.
type watcher struct {
	call
	selected func(*unstructured.Unstructured) bool
	first    []any  // events to begin with
	version  uint64 // all up to it is told
	timeout  time.Duration
}

// event is one line of a watch.
func event(kind string, object any) any { return map[string]any{"type": kind, "object": object} }

// watch begins a watch: with what is there if the client has not listed it yet.
func (s *store) watch(c call) (any, error) {
	selected, err := selectorOf(c)
	if err != nil {
		return nil, err
	}
	w := &watcher{call: c, selected: selected, timeout: time.Hour}
	if seconds, err := strconv.Atoi(c.query.Get("timeoutSeconds")); err == nil {
		w.timeout = time.Duration(seconds) * time.Second
	}
	initial := c.query.Get("sendInitialEvents") == "true"
	from := c.query.Get("resourceVersion")
	if !initial && from != "" && from != "0" {
		if w.version, err = strconv.ParseUint(from, 10, 64); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		return w, nil
	}
	w.version = s.version
	for _, o := range s.list(c.Resource) {
		if selected(o) {
			w.first = append(w.first, event("ADDED", shown(c, o)))
		}
	}
	if initial {
		w.first = append(w.first, event("BOOKMARK", map[string]any{
			"apiVersion": c.resource.GroupVersion().String(), "kind": c.resource.Kind,
			"metadata": map[string]any{
				"resourceVersion": strconv.FormatUint(s.version, 10),
				"annotations":     map[string]any{metav1.InitialEventsAnnotationKey: "true"},
			},
		}))
	}
	return w, nil
}

// since is what has happened after a watcher's version, and the version it leads to.
func (s *store) since(w *watcher) ([]any, uint64) {
	if w.version < s.oldest {
		status := apierrors.NewResourceExpired("too old resource version").Status()
		status.Kind, status.APIVersion = "Status", "v1"
		return []any{event("ERROR", status)}, s.version
	}
	var events []any
	first, _ := slices.BinarySearchFunc(s.changes, w.version+1, func(c change, version uint64) int { return cmp.Compare(c.version, version) })
	for _, c := range s.changes[first:] {
		if c.resource != w.Resource {
			continue
		}
		switch before, after := w.selected(c.before), w.selected(c.after); {
		case before && after:
			events = append(events, event("MODIFIED", shown(w.call, c.after)))
		case after:
			events = append(events, event("ADDED", shown(w.call, c.after)))
		case before:
			gone := c.before.DeepCopy()
			gone.SetResourceVersion(strconv.FormatUint(c.version, 10))
			events = append(events, event("DELETED", shown(w.call, gone)))
		}
	}
	return events, s.version
}

// stream writes what a watcher has to tell until ctx ends, its time is over or the
// server hangs up.
func (s *Server) stream(ctx context.Context, w *watcher, to io.Writer) error {
	s.mu.Lock()
	hangUp := s.hangUp
	s.mu.Unlock()
	timeout := time.NewTimer(w.timeout)
	defer timeout.Stop()
	events := w.first
	for {
		s.mu.Lock()
		more, version := s.store.since(w)
		changed := s.changed
		served := slices.ContainsFunc(s.resources, func(r Resource) bool { return r.GroupVersionResource == w.resource.GroupVersionResource })
		s.mu.Unlock()
		w.version = version
		for _, e := range append(events, more...) {
			text, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if _, err := to.Write(append(text, '\n')); err != nil {
				return err
			}
		}
		if events = nil; !served {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout.C:
			return nil
		case <-hangUp:
			return nil
		case <-changed:
		}
	}
}
