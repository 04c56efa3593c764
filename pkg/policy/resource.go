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

// Unavailable are the resources that are not loaded, by their name.
type Unavailable map[string]Resource

// Problem is why a module that reads the resource is held while it is not loaded.
func (r Resource) Problem() Problem {
	code := CodeUnavailable
	if r.State == ResourceLoading {
		code = CodePending
	}
	return Problem{Code: code, Message: r.Path + " is not known: " + r.Reason}
}
