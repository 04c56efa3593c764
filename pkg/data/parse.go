package data

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"go.yaml.in/yaml/v4"
)

const (
	// maxDepth bounds how deep values stand within each other: what walks them
	// recurs. Objects of Kubernetes' own API have 20 levels.
	maxDepth = 1000
	// maxValues bounds what the aliases of YAML unfold to: a text of 1 MiB, the most
	// that a ConfigMap holds, has no more values than bytes if it has no aliases.
	maxValues = 1 << 20
)

// SyntaxError says what is wrong with the text of a document, and where.
type SyntaxError struct {
	Message string
	// Row and Col count from 1.
	Row, Col int
}

func (e *SyntaxError) Error() string { return e.Message }

// Parse reads a document: JSON, or else YAML 1.2. The error has its place in the text
// and is never an error of I/O. A text that begins like an object or array of JSON is
// not tried as YAML, which would take its NaN for a word.
func Parse(source string) (*ast.Term, *SyntaxError) {
	term, err := parseJSON(source)
	if start := strings.TrimSpace(source); err != nil && !strings.HasPrefix(start, "{") && !strings.HasPrefix(start, "[") {
		term, err = parseYAML(source)
	}
	if err == nil {
		return term, nil
	}
	wrong := SyntaxError{Message: err.Error()}
	var placed *SyntaxError
	if errors.As(err, &placed) {
		wrong = *placed
	}
	wrong.Row, wrong.Col = max(1, wrong.Row), max(1, wrong.Col)
	return nil, &wrong
}

// jsonReader reads one document of JSON. encoding/json alone takes objects with
// duplicate keys and does not say where it is.
type jsonReader struct {
	source  string
	decoder *json.Decoder
}

func parseJSON(source string) (*ast.Term, error) {
	r := jsonReader{source: source, decoder: json.NewDecoder(strings.NewReader(source))}
	r.decoder.UseNumber()
	term, err := r.value(0)
	if err != nil {
		return nil, r.explain(err)
	}
	if end := r.decoder.InputOffset(); len(strings.TrimSpace(source[end:])) > 0 {
		blank := len(source[end:]) - len(strings.TrimLeft(source[end:], " \t\r\n"))
		return nil, r.at("there is something behind the end of the JSON document", end+int64(blank))
	}
	return term, nil
}

func (r jsonReader) value(depth int) (*ast.Term, error) {
	token, err := r.decoder.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, r.failed(tooDeep)
	}
	switch token {
	case json.Delim('{'):
		return r.object(depth)
	case json.Delim('['):
		return r.array(depth)
	}
	value, err := ast.InterfaceToValue(token)
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(value), nil
}

func (r jsonReader) object(depth int) (*ast.Term, error) {
	object := ast.NewObject()
	for r.decoder.More() {
		token, err := r.decoder.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // the decoder takes nothing else
		key := ast.StringTerm(name)
		if object.Get(key) != nil {
			return nil, r.failed(fmt.Sprintf(duplicate, name))
		}
		value, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		object.Insert(key, value)
	}
	_, err := r.decoder.Token() // the brace that closes it
	return ast.NewTerm(object), err
}

func (r jsonReader) array(depth int) (*ast.Term, error) {
	var elements []*ast.Term
	for r.decoder.More() {
		element, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	_, err := r.decoder.Token() // the bracket that closes it
	return ast.ArrayTerm(elements...), err
}

// failed is an error at the last byte that was read.
func (r jsonReader) failed(message string) error {
	return r.at(message, r.decoder.InputOffset()-1)
}

// explain gives errors of the decoder their place. Of an error in the middle of an
// object the decoder does not know it, but who reads the whole text at once does.
func (r jsonReader) explain(err error) error {
	var own *SyntaxError
	if errors.As(err, &own) {
		return err
	}
	var whole json.RawMessage
	var syntax *json.SyntaxError
	switch {
	case !errors.As(json.Unmarshal([]byte(r.source), &whole), &syntax):
		return err
	case int(syntax.Offset) >= len(r.source) && strings.Contains(syntax.Error(), "unexpected end"):
		return r.at("the JSON document ends too early", syntax.Offset)
	}
	return r.at(syntax.Error(), syntax.Offset-1)
}

func (r jsonReader) at(message string, offset int64) error {
	before := r.source[:max(0, min(int(offset), len(r.source)))]
	line := before[strings.LastIndexByte(before, '\n')+1:]
	return &SyntaxError{Message: message, Row: 1 + strings.Count(before, "\n"), Col: 1 + len([]rune(line))}
}

const (
	duplicate = "the key %q is there twice"
	tooDeep   = "values are nested more than 1000 deep"
)

// yamlReader makes a document of the nodes of a YAML text.
type yamlReader struct {
	values int // made so far
}

func parseYAML(source string) (*ast.Term, error) {
	loader, err := yaml.NewLoader(bytes.NewReader([]byte(source)))
	if err != nil {
		return nil, err
	}
	var document, next yaml.Node
	if err := loader.Load(&document); err != nil {
		return nil, yamlError(err)
	}
	switch err := loader.Load(&next); {
	case err == nil:
		return nil, failedAt(next.Content[0], "there is more than one YAML document")
	case !errors.Is(err, io.EOF):
		return nil, yamlError(err)
	}
	if n := document.Content[0]; n.Kind == yaml.ScalarNode && n.Style == 0 && n.ShortTag() == "!!str" {
		// Rego is one, mostly, and a label that is wrong must not pass for data.
		return nil, failedAt(n, "it is neither JSON nor a list or mapping of YAML; a text stands in quotes")
	}
	r := &yamlReader{}
	return r.value(&document, 0)
}

// yamlError gives errors of the YAML library their place.
func yamlError(err error) error {
	var at *yaml.LoadError
	switch {
	case errors.Is(err, io.EOF):
		return &SyntaxError{Message: "there is no document, neither JSON nor YAML"}
	case errors.As(err, &at):
		return &SyntaxError{Message: at.Message, Row: at.Mark.Line, Col: at.Mark.Column}
	}
	return err
}

func (r *yamlReader) value(n *yaml.Node, depth int) (*ast.Term, error) {
	if r.values++; r.values > maxValues {
		return nil, failedAt(n, "its aliases unfold to more than %d values", maxValues)
	}
	if depth > maxDepth {
		return nil, failedAt(n, tooDeep)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return r.value(n.Content[0], depth)
	case yaml.AliasNode:
		return r.value(n.Alias, depth+1) // one that contains itself is too deep at last
	case yaml.MappingNode:
		return r.mapping(n, depth)
	case yaml.SequenceNode:
		return r.sequence(n, depth)
	}
	return scalar(n)
}

func (r *yamlReader) sequence(n *yaml.Node, depth int) (*ast.Term, error) {
	elements := make([]*ast.Term, 0, len(n.Content))
	for _, child := range n.Content {
		element, err := r.value(child, depth+1)
		if err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return ast.ArrayTerm(elements...), nil
}

func (r *yamlReader) mapping(n *yaml.Node, depth int) (*ast.Term, error) {
	object := ast.NewObject()
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, child := n.Content[i], n.Content[i+1]
		name := key.Value
		switch {
		case key.Kind == yaml.AliasNode:
			name = key.Alias.Value
		case key.Kind != yaml.ScalarNode:
			return nil, failedAt(key, "a key is no text")
		case key.ShortTag() == "!!merge":
			return nil, failedAt(key, "merge keys (<<) are not supported: write the fields out")
		}
		if object.Get(ast.StringTerm(name)) != nil {
			return nil, failedAt(key, duplicate, name)
		}
		value, err := r.value(child, depth+1)
		if err != nil {
			return nil, err
		}
		object.Insert(ast.StringTerm(name), value)
	}
	return ast.NewTerm(object), nil
}

func scalar(n *yaml.Node) (*ast.Term, error) {
	switch n.ShortTag() {
	case "!!null":
		return ast.NullTerm(), nil
	case "!!bool":
		return ast.BooleanTerm(strings.EqualFold(n.Value, "true")), nil
	case "!!int":
		number, ok := new(big.Int).SetString(strings.ReplaceAll(n.Value, "_", ""), 0)
		if !ok {
			return nil, failedAt(n, "%q is no number", n.Value)
		}
		return ast.NumberTerm(json.Number(number.String())), nil
	case "!!float":
		return float(n)
	}
	return ast.StringTerm(n.Value), nil // dates and binary data too, as they are written
}

func float(n *yaml.Node) (*ast.Term, error) {
	if json.Valid([]byte(n.Value)) {
		return ast.NumberTerm(json.Number(n.Value)), nil // with all its digits
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(n.Value, "_", ""), 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, failedAt(n, "%q is no number that JSON knows", n.Value)
	}
	return ast.FloatNumberTerm(f), nil
}

func failedAt(n *yaml.Node, format string, args ...any) error {
	return &SyntaxError{Message: fmt.Sprintf(format, args...), Row: n.Line, Col: n.Column}
}
