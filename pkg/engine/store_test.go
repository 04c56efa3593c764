package engine

import (
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/storage"

	"github.com/kube-rego/kube-rego/pkg/compile"
	"github.com/kube-rego/kube-rego/pkg/data"
	"github.com/kube-rego/kube-rego/pkg/policy"
)

// A decision sees one state of policies and data, whatever changes meanwhile.
func TestADecisionSeesOneStateOfPoliciesAndData(t *testing.T) {
	ctx := t.Context()
	e := New()
	c, err := compile.New(compile.Config{RegoVersion: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	// Between the first and the second look at data there is much to do.
	snapshot := snapshotOf(t, c, `package k
one := data.kubernetes.pods.a.x.n
busy := sum([y | some x in numbers.range(1, 200); y := x * x])
same if { one == data.kubernetes.pods.b.x.n; busy > 0; data.kubernetes.pods.a.x.n == data.kubernetes.pods.b.x.n }`)
	var documents data.Interner
	write := func(n int) {
		content, err := documents.Document(map[string]any{"n": int64(n)})
		if err != nil {
			t.Error(err)
		}
		e.Apply(data.Change{Path: []string{"kubernetes", "pods", "a", "x"}, Content: content}, data.Change{Path: []string{"kubernetes", "pods", "b", "x"}, Content: content})
	}
	write(0)
	e.Activate(snapshot, snapshot.Report())
	done := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			default:
				write(n)
			}
			if n%10 == 0 {
				e.Activate(snapshot, snapshot.Report())
			}
		}
	})
	for range 500 {
		if d, err := e.Decide(ctx, "k/same", nil); err != nil || d.Result != true {
			t.Fatalf("a decision saw two states: %v, %v", d.Result, err)
		}
	}
	close(done)
	writing.Wait()
	if n := e.Documents([]string{"kubernetes", "pods"}); n != 2 {
		t.Errorf("there are %d documents, want 2", n)
	}
}

func TestNobodyWritesThroughTheStore(t *testing.T) {
	s := storeOver(data.New())
	err := storage.WriteOne(t.Context(), s, storage.AddOp, storage.Path{"a"}, 1)
	if err == nil || !strings.Contains(err.Error(), "changed by the ConfigMaps") {
		t.Errorf("got %v", err)
	}
	if _, err := s.Read(t.Context(), nil, storage.Path{}); err == nil {
		t.Error("a transaction of another store was taken")
	}
}

func storeOver(root *data.Tree) store {
	f := &InForce{}
	f.data.Store(root)
	return store{f}
}

func snapshotOf(t *testing.T, c *compile.Compiler, source string) *compile.Snapshot {
	t.Helper()
	id := policy.ID{Namespace: "opa", Name: "k", Key: "main"}
	snapshot := c.Compile(c.Empty(), policy.NewSet(policy.Module{ID: id, Source: source}), nil)
	if held := snapshot.Report().Held(); len(held) > 0 {
		t.Fatalf("held: %v", held)
	}
	return snapshot
}
