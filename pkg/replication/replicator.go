// Package replication puts objects of the cluster into data, where policies read
// them, and keeps them as they are in the cluster. Flags say which resources these
// are, or the policies themselves by what they read.
//
// An object is held once, in data: what the API server sends goes there straight
// away, in batches, and no cache of another form is kept beside it. The package lists
// and watches; it writes nothing to the cluster, and knows documents but no policies.
package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// Data is where objects go.
type Data interface {
	// Apply changes data, all at once and in this order.
	Apply(changes ...data.Change)
	// Documents returns how many there are at and below a path.
	Documents(path []string) int
}

// Config is what a Replicator needs.
type Config struct {
	// REST is how to reach the API server that has the objects.
	REST *rest.Config
	// Discovery knows which resources there are.
	Discovery discovery.ServerResourcesInterface
	// Resources are replicated whatever policies read.
	Resources []Resource
	// Path is below which policies find resources by their plural.
	Path []string
	// IgnoreNamespaces are those whose objects stay out.
	IgnoreNamespaces []string
	// Data is where the objects go.
	Data Data
	// Log is told what comes, goes and fails.
	Log *slog.Logger
}

// discoverEvery is how often the API server is asked for its resources while one is
// missing that a policy reads: it may be installed at any time.
const discoverEvery = 5 * time.Second

// Replicator keeps data as the cluster is.
type Replicator struct {
	config  Config
	client  rest.Interface
	batches *batcher
	fixed   []*feed       // of Config.Resources
	wake    chan struct{} // one slot: what is wanted has changed

	mu   sync.Mutex
	look func()
	// wanted are the names that policies read, and what is known of those that are
	// not followed. followed are the feeds of the others.
	wanted   map[string]policy.Resource
	followed map[string]*following
	// empty are names of which it is known that there are no objects, and data says so.
	empty map[string]bool
}

// following is a feed that runs until stop is called; stop returns when it has ended.
type following struct {
	*feed
	stop func()
}

// New makes a Replicator; Run starts it.
func New(config Config) (*Replicator, error) {
	client, err := newClient(config.REST)
	if err != nil {
		return nil, err
	}
	r := &Replicator{
		config:   config,
		client:   client,
		batches:  &batcher{data: config.Data},
		wake:     make(chan struct{}, 1),
		look:     func() {},
		wanted:   make(map[string]policy.Resource),
		followed: make(map[string]*following),
		empty:    make(map[string]bool),
	}
	for _, resource := range config.Resources {
		r.fixed = append(r.fixed, r.newFeed(resource))
	}
	return r, nil
}

func (r *Replicator) newFeed(resource Resource) *feed {
	return &feed{
		Resource:  resource,
		ignore:    r.config.IgnoreNamespaces,
		client:    r.client,
		data:      r.config.Data,
		batches:   r.batches,
		changed:   r.changed,
		elsewhere: r.elsewhere,
		state:     policy.ResourceLoading,
		reason:    waiting,
	}
}

// elsewhere is the version in which the API server has a resource; the zero value if it
// has it in none, or in the one that is named.
func (r *Replicator) elsewhere(resource Resource) (Resource, error) {
	known, err := Discover(r.config.Discovery)
	if err != nil {
		return Resource{}, err
	}
	return known.other(resource), nil
}

// changed tells of the state of a feed.
func (r *Replicator) changed(f *feed) {
	s := f.counted()
	log := r.config.Log.With("resource", s.Resource, "path", s.Path)
	switch {
	case s.State == policy.ResourceLoaded && s.Reason == "":
		log.Info("objects are replicated", "objects", s.Objects)
	case s.State == policy.ResourceLoaded:
		log.Warn("objects are as they were: the API server does not answer", "reason", s.Reason)
	case s.State != policy.ResourceLoading:
		log.Warn("objects are not replicated", "state", s.State, "reason", s.Reason)
	}
	if f.hasMoved() {
		r.wakeUp()
	}
	r.mu.Lock()
	look := r.look
	r.mu.Unlock()
	look()
}

// wakeUp lets follow look again.
func (r *Replicator) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run replicates until ctx ends, and calls look when more or less is available than
// before; look must not block. An error is a mistake in Config.Resources.
func (r *Replicator) Run(ctx context.Context, look func()) error {
	r.mu.Lock()
	r.look = look
	r.mu.Unlock()
	var errs []error
	for _, f := range r.fixed {
		errs = append(errs, check(r.config.Discovery, f.Resource))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var running sync.WaitGroup
	defer running.Wait()
	for _, f := range r.fixed {
		running.Go(func() { f.run(ctx) })
	}
	running.Go(func() { r.follow(ctx) })
	<-ctx.Done()
	return nil
}

// Want says which resources policies read, by name. Those that they do not read any
// more are no longer replicated.
func (r *Replicator) Want(names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	wanted := make(map[string]policy.Resource, len(names))
	for _, name := range names {
		if r.isFixed(name) {
			continue
		}
		wanted[name] = cmp.Or(r.wanted[name], policy.Resource{
			Name: name, Path: r.pathOf(name), State: policy.ResourceLoading, Reason: waiting,
		})
	}
	if maps.Equal(wanted, r.wanted) {
		return
	}
	r.wanted = wanted
	r.wakeUp()
}

func (r *Replicator) pathOf(name string) string {
	return "data." + strings.Join(append(slices.Clone(r.config.Path), name), ".")
}

// isFixed reports whether a flag has put a resource at the path of a name, or below
// it.
func (r *Replicator) isFixed(name string) bool {
	path := append(slices.Clone(r.config.Path), name)
	return slices.ContainsFunc(r.fixed, func(f *feed) bool {
		return len(f.Path) >= len(path) && slices.Equal(f.Path[:len(path)], path)
	})
}

// Resources are all that are wanted, by flags and by policies, sorted by path.
func (r *Replicator) Resources() []policy.Resource { return r.each((*feed).counted) }

// each describes all that are wanted, sorted by path.
func (r *Replicator) each(describe func(*feed) policy.Resource) []policy.Resource {
	var all []policy.Resource
	for _, f := range r.fixed {
		all = append(all, describe(f))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, resource := range r.wanted {
		if f := r.followed[name]; f != nil {
			resource = describe(f.feed)
		}
		all = append(all, resource)
	}
	slices.SortFunc(all, func(a, b policy.Resource) int { return cmp.Compare(a.Path, b.Path) })
	return all
}

// ByName are the resources that policies read by a name below the path. Where a flag
// has put several below one name, it is one of which it is not known what there is, if
// there is such. They are not counted: that changes all the time.
func (r *Replicator) ByName() policy.Resources {
	byName := make(policy.Resources)
	for _, resource := range r.each((*feed).status) {
		name, _, _ := strings.Cut(strings.TrimPrefix(resource.Path, r.pathOf("")), ".")
		if other, ok := byName[name]; ok && !other.Known() {
			continue
		}
		byName[name] = resource
	}
	return byName
}

// Waiting is nil once the first list of all that flags name is loaded, and it is
// known of all that policies read whether it can be. A resource that does not exist
// has no objects, and nothing is waited for.
func (r *Replicator) Waiting() error {
	for _, f := range r.fixed {
		if s := f.status(); s.State == policy.ResourceLoading || s.State == policy.ResourceFailed {
			return fmt.Errorf("%s: %s", s.Resource, s.Reason)
		}
	}
	for _, s := range r.each((*feed).status) {
		if s.State == policy.ResourceLoading {
			return fmt.Errorf("%s: %s", s.Path, s.Reason)
		}
	}
	return nil
}

// follow starts and stops feeds as policies want until ctx ends.
func (r *Replicator) follow(ctx context.Context) {
	ticker := time.NewTicker(discoverEvery)
	defer ticker.Stop()
	for {
		r.drop()
		r.start(ctx)
		select {
		case <-ctx.Done():
			for _, f := range r.followed {
				f.stop()
			}
			return
		case <-r.wake:
		case <-ticker.C:
		}
	}
}

// drop stops the feeds that nobody wants, and those of resources that are no more: if
// they come back, it may be in another version. Their data goes.
func (r *Replicator) drop() {
	r.mu.Lock()
	for name := range r.empty {
		if _, wanted := r.wanted[name]; !wanted {
			delete(r.empty, name)
			r.batches.add(data.Change{Path: append(slices.Clone(r.config.Path), name)})
		}
	}
	r.mu.Unlock()
	r.dropFeeds()
}

func (r *Replicator) dropFeeds() {
	r.mu.Lock()
	var gone []*following
	for name, f := range r.followed {
		if _, wanted := r.wanted[name]; wanted && f.status().State != policy.ResourceMissing && !f.hasMoved() {
			continue
		}
		gone = append(gone, f)
	}
	r.mu.Unlock()
	for _, f := range gone {
		f.stop()
		r.mu.Lock()
		name := f.Path[len(f.Path)-1]
		delete(r.followed, name)
		resource, wanted := r.wanted[name]
		switch {
		case wanted && f.hasMoved(): // its objects stay until they come from there
			resource.State, resource.Reason = policy.ResourceLoading, waiting
			r.wanted[name] = resource
		case wanted:
			r.wanted[name], r.empty[name] = f.status(), true
		}
		r.mu.Unlock()
		if !wanted {
			r.batches.add(data.Change{Path: f.Path})
			r.config.Log.Info("objects are no longer replicated: no policy reads them", "resource", f.String())
		}
	}
}

// start starts feeds for what is wanted and not followed.
func (r *Replicator) start(ctx context.Context) {
	names := r.open()
	if len(names) == 0 {
		return
	}
	known, err := Discover(r.config.Discovery)
	if ctx.Err() != nil {
		return
	}
	for _, name := range names {
		if err != nil {
			r.note(name, policy.ResourceFailed, err)
			continue
		}
		resource, state, err := known.Resolve(name)
		if err != nil {
			r.note(name, state, err)
			continue
		}
		resource.Path = append(slices.Clone(r.config.Path), name)
		r.startOne(ctx, r.newFeed(resource))
	}
}

// open are the names that are wanted and not followed, sorted.
func (r *Replicator) open() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for name := range r.wanted {
		if r.followed[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func (r *Replicator) startOne(ctx context.Context, f *feed) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	r.mu.Lock()
	delete(r.empty, f.Path[len(f.Path)-1]) // data is the feed's from now on
	r.followed[f.Path[len(f.Path)-1]] = &following{feed: f, stop: func() { cancel(); <-ended; f.end() }}
	r.mu.Unlock()
	r.config.Log.Info("a policy reads objects of the cluster", "resource", f.String(), "path", "data."+strings.Join(f.Path, "."))
	go func() {
		defer close(ended)
		f.run(ctx)
	}()
}

// note says why a wanted name is not followed.
func (r *Replicator) note(name string, state policy.ResourceState, err error) {
	r.mu.Lock()
	resource, ok := r.wanted[name]
	news := ok && (resource.State != state || resource.Reason != err.Error())
	if news {
		resource.State, resource.Reason = state, err.Error()
		r.wanted[name] = resource
	}
	if news && state == policy.ResourceMissing {
		r.empty[name] = true
		r.batches.add(data.Change{Path: append(slices.Clone(r.config.Path), name), Content: data.NewCollection()})
	}
	look := r.look
	r.mu.Unlock()
	if !news {
		return
	}
	r.config.Log.Warn("objects are not replicated", "path", resource.Path, "state", state, "reason", err)
	look()
}
