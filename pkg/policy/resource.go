package policy

// Resource is a resource of the cluster whose objects policies read.
type Resource struct {
	// Name is what policies call it: the last part of its path in data.
	Name string
	// Resource is [group/]version/resource; empty as long as it is not known.
	Resource string
	// Path is where its objects are in data, such as data.kubernetes.pods.
	Path string
	// State is one of the four below.
	State ResourceState
	// Reason is why it is not loaded; empty if it is.
	Reason string
	// Objects is how many there are in data.
	Objects int
}

// ResourceState is in one word what is known of the objects of a resource.
type ResourceState string

// Loading: the first list is on its way. Loaded: the objects are in data. Missing:
// the API server knows no such resource, so there are no objects. Failed: it does
// not let us see them, so nothing is known of them.
const (
	ResourceLoading ResourceState = "loading"
	ResourceLoaded  ResourceState = "loaded"
	ResourceMissing ResourceState = "missing"
	ResourceFailed  ResourceState = "failed"
)

// Resources are those that policies read by name.
type Resources map[string]Resource

// Known reports whether it is known which objects there are: all, or none.
func (r Resource) Known() bool { return r.State == ResourceLoaded || r.State == ResourceMissing }

// Exists reports whether there is such a resource, as far as one can tell.
func (r Resource) Exists() bool { return r.State != ResourceMissing }

// Problem is what there is to say to who reads a resource that is not loaded.
func (r Resource) Problem() Problem {
	switch r.State {
	case ResourceLoading:
		return Problem{Code: CodePending, Message: r.Path + " is not known: " + r.Reason}
	case ResourceMissing:
		return Problem{Code: CodeUnavailable, Message: r.Path + " has no objects: " + r.Reason}
	case ResourceLoaded, ResourceFailed:
	}
	return Problem{Code: CodeUnavailable, Message: r.Path + " is not known: " + r.Reason}
}
