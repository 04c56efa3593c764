package pkg_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\[([^\]\[]*)\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	fenced  = regexp.MustCompile("(?ms)^ *```.*?^ *```$")
)

// Every link of a page leads somewhere: to a file or a folder, and to a heading where it
// names one. What is called like a test is one, in the file that the link leads to.
func TestLinksOfPagesLeadSomewhere(t *testing.T) {
	found := 0
	for _, page := range pages(t) {
		text := fenced.ReplaceAllString(read(t, page), "")
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			name, target := match[1], match[2]
			if strings.Contains(target, "://") {
				continue
			}
			found++
			path, anchor, _ := strings.Cut(target, "#")
			file := page
			if path != "" {
				file = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link to %s: %v", page, target, err)
				continue
			}
			if anchor != "" && !hasHeading(read(t, file), anchor) {
				t.Errorf("%s: the link to %s: there is no such heading", page, target)
			}
			if strings.HasPrefix(name, "Test") && !strings.Contains(read(t, file), "func "+name+"(") {
				t.Errorf("%s: the link to %s: there is no test %s", page, target, name)
			}
		}
	}
	if found == 0 {
		t.Error("there are no links")
	}
}

// pages are the files in Markdown.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && strings.HasPrefix(entry.Name(), "."):
			return fs.SkipDir
		case filepath.Ext(path) == ".md":
			all = append(all, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hasHeading reports whether a page has a heading with this anchor, as GitHub makes it:
// in lower case, with hyphens for spaces, without punctuation.
func hasHeading(text, anchor string) bool {
	for _, match := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		made := strings.Map(func(r rune) rune {
			switch {
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			case r == ' ':
				return '-'
			}
			return -1
		}, match[1])
		if made == anchor {
			return true
		}
	}
	return false
}
