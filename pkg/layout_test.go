// Package pkg_test holds docs/ARCHITECTURE.md against the imports in the code.
package pkg_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/kube-rego/kube-rego/"
	root   = ".."
)

// row is one row of the table in docs/ARCHITECTURE.md.
type row struct {
	layer     int
	ours      []string
	libraries []string
}

func TestTheCodeImportsWhatThePlanSays(t *testing.T) {
	plan := readPlan(t)
	code := readImports(t)
	for path := range code {
		if _, ok := plan[path]; !ok {
			t.Errorf("package %s is not in the plan", path)
		}
	}
	for path, row := range plan {
		imports, ok := code[path]
		if !ok {
			t.Errorf("package %s is in the plan, but there is no such folder with Go code", path)
			continue
		}
		ours, others := split(imports)
		if !slices.Equal(ours, sorted(row.ours)) {
			t.Errorf("package %s imports of ours %q; the plan says %q", path, ours, row.ours)
		}
		if got := libraries(others, row.libraries); !slices.Equal(got, sorted(row.libraries)) {
			t.Errorf("package %s imports libraries %q; the plan says %q", path, got, row.libraries)
		}
	}
}

func TestArrowsPointDown(t *testing.T) {
	plan := readPlan(t)
	for path, row := range plan {
		for _, other := range row.ours {
			if plan[other].layer >= row.layer {
				t.Errorf("package %s in layer %d imports %s in layer %d", path, row.layer, other, plan[other].layer)
			}
		}
	}
}

// The pure packages: what decides is separate from what touches the world.
func TestPurePackagesTouchNothing(t *testing.T) {
	forbidden := []string{"log", "log/slog", "math/rand", "net", "net/http", "os", "os/exec", "syscall"}
	for _, path := range []string{"pkg/policy", "pkg/data", "pkg/compile", "pkg/engine", "pkg/configmap", "pkg/admission"} {
		imports := readImports(t)[path]
		if len(imports) == 0 {
			t.Errorf("there is no pure package %s", path)
		}
		for _, name := range imports {
			if slices.Contains(forbidden, name) {
				t.Errorf("pure package %s imports %s", path, name)
			}
		}
	}
}

var (
	rowPattern  = regexp.MustCompile("^\\| `((?:cmd|pkg)/[^`]+)` \\| (\\d) \\|([^|]*)\\|([^|]*)\\|")
	codePattern = regexp.MustCompile("`([^`]+)`")
)

func readPlan(t *testing.T) map[string]row {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	plan := make(map[string]row)
	for line := range strings.Lines(string(text)) {
		cells := rowPattern.FindStringSubmatch(line)
		if cells == nil {
			continue
		}
		layer, err := strconv.Atoi(cells[2])
		if err != nil {
			t.Fatal(err)
		}
		plan[cells[1]] = row{layer: layer, ours: names(cells[3]), libraries: names(cells[4])}
	}
	if len(plan) == 0 {
		t.Fatal("there is no table of packages in docs/ARCHITECTURE.md")
	}
	return plan
}

func names(cell string) []string {
	var all []string
	for _, match := range codePattern.FindAllStringSubmatch(cell, -1) {
		all = append(all, match[1])
	}
	return all
}

// readImports returns the imports of each package, tests left out.
func readImports(t *testing.T) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for _, folder := range []string{"cmd", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			relative, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			name := filepath.ToSlash(relative)
			for _, spec := range file.Imports {
				all[name] = append(all[name], strings.Trim(spec.Path.Value, `"`))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// split parts the imports that are not of the standard library into ours and
// others.
func split(imports []string) (ours, others []string) {
	for _, path := range imports {
		if own, ok := strings.CutPrefix(path, module); ok {
			ours = append(ours, own)
		} else if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
			others = append(others, path)
		}
	}
	return sorted(ours), sorted(others)
}

// libraries shortens import paths to the modules of the plan that they are in.
func libraries(imports, planned []string) []string {
	var all []string
	for _, path := range imports {
		name := path
		for _, library := range planned {
			if path == library || strings.HasPrefix(path, library+"/") {
				name = library
			}
		}
		all = append(all, name)
	}
	return sorted(all)
}

func sorted(list []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(list)))
}
