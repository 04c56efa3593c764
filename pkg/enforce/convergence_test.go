package enforce

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/pkg/configmap"
	"github.com/kube-rego/kube-rego/pkg/policy"
	"github.com/kube-rego/kube-rego/pkg/status"
)

// TestReplicasComeToTheSameSet lets three replicas see the same edits at other
// moments and in other pieces, moves the task of writing from one to another, and
// asks in quiet moments whether all have the same in force.
func TestReplicasComeToTheSameSet(t *testing.T) {
	for _, seed := range seeds(t, firstFleetSeed, 60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newFleet(t, seed).play()
		})
	}
}

// fleet is the replicas, and what they share beside the world.
type fleet struct {
	*testing.T
	*world
	replicas []*replica
	leader   string
	heard    map[string]policy.Replica // by identity, what each says of itself
	started  int
	// agreed is what all had in force at the last quiet moment, and since is what
	// has been wanted of each module from then on, or nothing once it was not.
	agreed policy.Set
	since  map[policy.ID][]policy.Module
	// recorded is the latest version of each module that was recorded since then,
	// but for those before the module was last taken away.
	recorded policy.Set
	away     map[policy.ID]uint64 // when that was, in resource versions
}

// replica is one process, and the caches and the interfaces that it has.
type replica struct {
	*Loop
	fleet      *fleet
	configMaps []*corev1.ConfigMap
	history    *configmap.History
	published  status.State
}

func (r *replica) Run(context.Context, func()) error        { return nil }
func (r *replica) ConfigMaps() ([]*corev1.ConfigMap, error) { return r.configMaps, nil }
func (r *replica) History() (*configmap.History, error)     { return r.history, nil }

// told is where the loop of a replica says what it has.
type told struct{ *replica }

func (p told) Publish(state status.State) { p.published = state }
func (p told) Leader() string             { return p.fleet.leader }

// Rescue writes the revision, unless somebody else has written one of that number.
func (p told) Rescue(name types.NamespacedName, number int64, modules policy.Set) {
	object, err := configmap.NewRevision(trustedNamespace, name.Namespace, name.Name, number, modules).Object()
	if err != nil {
		p.fleet.Fatal(err)
	}
	for _, other := range p.fleet.revisions[name] {
		if other.Name == object.Name {
			return
		}
	}
	p.fleet.tell("%s rescues revision %d of %s", p.config.Identity, number, name)
	p.fleet.revisions[name] = append(p.fleet.revisions[name], object)
}

// neighbours is how the loop of a replica knows the others.
type neighbours struct{ *replica }

func (n neighbours) Publish(inForce, wanted string) {
	n.fleet.heard[n.config.Identity] = policy.Replica{Identity: n.config.Identity, InForce: inForce, Wanted: wanted}
}

func (n neighbours) List() []policy.Replica {
	var all []policy.Replica
	for _, identity := range slices.Sorted(maps.Keys(n.fleet.heard)) {
		all = append(all, n.fleet.heard[identity])
	}
	return all
}

func newFleet(t *testing.T, seed uint64) *fleet {
	f := &fleet{T: t, world: newWorld(seed), heard: make(map[string]policy.Replica), recorded: policy.Set{}, away: make(map[policy.ID]uint64)}
	f.tell("sequence %d", seed)
	f.replicas = []*replica{f.start(), f.start(), f.start()}
	f.leader = f.replicas[0].config.Identity
	return f
}

// start is a new replica, whose caches are filled.
func (f *fleet) start() *replica {
	r := &replica{fleet: f}
	r.Loop = newTestLoop(f.T, r)
	f.started++
	r.config.Identity = fmt.Sprint("replica-", f.started)
	r.config.Publisher, r.config.Replicas = told{r}, neighbours{r}
	r.see(true, true)
	r.turn()
	return r
}

// see brings caches up to date: each has a watch of its own.
func (r *replica) see(configMaps, history bool) {
	var err error
	if configMaps {
		if r.configMaps, err = r.fleet.ConfigMaps(); err != nil {
			r.fleet.Fatal(err)
		}
	}
	if history {
		if r.history, err = r.fleet.History(); err != nil {
			r.fleet.Fatal(err)
		}
	}
}

// turn lets the replica look, and look again at once if it wants to: that takes
// less time than it takes until a revision is written and comes back.
func (r *replica) turn() {
	first, before := r.inForce() == nil, policy.Set{}
	if !first {
		before = r.inForce().Modules()
	}
	settleDown(r.fleet.T, r.Loop)
	r.fleet.tell("%s turns; in force is %s", r.config.Identity, describe(r.inForce().Modules()))
	if writer := r.fleet.heard[r.fleet.leader]; !first && writer.Wanted != r.wantedSet(r.configMaps).Fingerprint() {
		r.checkTurn(before)
	}
}

// checkTurn checks what a turn brought into force that took over no set of the
// writer: what is wanted, or what was recorded later of the same object.
func (r *replica) checkTurn(before policy.Set) {
	wanted, recorded := modulesOf(r.configMaps), r.history.InForce()
	for id, m := range r.inForce().Modules() {
		if has(before, m) || has(wanted, m) {
			continue
		}
		object, ok := wanted[id]
		if !ok {
			object = before[id] // its deletion is held
		}
		if !has(recorded, m) || !m.Created.Equal(object.Created) || m.ObjectVersion < before[id].ObjectVersion {
			r.fleet.Errorf("%s brings into force %s, which is neither wanted nor a later version; before it was %s",
				r.config.Identity, describe(policy.NewSet(m)), describe(policy.NewSet(before[id])))
		}
	}
}

func (f *fleet) writer() *replica {
	return f.replicas[slices.IndexFunc(f.replicas, func(r *replica) bool { return r.config.Identity == f.leader })]
}

// record lets the writer work on what it published last, as far as it gets.
func (f *fleet) record(gets func() bool) {
	state := f.writer().published
	r := recorder{configMaps: state.ConfigMaps, inForce: state.Keep, history: state.History}
	for _, name := range r.names() {
		if !gets() {
			continue
		}
		if err := r.record(f.world, name); err != nil {
			f.Fatal(err)
		}
	}
	now, err := f.History()
	if err != nil {
		f.Fatal(err)
	}
	for id, m := range state.Keep {
		if has(now.InForce(), m) && m.ObjectVersion > max(f.recorded[id].ObjectVersion, f.away[id]) {
			f.recorded[id] = m
		}
	}
}

func (f *fleet) play() {
	for range 4 {
		for range 20 {
			f.step()
		}
		f.quiet()
		if f.Failed() {
			f.Fatal(strings.Join(f.story, "\n"))
		}
	}
}

// step is one thing that may happen at any moment.
func (f *fleet) step() {
	r := pick(f.random, f.replicas)
	switch f.random.IntN(16) {
	case 0, 1, 2, 3:
		f.edit()
		f.noteWanted()
	case 4, 5, 6, 7, 8:
		r.see(f.random.IntN(3) > 0, f.random.IntN(3) > 0)
		r.turn()
	case 9, 10, 11, 12:
		f.record(func() bool { return f.random.IntN(3) > 0 })
	case 13:
		f.leader = r.config.Identity
		f.tell("%s writes from now on", f.leader)
	case 14:
		f.restart(f.random.IntN(len(f.replicas)))
	}
}

// restart replaces a replica. If it was the writer, another one is from then on.
// It may have said that it goes, or be found out to be gone.
func (f *fleet) restart(i int) {
	old := f.replicas[i]
	if f.leader == old.config.Identity {
		f.leader = f.replicas[(i+1)%len(f.replicas)].config.Identity
	}
	f.tell("%s stops; %s writes", old.config.Identity, f.leader)
	delete(f.heard, old.config.Identity)
	if f.random.IntN(2) == 0 {
		f.heard[old.config.Identity] = policy.Replica{Identity: old.config.Identity, Gone: true}
	}
	f.replicas[i] = f.start()
}

// noteWanted notes after an edit what is wanted.
func (f *fleet) noteWanted() {
	all, _ := f.ConfigMaps()
	wanted := modulesOf(all)
	for _, name := range f.names {
		for _, key := range f.keys {
			id := policy.ID{Namespace: name.Namespace, Name: name.Name, Key: key}
			if _, ok := wanted[id]; !ok {
				f.away[id] = uint64(f.version)
				delete(f.recorded, id)
			}
		}
	}
	for id := range f.agreed {
		m, ok := wanted[id]
		if !ok {
			delete(f.agreed, id)
			continue
		}
		f.since[id] = append(f.since[id], m)
	}
}

// quiet is a moment without edits: all look until nothing changes any more.
func (f *fleet) quiet() {
	f.tell("quiet")
	before := ""
	for range 15 {
		for _, i := range f.random.Perm(len(f.replicas)) {
			f.replicas[i].see(true, true)
			f.replicas[i].turn()
		}
		f.record(func() bool { return true })
		now := fmt.Sprint(f.fingerprints(), f.revisions)
		if now == before {
			f.check()
			return
		}
		before = now
	}
	f.Error("the replicas do not come to rest")
}

func (f *fleet) fingerprints() []string {
	var all []string
	for _, r := range f.replicas {
		all = append(all, r.inForce().Fingerprint())
	}
	return all
}

// check asks what must be true of replicas that are at rest.
func (f *fleet) check() {
	inForce := f.writer().inForce().Modules()
	for _, r := range f.replicas {
		if r.inForce().Fingerprint() != inForce.Fingerprint() {
			f.Errorf("%s has in force %s\nthe writer has %s", r.config.Identity, describe(r.inForce().Modules()), describe(inForce))
		}
	}
	if history, _ := f.History(); history.Fingerprint() != inForce.Fingerprint() {
		f.Errorf("recorded is %s\nin force is %s", describe(history.InForce()), describe(inForce))
	}
	for id, last := range f.agreed {
		if !has(inForce, last) && !slices.ContainsFunc(f.since[id], func(m policy.Module) bool { return has(inForce, m) }) {
			f.Errorf("%s was in force on all as %q, was wanted ever since, and neither that is in force nor what came after", id, last.Source)
		}
	}
	f.checkRecorded(inForce)
	f.recorded = maps.Clone(inForce)
	f.agreed, f.since = inForce, make(map[policy.ID][]policy.Module)
}

// checkRecorded checks that no version was lost that was recorded: if a module is
// held, the last one of the same object that still compiles is in force.
func (f *fleet) checkRecorded(inForce policy.Set) {
	all, _ := f.ConfigMaps()
	wanted := modulesOf(all)
	for _, held := range f.writer().Report().Held() {
		recorded, ok := f.recorded[held.ID]
		now := inForce[held.ID]
		if !ok || recorded.ObjectVersion <= now.ObjectVersion || same(recorded, now) || !recorded.Created.Equal(wanted[held.ID].Created) {
			continue
		}
		if !compilePlainly(after(inForce, []wish{{Module: recorded}})).Failed() {
			f.Errorf("%s is held, and in force in version %d; version %d was recorded, and compiles", held.ID, now.ObjectVersion, recorded.ObjectVersion)
		}
	}
}
