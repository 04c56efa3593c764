package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/kube-rego/kube-rego/e2e/kuberego"
)

const (
	// fewRestarts is for everyday: with what comes before and after they take half a minute.
	fewRestarts = 25

	replicaCount  = 3
	coreCount     = 12
	pairCount     = 3
	ruleCount     = 4
	visitorCount  = 2
	longestLife   = 1200 * time.Millisecond // between two kills; a process is ready after some 300 ms
	longestPause  = 60 * time.Millisecond   // between two edits
	betweenProbes = 4 * time.Millisecond
	tellEvery     = 20 * time.Second
	// detailed is of how many processes that decided wrongly all is told that led to it.
	detailed = 3
)

// tellAll is an entrypoint that answers with all that kubernetes.admission denies, and allows it: so it is not logged.
const tellAll = `package system

main := {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}

response := {"allowed": true, "status": {"message": concat(", ", data.kubernetes.admission.deny)}}
`

// Processes are killed at random moments while policies are edited, and everybody is asked all the time. Each decision must
// be made from a whole set, and nothing that was recorded as the last good version may be lost.
//
// Every rule says its name and generation, so that one review shows what the whole set is made of. There are
//   - cores, which nobody edits: they must be in every decision;
//   - pairs, two keys of one ConfigMap that are edited in one write: always of one generation;
//   - a caller and its library, two ConfigMaps, where each generation of one compiles with that of the other only;
//   - rules, edited well and badly;
//   - visitors, which are also deleted and created again.
//
// A good edit has an even generation, a broken one an odd one.
func TestRandomRestarts(t *testing.T) {
	wanted := number(t, restartsVariable, fewRestarts)
	seed := number(t, seedVariable, 1+rand.IntN(1_000_000))
	t.Logf("%d restarts; seed %d, which gives the same edits, but not at the same moments", wanted, seed)
	c := newChaos(t, uint64(seed))
	c.start()
	stopAsking := c.ask()
	stopEditing := c.edit()
	for done, told := 0, time.Now(); done < wanted; done = int(c.restarts.Load()) {
		time.Sleep(upTo(c.random, longestLife))
		c.strike(wanted - done)
		if time.Since(told) > tellEvery {
			told = time.Now()
			c.tellFigures()
		}
	}
	stopEditing()
	c.settle()
	stopAsking()
	c.tellFigures()
}

// generations are those of rules, by what they call themselves: ConfigMap/key.
type generations map[string]int

// said finds a rule in a Rego source, and in an answer: "rules-1/main=4".
var said = regexp.MustCompile(`([a-z]+-?\d*/[a-z]+)=(\d+)`)

// generationsIn are those that a text speaks of. It is an error if it speaks of two of one rule.
func generationsIn(text string) (generations, error) {
	found := make(generations)
	for _, match := range said.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(match[2])
		if err != nil {
			return nil, err
		}
		if before, ok := found[match[1]]; ok && before != n {
			return nil, fmt.Errorf("%s in generations %d and %d at once", match[1], before, n)
		}
		found[match[1]] = n
	}
	return found, nil
}

// raise lets each generation be at least what the other says.
func (g generations) raise(other generations) {
	for name, n := range other {
		g[name] = max(g[name], n)
	}
}

// chaos is one run of the test.
type chaos struct {
	*testing.T
	random  *rand.Rand // of the killer
	client  *http.Client
	author  *author
	journal journal
	slots   [replicaCount]slot
	// durable is the newest generation of each rule of which a revision was seen; only the killer looks.
	durable generations

	restarts, asked, decided, refused, wrong atomic.Int64
	// culprits are the processes that gave the wrong decisions.
	culprits atomic.Int64
}

// slot is where one process comes after the other.
type slot struct {
	*kuberego.Installation // its own: each start writes the kubeconfig anew, which another process may be reading
	atomic.Pointer[replica]
}

// replica is one process, and what must not be undercut by it.
type replica struct {
	*kuberego.Instance
	name string
	// floor was recorded before it started; shown is the newest that it has decided with.
	floor, shown generations
	wrong        bool
}

func newChaos(t *testing.T, seed uint64) *chaos {
	_, first := install(t)
	if err := first.Stop(); err != nil { // the API server has no part in this
		t.Fatal(err)
	}
	removeRevisions(t)
	c := &chaos{T: t, random: rand.New(rand.NewPCG(seed, 0)), client: lastingClient(injectedCA(t)), durable: make(generations)}
	c.author = &author{chaos: c, random: rand.New(rand.NewPCG(seed, 1)), next: make(generations)}
	t.Cleanup(c.client.CloseIdleConnections)
	for n := range c.slots {
		var err error
		c.slots[n].Installation, err = kuberego.Prepare(kuberego.Config{
			Cluster: cluster.ControlPlane, Root: cluster.root, Binary: cluster.binary, Dir: t.TempDir(),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// removeRevisions removes what earlier tests have left of policies that are gone by now.
func removeRevisions(t testing.TB) {
	t.Helper()
	err := cluster.Client().AppsV1().ControllerRevisions(opa).DeleteCollection(t.Context(), metav1.DeleteOptions{}, ours)
	if err != nil {
		t.Fatal(err)
	}
}

// ours selects the revisions that kube-rego has written.
var ours = metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=kube-rego"}

// lastingClient keeps its connections, as the API server does.
func lastingClient(ca []byte) *http.Client {
	c := client(ca)
	transport := c.Transport.(*http.Transport)
	transport.DisableKeepAlives, transport.MaxIdleConnsPerHost = false, 64
	return c
}

// start brings all policies into force on all replicas, and waits until they are recorded.
func (c *chaos) start() {
	create(c, policy(opa, "main", "main", tellAll))
	for n := range coreCount {
		name := fmt.Sprintf("core-%d", n)
		create(c, policy(opa, name, "main", rule(name+"/main", 2)))
	}
	for n := range pairCount {
		c.author.create(fmt.Sprintf("pair-%d", n), "left", "right")
	}
	for n := range ruleCount {
		c.author.create(fmt.Sprintf("rule-%d", n), "main")
	}
	for n := range visitorCount {
		c.author.create(fmt.Sprintf("visitor-%d", n), "main")
	}
	c.author.create("library", "main")
	c.author.create("caller", "main")
	for slot := range c.slots {
		c.launch(slot)
	}
	c.Cleanup(c.stop)
	c.waitRecorded(c.author.good())
	c.waitDecided(c.author.good())
}

// launch starts a process in a slot.
func (c *chaos) launch(n int) {
	c.Helper()
	err := c.lookRecorded(c.Context())
	instance, errLaunch := c.slots[n].Launch(c.Context())
	if err := cmp.Or(err, errLaunch); err != nil {
		c.Fatal(err)
	}
	name := fmt.Sprintf("replica %d", n)
	c.slots[n].Store(&replica{Instance: instance, name: name, floor: maps.Clone(c.durable), shown: make(generations)})
	c.journal.note("%s started: %s", name, instance.URL())
}

// stop ends what runs in good order; a process that the race detector has something to say about fails the test.
func (c *chaos) stop() {
	for slot := range c.slots {
		if r := c.slots[slot].Load(); r != nil {
			stop(c, r.Instance)
		}
	}
}

// strike kills a random process, or at times all of them, and starts as many: at most as given.
func (c *chaos) strike(most int) {
	c.Helper()
	victims := c.random.Perm(replicaCount)
	if c.random.IntN(8) > 0 {
		victims = victims[:1]
	}
	c.kill(victims[:min(most, len(victims))], c.random.IntN(8) > 0)
}

// kill ends processes without a warning and starts new ones. If one of them was the writer, the others find out only after
// 15 s; a test that kills more often than that would hardly ever have one, so mostly its time is made to be over.
func (c *chaos) kill(slots []int, expire bool) {
	c.Helper()
	wrote := false
	for _, slot := range slots {
		r := c.slots[slot].Load()
		c.stillRuns(r)
		if err := r.Kill(); err != nil {
			c.Fatal(err)
		}
		c.journal.note("%s killed", r.name)
		wrote = wrote || strings.Contains(c.log(r), "this replica writes the statuses")
	}
	if wrote && expire {
		err := cluster.Client().CoordinationV1().Leases(opa).Delete(c.Context(), "kube-rego", metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			c.Fatal(err)
		}
		c.journal.note("the writer's time is over")
	}
	for _, slot := range slots {
		c.launch(slot)
		c.restarts.Add(1)
	}
}

// stillRuns fails the test if a process ended by itself. That another took its port is nobody's fault.
func (c *chaos) stillRuns(r *replica) {
	c.Helper()
	if log := c.log(r); !r.Running() && !strings.Contains(log, "address already in use") {
		c.Errorf("%s ended by itself:\n%s", r.name, log)
	} else if mark := "WARNING: DATA RACE"; strings.Contains(log, mark) {
		c.Errorf("%s logged %q:\n%s", r.name, mark, log)
	}
}

func (c *chaos) log(r *replica) string {
	c.Helper()
	log, err := os.ReadFile(r.LogPath())
	if err != nil {
		c.Fatal(err)
	}
	return string(log)
}

// lookRecorded raises durable to what the revisions in the cluster say. A caller is worth no more than its library: of two
// ConfigMaps that depend on each other the revisions are two writes.
func (c *chaos) lookRecorded(ctx context.Context) error {
	list, err := cluster.Client().AppsV1().ControllerRevisions(opa).List(ctx, ours)
	if err != nil {
		return err
	}
	for _, revision := range list.Items {
		var data struct {
			ConfigMap string                             `json:"configMap"`
			Modules   map[string]struct{ Source string } `json:"modules"`
		}
		if err := json.Unmarshal(revision.Data.Raw, &data); err != nil {
			return err
		}
		for key, m := range data.Modules {
			found, err := generationsIn(m.Source)
			if err != nil {
				return fmt.Errorf("revision %s, key %s: %w", revision.Name, key, err)
			}
			c.durable.raise(found)
		}
	}
	return nil
}

// ask asks all replicas all the time, until the returned function is called.
func (c *chaos) ask() (stop func()) {
	return c.background(c.askSlot, replicaCount)
}

// background runs work for 0 to n-1, each again and again until stop is called.
func (c *chaos) background(work func(context.Context, int), n int) (stop func()) {
	ctx, cancel := context.WithCancel(c.Context())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				work(ctx, i)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// askSlot asks the process in a slot once and judges its answer.
func (c *chaos) askSlot(ctx context.Context, slot int) {
	time.Sleep(betweenProbes)
	r := c.slots[slot].Load()
	c.asked.Add(1)
	shown, err := decide(ctx, c.client, r.Instance)
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, errNotReady):
		c.refused.Add(1)
	case err != nil:
		c.blame(r, err)
	default:
		c.decided.Add(1)
		if err := c.judge(r, shown); err != nil {
			c.blame(r, fmt.Errorf("%w in a decision of %v", err, shown))
		}
		r.shown.raise(shown)
	}
}

// errNotReady is no decision, from a process that says so or is gone.
var errNotReady = errors.New("not ready")

// decide asks a process for what is in force.
func decide(ctx context.Context, c *http.Client, instance *kuberego.Instance) (generations, error) {
	code, answer, err := review(ctx, c, instance, "all")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotReady, err)
	}
	if code == http.StatusServiceUnavailable {
		return nil, fmt.Errorf("%w: %s", errNotReady, answer)
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("HTTP %d: %s", code, answer)
	}
	return generationsIn(answer)
}

// review asks a process about a ConfigMap with the label deny, over connections that are kept.
func review(ctx context.Context, c *http.Client, instance *kuberego.Instance, value string) (code int, answer string, err error) {
	body := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"1",`+
		`"object":{"metadata":{"labels":{"deny":%q}}}}}`, value)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, instance.URL(), strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// judge is nil for a decision from a whole set, of which nothing has gone back.
func (c *chaos) judge(r *replica, shown generations) error {
	for _, name := range always {
		if _, ok := shown[name]; !ok {
			return fmt.Errorf("%s is missing", name)
		}
	}
	for _, two := range together {
		if shown[two[0]] != shown[two[1]] {
			return fmt.Errorf("%s and %s are of different generations", two[0], two[1])
		}
	}
	for name, n := range shown {
		switch {
		case n%2 != 0:
			return fmt.Errorf("%s is broken", name)
		case n < r.floor[name] && n < r.floor[partner(name)]:
			return fmt.Errorf("%s is older than what was recorded when it started, %d,", name, r.floor[name])
		case n < r.shown[name]:
			return fmt.Errorf("%s is older than what it decided with before, %d,", name, r.shown[name])
		}
	}
	return nil
}

// always are the rules that are in force all the time, and together those of which two have the same generation.
var always, together = invariants()

func invariants() (always []string, together [][2]string) {
	for n := range coreCount {
		always = append(always, fmt.Sprintf("core-%d/main", n))
	}
	for n := range ruleCount {
		always = append(always, fmt.Sprintf("rule-%d/main", n))
	}
	together = append(together, [2]string{"caller/main", "library/main"})
	for n := range pairCount {
		together = append(together, [2]string{fmt.Sprintf("pair-%d/left", n), fmt.Sprintf("pair-%d/right", n)})
	}
	for _, two := range together {
		always = append(always, two[:]...)
	}
	return always, together
}

// partner is the rule of the other ConfigMap that a rule is recorded with, or the rule itself.
func partner(name string) string {
	switch name {
	case "caller/main":
		return "library/main"
	case "library/main":
		return "caller/main"
	}
	return name
}

// blame fails the test for a wrong decision, of the first processes with all that led to it.
func (c *chaos) blame(r *replica, err error) {
	c.Fail()
	c.wrong.Add(1)
	if r.wrong {
		return
	}
	r.wrong = true
	if c.culprits.Add(1) > detailed {
		c.Errorf("%s, after %d restarts: %v", r.name, c.restarts.Load(), err)
		return
	}
	log, errLog := os.ReadFile(r.LogPath())
	c.Errorf("%s, after %d restarts: %v\nrecorded when it started: %v\ndecided with before: %v\n%s\nits log (%v):\n%s",
		r.name, c.restarts.Load(), err, r.floor, r.shown, c.journal.last(), errLog, log)
}

// settle says that all replicas come to the same, with the right statuses, and that it survives all of them: with a rule, a
// pair and a caller that are broken, and a library that is deleted.
func (c *chaos) settle() {
	c.Helper()
	c.author.repair()
	good := c.author.good()
	c.waitDecided(good)
	c.waitRecorded(good)
	broken := []string{"caller", "pair-0", "rule-0"}
	for _, name := range broken {
		c.author.write(name, false)
	}
	c.author.remove("library")
	c.kill([]int{0, 1, 2}, true)
	c.waitDecided(good)
	for _, name := range broken {
		annotation(c, opa, name, contains(`"status":"error"`, `"inForce":"previous"`))
	}
	for n := range coreCount {
		annotation(c, opa, fmt.Sprintf("core-%d", n), is(statusOK))
	}
	for _, name := range []string{"pair-1", "rule-1", "visitor-0"} {
		annotation(c, opa, name, is(statusOK))
	}
	c.waitDecided(good)
}

// waitRecorded waits until there are revisions of these generations.
func (c *chaos) waitRecorded(wanted generations) {
	c.Helper()
	eventually(c, "revisions of all that is in force", func(ctx context.Context) error {
		if err := c.lookRecorded(ctx); err != nil {
			return err
		}
		return differ(c.durable, wanted)
	})
}

// waitDecided waits until all replicas decide with these generations, and say that they are in step.
func (c *chaos) waitDecided(wanted generations) {
	c.Helper()
	eventually(c, "the same decision of all replicas", func(ctx context.Context) error {
		var fingerprint string
		for slot := range c.slots {
			r := c.slots[slot].Load()
			shown, err := decide(ctx, c.client, r.Instance)
			if err := cmp.Or(err, differ(shown, wanted)); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
			status, err := r.Status(ctx)
			if err != nil {
				return err
			}
			if fingerprint = cmp.Or(fingerprint, status.Fingerprint); status.Fingerprint != fingerprint {
				return fmt.Errorf("%s has %s in force, others %s", r.name, status.Fingerprint, fingerprint)
			}
		}
		return nil
	})
}

// differ is nil if all wanted generations are there.
func differ(got, wanted generations) error {
	for name, n := range wanted {
		if got[name] != n {
			return fmt.Errorf("%s is of generation %d, want %d", name, got[name], n)
		}
	}
	return nil
}

func (c *chaos) tellFigures() {
	c.Logf("%d restarts under %d edits: asked %d times, %d decisions, %d times not ready or gone; %d wrong, of %d processes",
		c.restarts.Load(), c.author.edits.Load(), c.asked.Load(), c.decided.Load(), c.refused.Load(), c.wrong.Load(), c.culprits.Load())
}

// edit lets the author write until the returned function is called.
func (c *chaos) edit() (stop func()) {
	return c.background(func(context.Context, int) {
		c.author.writeSomething()
		pause := upTo(c.author.random, longestPause)
		if c.author.random.IntN(20) == 0 {
			pause *= 20 // long enough for everything to come to rest
		}
		time.Sleep(pause)
	}, 1)
}

// upTo is a random time.
func upTo(random *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(random.Int64N(int64(most)))
}

// author writes all policies that change, one edit after another.
type author struct {
	*chaos
	random *rand.Rand
	edits  atomic.Int64
	// next is the last even generation that was given away, by ConfigMap.
	next generations
	keys map[string][]string // by ConfigMap
	gone map[string]bool     // ConfigMaps
}

func (a *author) create(name string, keys ...string) {
	a.Helper()
	if a.keys == nil {
		a.keys, a.gone = make(map[string][]string), make(map[string]bool)
	}
	a.keys[name], a.gone[name] = keys, true
	a.write(name, true)
}

// good are the newest good generations of all rules.
func (a *author) good() generations {
	all := make(generations)
	for name, keys := range a.keys {
		for _, key := range keys {
			all[name+"/"+key] = a.next[name]
		}
	}
	return all
}

// writeSomething makes one random edit.
func (a *author) writeSomething() {
	good := a.random.IntN(3) > 0
	switch dice := a.random.IntN(10); {
	case dice < 3:
		a.write(fmt.Sprintf("pair-%d", a.random.IntN(pairCount)), good)
	case dice < 6:
		a.write(fmt.Sprintf("rule-%d", a.random.IntN(ruleCount)), good)
	case dice < 8:
		a.receive(fmt.Sprintf("visitor-%d", a.random.IntN(visitorCount)), good)
	case !good:
		a.write([]string{"caller", "library"}[a.random.IntN(2)], false)
	case dice < 9:
		a.move()
	default:
		a.remove("library") // which is held as long as it is called
	}
}

// receive edits a visitor, or sees it off.
func (a *author) receive(name string, good bool) {
	if !a.gone[name] && a.random.IntN(3) == 0 {
		a.remove(name)
		return
	}
	a.write(name, good)
}

// move writes caller and library in the next generation, in any order: the first is held until the other comes.
func (a *author) move() {
	names := []string{"caller", "library"}
	a.random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	a.next["caller"] = max(a.next["caller"], a.next["library"])
	a.next["library"] = a.next["caller"]
	for _, name := range names {
		a.write(name, true)
		time.Sleep(upTo(a.random, longestPause))
	}
}

// repair writes everything well once more.
func (a *author) repair() {
	a.move()
	for name := range a.keys {
		if name != "caller" && name != "library" {
			a.write(name, true)
		}
	}
}

// write makes one edit of all keys of a ConfigMap: in its next generation, or broken.
func (a *author) write(name string, good bool) {
	a.Helper()
	generation := a.next[name] + 1
	if good {
		generation++
		a.next[name] = generation
	}
	data := make(map[string]string)
	for _, key := range a.keys[name] {
		data[key] = a.source(name, name+"/"+key, generation)
	}
	a.edits.Add(1)
	a.journal.note("%s written in generation %d", name, generation)
	if a.gone[name] {
		a.check(name, a.add(name, data))
		delete(a.gone, name)
		return
	}
	// A patch, since the writer of the statuses writes on these objects too.
	body, err := json.Marshal(map[string]any{"data": data})
	if err == nil {
		_, err = cluster.Client().CoreV1().ConfigMaps(opa).
			Patch(a.Context(), name, types.MergePatchType, body, metav1.PatchOptions{})
	}
	a.check(name, err)
}

func (a *author) add(name string, data map[string]string) error {
	cm := policy(opa, name)
	cm.Data = data
	_, err := cluster.Client().CoreV1().ConfigMaps(opa).Create(a.Context(), cm, metav1.CreateOptions{})
	return err
}

func (a *author) remove(name string) {
	a.Helper()
	if a.gone[name] {
		return
	}
	a.edits.Add(1)
	a.journal.note("%s deleted", name)
	a.gone[name] = true
	a.check(name, cluster.Client().CoreV1().ConfigMaps(opa).Delete(a.Context(), name, metav1.DeleteOptions{}))
}

func (a *author) check(name string, err error) {
	a.Helper()
	if err != nil && a.Context().Err() == nil {
		a.Errorf("edit ConfigMap %s: %v", name, err)
	}
}

// source is the text of a rule in one generation.
func (a *author) source(configMap, name string, generation int) string {
	switch {
	case generation%2 != 0:
		return a.brokenRule(name, generation)
	case configMap == "library":
		return fmt.Sprintf("package library\n\ngeneration_%d(_) := \"%s=%d\"\n", generation, name, generation)
	case configMap == "caller":
		return fmt.Sprintf("package kubernetes.admission\n\ndeny contains message if {\n"+
			"\tsome message in [\"%s=%d\", data.library.generation_%d(1)]\n}\n", name, generation, generation)
	}
	return rule(name, generation)
}

func rule(name string, generation int) string {
	return fmt.Sprintf("package kubernetes.admission\n\ndeny contains \"%s=%d\" if input.request.object\n", name, generation)
}

// brokenRule is one that does not parse, one that calls what is not there, or one that contradicts all others.
func (a *author) brokenRule(name string, generation int) string {
	return rule(name, generation) + []string{
		"deny contains }\n",
		"deny contains data.nowhere.nothing(1)\n",
		"deny := true\n",
	}[a.random.IntN(3)]
}

// journal is what was done, for whoever has to find out how it came to a failure.
type journal struct {
	mu      sync.Mutex
	entries []string
}

// journalLength covers a few seconds.
const journalLength = 150

func (j *journal) note(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, time.Now().UTC().Format("15:04:05.000")+" "+fmt.Sprintf(format, args...))
	if len(j.entries) > journalLength {
		j.entries = slices.Clone(j.entries[len(j.entries)-journalLength:])
	}
}

func (j *journal) last() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.entries, "\n")
}
