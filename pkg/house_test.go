// Package pkg_test holds the plan of the house against the house.
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

// room is one row of the table in docs/ARCHITECTURE.md.
type room struct {
	floor     int
	ours      []string
	libraries []string
}

func TestTheCodeImportsWhatThePlanSays(t *testing.T) {
	plan := readPlan(t)
	houses := readHouse(t)
	for path := range houses {
		if _, ok := plan[path]; !ok {
			t.Errorf("room %s is not in the plan", path)
		}
	}
	for path, room := range plan {
		imports, ok := houses[path]
		if !ok {
			t.Errorf("room %s is in the plan, but there is no such folder with Go code", path)
			continue
		}
		ours, others := split(imports)
		if !slices.Equal(ours, sorted(room.ours)) {
			t.Errorf("room %s imports of ours %q; the plan says %q", path, ours, room.ours)
		}
		if got := libraries(others, room.libraries); !slices.Equal(got, sorted(room.libraries)) {
			t.Errorf("room %s imports libraries %q; the plan says %q", path, got, room.libraries)
		}
	}
}

func TestArrowsPointDown(t *testing.T) {
	plan := readPlan(t)
	for path, room := range plan {
		for _, other := range room.ours {
			if plan[other].floor >= room.floor {
				t.Errorf("room %s on floor %d imports %s on floor %d", path, room.floor, other, plan[other].floor)
			}
		}
	}
}

// The pure rooms: what decides is separate from what touches the world.
func TestPureRoomsTouchNothing(t *testing.T) {
	forbidden := []string{"log", "log/slog", "math/rand", "net", "net/http", "os", "os/exec", "syscall"}
	for _, path := range []string{"pkg/policy", "pkg/data", "pkg/compile", "pkg/engine", "pkg/configmap", "pkg/admission"} {
		imports := readHouse(t)[path]
		if len(imports) == 0 {
			t.Errorf("there is no pure room %s", path)
		}
		for _, name := range imports {
			if slices.Contains(forbidden, name) {
				t.Errorf("pure room %s imports %s", path, name)
			}
		}
	}
}

var (
	rowPattern  = regexp.MustCompile("^\\| `((?:cmd|pkg)/[^`]+)` \\| (\\d) \\|([^|]*)\\|([^|]*)\\|")
	codePattern = regexp.MustCompile("`([^`]+)`")
)

func readPlan(t *testing.T) map[string]room {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	plan := make(map[string]room)
	for line := range strings.Lines(string(text)) {
		row := rowPattern.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		floor, err := strconv.Atoi(row[2])
		if err != nil {
			t.Fatal(err)
		}
		plan[row[1]] = room{floor: floor, ours: names(row[3]), libraries: names(row[4])}
	}
	if len(plan) == 0 {
		t.Fatal("there is no table of rooms in docs/ARCHITECTURE.md")
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

// readHouse is the imports of each room, tests left out.
func readHouse(t *testing.T) map[string][]string {
	t.Helper()
	house := make(map[string][]string)
	for _, wing := range []string{"cmd", "pkg"} {
		err := filepath.WalkDir(filepath.Join(root, wing), func(path string, entry fs.DirEntry, err error) error {
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
				house[name] = append(house[name], strings.Trim(spec.Path.Value, `"`))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return house
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
