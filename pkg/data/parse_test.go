package data

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		name, source string
		want         string // in JSON
	}{
		{"an object", `{"a": {"b": [1, "x", true, null]}}`, `{"a": {"b": [1, "x", true, null]}}`},
		{"an array", `[1, 2]`, `[1, 2]`},
		{"a string", `"text"`, `"text"`},
		{"a number with all its digits", `12345678901234567890.5`, `12345678901234567890.5`},
		{"true", `true`, `true`},
		{"null", ` null `, `null`},
		{"escapes that only JSON has", `"\ud83d\ude00 \/"`, `"😀 /"`},
		{"YAML", "a:\n  b: [1, x]\n  c: yes\n", `{"a": {"b": [1, "x"], "c": "yes"}}`},
		{"a text in YAML's quotes", "'one word'\n", `"one word"`},
		{"a number", "1e3\n", `1000`},
		{"YAML with a comment first", "# list\n- 1\n- 2\n", `[1, 2]`},
		{"numbers as YAML writes them", "- 0x1F\n- 0o17\n- .5\n- +1\n- 1e3\n- -0\n- 1_000\n", `[31, 15, 0.5, 1, 1e3, 0, 1000]`},
		{"dates are texts", "d: 2026-11-23\n", `{"d": "2026-11-23"}`},
		{"keys that are numbers are texts", "1: a\ntrue: b\n", `{"1": "a", "true": "b"}`},
		{"anchors", "a: &x [1]\nb: *x\n", `{"a": [1], "b": [1]}`},
		{"a text of many lines", "k: |\n  a\n  b\n", `{"k": "a\nb\n"}`},
		{"1000 levels", strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth)},
	} {
		t.Run(test.name, func(t *testing.T) {
			term, problem := Parse(test.source)
			if problem != nil {
				t.Fatal(problem)
			}
			var want any
			if err := json.Unmarshal([]byte(test.want), &want); err != nil {
				t.Fatal(err)
			}
			got, err := ast.JSON(term.Value)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(got)
			if err != nil {
				t.Fatal(err)
			}
			var again any
			if err := json.Unmarshal(text, &again); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(again, want) {
				t.Errorf("got %s, want %s", text, test.want)
			}
		})
	}
}

func TestParseKeepsTheDigitsOfNumbers(t *testing.T) {
	for _, source := range []string{"12345678901234567890123", "- 12345678901234567890123\n", "- 1234567890.12345678901234567890\n"} {
		term, problem := Parse(source)
		if problem != nil {
			t.Fatal(problem)
		}
		if digits := strings.Trim(source, "- \n"); !strings.Contains(term.String(), digits) {
			t.Errorf("got %s, want %s", term, digits)
		}
	}
}

func TestParseTellsWhatIsWrongAndWhere(t *testing.T) {
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	var bomb strings.Builder
	bomb.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for n := 1; n < 9; n++ {
		fmt.Fprintf(&bomb, "a%d: &a%d [%s]\n", n, n, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", n-1), 10), ", "))
	}
	for _, test := range []struct {
		name, source, want string
		row, col           int
	}{
		{"nothing", "", "there is no document", 1, 1},
		{"nothing but a comment", "# later\n", "there is no document", 1, 1},
		{"a comma too many", "{\n  \"a\": 1,\n}", "invalid character '}'", 3, 1},
		{"an end that is missing", `{"a": [1, 2`, "ends too early", 1, 12},
		{"something behind the end", "{\"a\": 1}\n{}", "behind the end", 2, 1},
		{"a brace too many", "{\"a\": 1}\n }", "behind the end", 2, 2},
		{"a key twice", "{\"a\": 1,\n \"b\": 2, \"a\": 3}", `the key "a" is there twice`, 2, 12},
		{"a key twice further in", `{"x": {"a": 1, "a": 1}}`, `the key "a" is there twice`, 1, 18},
		{"a key twice in YAML", "a: 1\nb: 2\na: 3\n", "a", 3, 1},
		{"NaN", `{"a": NaN}`, "invalid character 'N'", 1, 7},
		{"not a number in YAML", "a: .nan\n", `".nan" is no number that JSON knows`, 1, 4},
		{"infinity in YAML", "a:\n  - -.inf\n", `"-.inf" is no number`, 2, 5},
		{"10,000 levels", deep(10_000), "more than 1000 deep", 1, 1002},
		{"10,000 levels of YAML", "a: " + deep(10_000), "", 1, 0},
		{"a YAML bomb", bomb.String(), "unfold to more than", 0, 0},
		{"an anchor within itself", "a: &a [*a]\n", "", 1, 0},
		{"Rego", "package k\n\ndeny contains x if {\n\tx := 1\n}\n", "a text stands in quotes", 1, 1},
		{"a word", "\nword\n", "a text stands in quotes", 2, 1},
		{"two documents", "a: 1\n---\nb: 2\n", "more than one YAML document", 3, 1},
		{"a tab where YAML has none", "a:\n\tb: 1\n", "", 2, 0},
		{"a colon too many", "a: b: c\n", "mapping values are not allowed", 1, 5},
		{"a merge key", "a: &a {x: 1}\nb:\n  <<: *a\n", "merge keys", 3, 3},
		{"a key that is a list", "? [a]\n: 1\n", "a key is no text", 1, 3},
		{"a column counts characters", "{\"ä\": 1, \"ä\": 2}", "twice", 1, 12},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, problem := Parse(test.source)
			if problem == nil {
				t.Fatal("it was read")
			}
			if !strings.Contains(problem.Message, test.want) {
				t.Errorf("got %q, want %q in it", problem.Message, test.want)
			}
			if test.row != 0 && problem.Row != test.row || test.col != 0 && problem.Col != test.col {
				t.Errorf("%s: got %d:%d, want %d:%d", problem.Message, problem.Row, problem.Col, test.row, test.col)
			}
			if len(problem.Message) > 200 {
				t.Errorf("the message is %d bytes long: %s", len(problem.Message), problem.Message)
			}
		})
	}
}

// Whatever encoding/json takes, but for duplicate keys, is read as the same value.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"a": [1, "x", null, true]}`, "a: 1\n", "- x\n- &a [1]\n- *a\n", "1e400", `"\ud83d"`, "[", ".inf", "a: b: c"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		term, problem := Parse(source)
		if problem != nil && (problem.Row < 1 || problem.Col < 1 || problem.Message == "") {
			t.Fatalf("the problem is %+v", problem)
		}
		var native any
		if json.Unmarshal([]byte(source), &native) != nil {
			return
		}
		if problem != nil {
			if !strings.Contains(problem.Message, "twice") && !strings.Contains(problem.Message, "deep") {
				t.Fatalf("JSON is refused: %s", problem.Message)
			}
			return
		}
		decoder := json.NewDecoder(strings.NewReader(source))
		decoder.UseNumber()
		if err := decoder.Decode(&native); err != nil {
			t.Fatal(err)
		}
		if want, err := ast.InterfaceToValue(native); err != nil || want.Compare(term.Value) != 0 {
			t.Fatalf("got %s, want %s, %v", term, want, err)
		}
	})
}
