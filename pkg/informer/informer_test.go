package informer_test

import (
	"context"
	"slices"
	"sync"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/kube-rego/kube-rego/pkg/informer"
)

// leases is a resource of which one lease is listed and another one comes later.
type leases struct {
	mu    sync.Mutex
	asked []metav1.ListOptions
}

func lease(name string) *coordinationv1.Lease {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: "8"}}
}

func (l *leases) note(options metav1.ListOptions) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, options)
}

func (l *leases) List(_ context.Context, options metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	l.note(options)
	return &coordinationv1.LeaseList{ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []coordinationv1.Lease{*lease("listed")}}, nil
}

func (l *leases) Watch(_ context.Context, options metav1.ListOptions) (watch.Interface, error) {
	l.note(options)
	w := watch.NewFakeWithChanSize(1, false)
	w.Add(lease("watched"))
	return w, nil
}

// IsWatchListSemanticsUnSupported has the informer list before it watches.
func (l *leases) IsWatchListSemanticsUnSupported() bool { return true }

func TestAnInformerFollowsWhatIsSelected(t *testing.T) {
	resource := &leases{}
	i := informer.New(resource, &coordinationv1.Lease{}, metav1.ListOptions{LabelSelector: "a=b", FieldSelector: "metadata.name=c"})
	added := make(chan string)
	_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(object any) {
		added <- object.(*coordinationv1.Lease).Name
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { i.RunWithContext(ctx) })
	got := []string{<-added, <-added}
	cancel()
	running.Wait()
	if want := []string{"listed", "watched"}; !slices.Equal(got, want) {
		t.Errorf("the informer has %q, want %q", got, want)
	}
	resource.mu.Lock()
	defer resource.mu.Unlock()
	if len(resource.asked) < 2 || resource.asked[1].ResourceVersion != "7" {
		t.Errorf("it asked for %+v, want a list and a watch from there", resource.asked)
	}
	for _, options := range resource.asked {
		if options.LabelSelector != "a=b" || options.FieldSelector != "metadata.name=c" {
			t.Errorf("it asked for %+v, without the selectors", options)
		}
	}
}
