package story

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/kube-rego/kube-rego/e2e/controlplane"
	"github.com/kube-rego/kube-rego/e2e/internal/progress"
	"github.com/kube-rego/kube-rego/e2e/istio"
	"github.com/kube-rego/kube-rego/e2e/kuberego"
	"github.com/kube-rego/kube-rego/e2e/programs"
)

// Config says what to play with, and where.
type Config struct {
	// Programs are the programs of the control plane, from programs.Build.
	Programs programs.Built
	// Binary is kube-rego, from kuberego.BuildBinary.
	Binary string
	// Root is the folder of the project, where the commands are typed.
	Root string
	// Dir is the folder for the clusters, with one folder in it for each; absent or empty at the start.
	Dir string
	// Out is where the story is told.
	Out io.Writer
}

// Stage is where the story is played: two clusters, each with its own kube-rego.
type Stage struct {
	cfg      Config
	clusters map[string]*cluster // by region
	held     int                 // expectations
}

// cluster is one of the clusters; what is not started yet is nil.
type cluster struct {
	dir          string
	plane        *controlplane.ControlPlane
	installation *kuberego.Installation
	instance     *kuberego.Instance
}

// NewStage makes a stage with nothing on it. The first step starts the clusters.
func NewStage(cfg Config) (*Stage, error) {
	for _, path := range []*string{&cfg.Root, &cfg.Dir} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("find the folders of the stage: %w", err)
		}
		*path = absolute
	}
	s := &Stage{cfg: cfg, clusters: map[string]*cluster{}}
	for _, region := range Regions() {
		s.clusters[region] = &cluster{dir: filepath.Join(cfg.Dir, region)}
	}
	return s, nil
}

// Held is how many expectations held so far.
func (s *Stage) Held() int { return s.held }

// Stop ends what was started, and leaves the folder with the logs.
func (s *Stage) Stop() error {
	var errs []error
	for _, region := range Regions() {
		c := s.clusters[region]
		if c.instance != nil {
			errs = append(errs, c.instance.Stop())
		}
		if c.plane != nil {
			errs = append(errs, c.plane.Stop())
		}
	}
	return errors.Join(errs...)
}

func (c *cluster) kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// startClusters starts a control plane for each region.
func startClusters(ctx context.Context, s *Stage) (err error) {
	for _, region := range Regions() {
		fmt.Fprintf(s.cfg.Out, "\n%s:\n", region)
		c := s.clusters[region]
		c.plane, err = controlplane.Start(ctx, controlplane.Config{
			Programs: s.cfg.Programs,
			Dir:      filepath.Join(c.dir, "control-plane"),
			Progress: indented{s.cfg.Out},
		})
		if err != nil {
			return err
		}
		if err := c.plane.WriteKubeconfig(c.kubeconfig()); err != nil {
			return err
		}
		fmt.Fprintf(s.cfg.Out, "  export KUBECONFIG=%s\n", s.typed(c.kubeconfig()))
	}
	return nil
}

// writeMeshDefinitions writes down what a mesh's own installation would bring.
func writeMeshDefinitions(ctx context.Context, s *Stage) error {
	crd, err := istio.AuthorizationPolicyCRD(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.crdFile(), crd, 0o644); err != nil {
		return fmt.Errorf("write the CustomResourceDefinition: %w", err)
	}
	return nil
}

func (s *Stage) crdFile() string { return filepath.Join(s.cfg.Dir, "authorizationpolicy-crd.yaml") }

// prepareInstallations writes the overlays that the commands apply.
func prepareInstallations(_ context.Context, s *Stage) (err error) {
	for _, region := range Regions() {
		c := s.clusters[region]
		c.installation, err = kuberego.Prepare(kuberego.Config{
			Cluster: c.plane,
			Root:    s.cfg.Root,
			Binary:  s.cfg.Binary,
			Dir:     c.kubeRegoDir(),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) kubeRegoDir() string { return filepath.Join(c.dir, "kube-rego") }

// startKubeRego does the kubelet's work.
func startKubeRego(ctx context.Context, s *Stage) error {
	for _, region := range Regions() {
		c := s.clusters[region]
		err := progress.During(s.cfg.Out, "  starting kube-rego", func() (err error) {
			c.instance, err = c.installation.Start(ctx)
			return err
		})
		if err != nil {
			return err
		}
		s.printCommand(region, s.typedServe(c.instance.Args()))
		err = progress.During(s.cfg.Out, "  waiting until the API server asks kube-rego", func() error {
			return c.instance.WaitAsked(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// typedServe is the start of kube-rego as a person types it, one flag a line.
func (s *Stage) typedServe(args []string) string {
	line := filepath.Base(s.cfg.Binary)
	for _, arg := range args {
		separator := " "
		if strings.HasPrefix(arg, "--") {
			separator = " \\\n    "
		}
		line += separator + strings.ReplaceAll(arg, s.cfg.Root+string(filepath.Separator), "")
	}
	return line + " &"
}

// typed is a path as a person types it in the folder of the project.
func (s *Stage) typed(path string) string {
	relative, err := filepath.Rel(s.cfg.Root, path)
	if err != nil || !filepath.IsLocal(relative) {
		return path
	}
	return relative
}

// width is that of the text, in columns. A wider command is broken by hand where it stands, and still can be pasted.
const width = 108

func (s *Stage) printTitle(step Step) {
	fmt.Fprintf(s.cfg.Out, "\n=== %s\n", step.Title)
	if step.Text != "" {
		fmt.Fprintln(s.cfg.Out, fold(step.Text, "", ""))
	}
}

func (s *Stage) printCommand(region, line string) {
	fmt.Fprintf(s.cfg.Out, "\n%s $ %s\n", region, line)
}

func (s *Stage) printOutput(output string) {
	for line := range strings.Lines(output) {
		fmt.Fprintln(s.cfg.Out, fold(strings.TrimSuffix(line, "\n"), "  ", "      "))
	}
}

// fold breaks a line that is wider than the text, at spaces and behind commas. first and next are put before the
// first and the other parts.
func fold(line, first, next string) string {
	var folded strings.Builder
	for indent := first; ; indent = next {
		room := width - len(indent)
		end := strings.LastIndexAny(line[:min(room, len(line))], " ,")
		if len(line) <= room || end <= 0 {
			return folded.String() + indent + line
		}
		folded.WriteString(indent + strings.TrimSuffix(line[:end+1], " ") + "\n")
		line = line[end+1:]
	}
}

// indented puts two spaces before each write, which is a line.
type indented struct{ io.Writer }

func (w indented) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.Writer, "  "); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}
