// Package story is the story of the project as data and code: two clusters of one mesh, a service account that
// anybody may borrow, and the policies that put an end to it. Steps holds the commands and what must be true of
// their output; a Stage has the clusters to play them on. The demo shows the story, the tests hold it to its word:
// both play the same steps.
package story

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/kube-rego/kube-rego/e2e/internal/progress"
)

const (
	// pollEvery is how often a command is repeated whose answer comes a moment later.
	pollEvery = 200 * time.Millisecond
	// answerLimit is how long that may take. Usually it is a second; the rest is for a machine that is busy.
	answerLimit = time.Minute
	// killedLimit is how long the output of a command that was cancelled is waited for.
	killedLimit = 5 * time.Second
)

// Step is one scene.
type Step struct {
	// Title says in a few words what happens.
	Title string
	// Text is for the reader who wants to know why; may be empty.
	Text string
	// Do is what no command of a person does, such as starting the clusters. It comes before the commands. May be nil.
	Do func(context.Context, *Stage) error
	// Commands are played in order.
	Commands []Command
}

// Command is one command and what must be true of it.
type Command struct {
	// On is the region of the cluster that it is for.
	On string
	// Line is the command as a person types it in the folder of the project. It is what the shell is given.
	Line string
	// Fails says that the exit code must not be 0; otherwise it must be.
	Fails bool
	// Want is what must be true of the output.
	Want []Expectation
	// Activates are the modules, each with its Rego version behind a space, that must be in force after the command,
	// all of them and no others, as a set that was not in force before it. Empty: nothing is expected.
	Activates []string
	// Later says that the answer comes a moment later: the command is repeated until all is as wanted.
	Later bool
}

// Expectation is something that must be true of an answer.
type Expectation struct {
	// Text says what, in words that follow "expected".
	Text  string
	holds func(answer) bool
}

type answer struct {
	output string // stdout and stderr, without the last newline
	failed bool   // the exit code was not 0
}

// Is expects exactly this output, but for the newline at its end.
func Is(lines ...string) Expectation {
	text := strings.Join(lines, "\n")
	return Expectation{Text: fmt.Sprintf("exactly %q", text), holds: func(a answer) bool { return a.output == text }}
}

// IsOneOf expects exactly one of these outputs.
func IsOneOf(texts ...string) Expectation {
	return Expectation{Text: fmt.Sprintf("one of %q", texts), holds: func(a answer) bool {
		return slices.Contains(texts, a.output)
	}}
}

// Says expects this text somewhere in the output.
func Says(text string) Expectation {
	return Expectation{Text: fmt.Sprintf("%q in it", text), holds: func(a answer) bool {
		return strings.Contains(a.output, text)
	}}
}

// HasRow expects a row of a table that begins with these cells. A * at the end of a cell stands for any rest of it.
func HasRow(cells ...string) Expectation {
	return Expectation{Text: fmt.Sprintf("a row of %q", cells), holds: func(a answer) bool {
		return slices.ContainsFunc(strings.Split(a.output, "\n"), func(line string) bool { return beginsWith(line, cells) })
	}}
}

func beginsWith(line string, cells []string) bool {
	fields := strings.Fields(line)
	if len(fields) < len(cells) {
		return false
	}
	return slices.EqualFunc(fields[:len(cells)], cells, func(field, cell string) bool {
		start, any := strings.CutSuffix(cell, "*")
		return field == cell || any && strings.HasPrefix(field, start)
	})
}

// expectations are all that must be true of the answer: the exit code first, as it is the first thing to look at.
func (c Command) expectations() []Expectation {
	code := Expectation{Text: "exit code 0", holds: func(a answer) bool { return !a.failed }}
	if c.Fails {
		code = Expectation{Text: "another exit code than 0", holds: func(a answer) bool { return a.failed }}
	}
	return append([]Expectation{code}, c.Want...)
}

// unmet is the first expectation that does not hold, or nil.
func (c Command) unmet(a answer) *Expectation {
	for _, e := range c.expectations() {
		if !e.holds(a) {
			return &e
		}
	}
	return nil
}

// Count is how many expectations there are in the steps.
func Count(steps []Step) int {
	sum := 0
	for _, step := range steps {
		for _, c := range step.Commands {
			sum += len(c.expectations())
			if len(c.Activates) > 0 {
				sum++
			}
		}
	}
	return sum
}

// Failure is an expectation that did not hold.
type Failure struct {
	// Step is the title of the step; On and Line are those of the command.
	Step, On, Line string
	// Expected and Got say what should have been and what was.
	Expected, Got string
}

// Error says it all in one line.
func (f *Failure) Error() string {
	return fmt.Sprintf("step %q: %s $ %s: expected %s, got %q", f.Step, f.On, oneLine(f.Line), f.Expected, shorten(f.Got))
}

// oneLine joins the lines of a command.
func oneLine(command string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(command, "\\\n", " ")), " ")
}

// shorten keeps an error readable; the whole answer was shown.
func shorten(text string) string {
	const limit = 500
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "…"
}

// Play plays one step. Its error is a Failure when an expectation does not hold.
func (s *Stage) Play(ctx context.Context, step Step) error {
	s.printTitle(step)
	if step.Do != nil {
		if err := step.Do(ctx, s); err != nil {
			return fmt.Errorf("step %q: %w", step.Title, err)
		}
	}
	for _, c := range step.Commands {
		err := s.run(ctx, c)
		if failure := (*Failure)(nil); errors.As(err, &failure) {
			failure.Step = step.Title
			return failure
		}
		if err != nil {
			return fmt.Errorf("step %q: %s $ %s: %w", step.Title, c.On, oneLine(c.Line), err)
		}
	}
	return nil
}

// run types one command, shows its answer and looks at it.
func (s *Stage) run(ctx context.Context, c Command) error {
	s.printCommand(c.On, c.Line)
	cluster := s.clusters[c.On]
	var before string
	if len(c.Activates) > 0 {
		status, err := cluster.instance.Status(ctx)
		if err != nil {
			return err
		}
		before = status.Fingerprint
	}
	a, err := s.ask(ctx, cluster, c)
	if err != nil {
		return err
	}
	s.printOutput(a.output)
	if unmet := c.unmet(a); unmet != nil {
		return &Failure{On: c.On, Line: c.Line, Expected: unmet.Text, Got: cmp.Or(a.output, "no output")}
	}
	s.held += len(c.expectations())
	if len(c.Activates) == 0 {
		return nil
	}
	if err := s.waitActive(ctx, cluster, c, before); err != nil {
		return err
	}
	s.held++
	return nil
}

// ask runs the command, again and again if the answer comes later, and returns the last answer.
func (s *Stage) ask(ctx context.Context, cluster *cluster, c Command) (answer, error) {
	var last answer
	err := s.poll(ctx, "waiting for another answer", func(ctx context.Context) (bool, error) {
		a, err := s.execute(ctx, cluster, c.Line)
		if err != nil {
			return false, err
		}
		last = a
		return !c.Later || c.unmet(a) == nil, nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		err = nil // the last answer tells more than that the time is up
	}
	return last, err
}

// poll repeats a step of waiting until it is done or the time is up.
func (s *Stage) poll(ctx context.Context, what string, done wait.ConditionWithContextFunc) error {
	return progress.During(s.cfg.Out, "  "+what, func() error {
		return wait.PollUntilContextTimeout(ctx, pollEvery, answerLimit, true, done)
	})
}

// execute gives the command to the shell, in the folder of the project, with the kubectl of the control plane in the
// path.
func (s *Stage) execute(ctx context.Context, cluster *cluster, line string) (answer, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "exec "+line) // exec: kubectl is what is killed when ctx ends
	cmd.Dir = s.cfg.Root
	cmd.Env = append(cluster.plane.Kubectl(ctx).Env,
		"KUBECONFIG="+cluster.kubeconfig(),
		"PATH="+s.cfg.Programs.Dir+string(filepath.ListSeparator)+os.Getenv("PATH"),
	)
	cmd.WaitDelay = killedLimit
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return answer{}, ctx.Err()
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return answer{}, fmt.Errorf("run the command: %w", err)
	}
	return answer{output: string(bytes.TrimRight(out, "\n")), failed: err != nil}, nil
}

// waitActive waits until the policies of the command are in force. The status annotation does not tell: until
// kube-rego has seen an edit, it speaks of the version before.
func (s *Stage) waitActive(ctx context.Context, cluster *cluster, c Command, before string) error {
	var got string
	err := s.poll(ctx, "waiting for the policy set", func(ctx context.Context) (bool, error) {
		status, err := cluster.instance.Status(ctx)
		if err != nil {
			return false, err
		}
		var active []string
		for _, module := range status.Modules {
			got := module.ID + " " + module.RegoVersion
			if module.InForce != "current" {
				got += " " + module.State
			}
			active = append(active, got)
		}
		got = fmt.Sprintf("set %.8s of %s", status.Fingerprint, strings.Join(active, ", "))
		return status.Fingerprint != before && slices.Equal(active, c.Activates), nil
	})
	if wait.Interrupted(err) && ctx.Err() == nil {
		want := fmt.Sprintf("in force another set than %.8s, of %s", before, strings.Join(c.Activates, ", "))
		return &Failure{On: c.On, Line: c.Line, Expected: want, Got: got}
	}
	return err
}
