package admission

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// maxLevels is how deep an object may be nested that a patch is applied to. The
// types of Kubernetes nest some thirty levels; the library of the API server may
// read the whole object again for each level that a patch goes down.
const maxLevels = 1000

// document is an object while operations are applied to it. It follows RFC 6902
// to the letter, where the library of the API server is lenient: there, replace
// adds what is missing, copy makes a null of it, and indices may be negative.
type document struct {
	// root holds the object under the token that stands before the first / of
	// every pointer, which is empty. So the whole object is a member like any other.
	root map[string]any
	// levels is how deep the object is nested at most, and copied how many bytes
	// of JSON have been copied in it.
	levels, copied int
}

// apply makes of an object in JSON what the operations do. The operations that it
// gives back do the same, and unless strict none of them replaces what is not there.
func apply(operations []operation, object []byte, strict bool) (done []operation, after []byte, err error) {
	decoded, err := decodeJSON(object)
	if err != nil {
		return nil, nil, err
	}
	d := &document{root: map[string]any{"": decoded}}
	if err := d.deepen(levels(decoded)); err != nil {
		return nil, nil, err
	}
	before := d.gvk()
	for i, o := range operations {
		if o.Op == "replace" && !strict && d.lacks(o.Path) {
			o.Op = "add"
		}
		if err := d.operate(o); err != nil {
			return nil, nil, operations[i].failed(i, err)
		}
		done = append(done, o)
	}
	if d.gvk() != before {
		return nil, nil, errors.New("it makes an object of another apiVersion or kind, or none at all")
	}
	after, err = json.Marshal(d.root[""])
	return done, after, err
}

// lacks reports whether the object that is to have a member does not.
func (d *document) lacks(path string) bool {
	lacking := false
	err := d.change(strings.Split(path, "/"), func(container any, token string) (any, error) {
		members, ok := container.(map[string]any)
		lacking = ok && !has(members, token)
		return container, nil
	})
	return lacking && err == nil
}

// gvk says what the document is: the API server takes no patch that makes
// something else of it.
func (d *document) gvk() [3]string {
	members, ok := d.root[""].(map[string]any)
	return [3]string{strconv.FormatBool(ok), fmt.Sprint(members["apiVersion"]), fmt.Sprint(members["kind"])}
}

// operate applies one operation.
func (d *document) operate(o operation) error {
	path := strings.Split(o.Path, "/")
	switch o.Op {
	case "remove":
		return d.change(path, remove)
	case "move":
		return d.move(strings.Split(*o.From, "/"), path)
	case "copy":
		return d.copy(strings.Split(*o.From, "/"), path)
	}
	value, err := decodeJSON(o.Value)
	if err != nil {
		return err
	}
	switch o.Op {
	case "test":
		there, err := d.get(path)
		if err == nil && !reflect.DeepEqual(there, value) {
			err = errors.New("another value is there")
		}
		return err
	case "replace":
		return d.put(path, value, levels(value), replace)
	default:
		return d.put(path, value, levels(value), add)
	}
}

func (d *document) move(from, path []string) error {
	if len(path) > len(from) && slices.Equal(path[:len(from)], from) {
		return errors.New("a value cannot be moved into itself")
	}
	value, err := d.get(from)
	if err != nil {
		return err
	}
	if err := d.change(from, remove); err != nil {
		return err
	}
	return d.put(path, value, d.levels-len(from)+1, add)
}

func (d *document) copy(from, path []string) error {
	value, err := d.get(from)
	if err != nil {
		return err
	}
	content, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if d.copied += len(content); d.copied > maxCopiedBytes {
		return fmt.Errorf("so far more than %d bytes are copied, the most that the API server takes", maxCopiedBytes)
	}
	if value, err = decodeJSON(content); err != nil {
		return err
	}
	return d.put(path, value, levels(value), add)
}

// get is the value at path.
func (d *document) get(path []string) (any, error) {
	var found any
	err := d.change(path, func(container any, token string) (any, error) {
		value, ok := member(container, token)
		if !ok {
			return nil, errNothing
		}
		found = value
		return container, nil
	})
	return found, err
}

// put places a value that is nested so many levels deep at path.
func (d *document) put(path []string, value any, levels int, how func(any, string, any) (any, error)) error {
	if err := d.deepen(len(path) - 1 + levels); err != nil {
		return err
	}
	return d.change(path, func(container any, token string) (any, error) { return how(container, token, value) })
}

// deepen says that the document may now be nested so many levels deep.
func (d *document) deepen(levels int) error {
	if levels > maxLevels {
		return fmt.Errorf("the object would be nested more than %d levels deep", maxLevels)
	}
	d.levels = max(d.levels, levels)
	return nil
}

// change changes the container of what is at path.
func (d *document) change(path []string, how func(container any, token string) (any, error)) error {
	_, err := changeIn(d.root, path, 0, how)
	return err
}

// changeIn changes the container, somewhere in node, of what path leads to from
// the token at on. It is the node afterwards: an array becomes another one.
func changeIn(node any, path []string, at int, how func(container any, token string) (any, error)) (any, error) {
	token := unescape.Replace(path[at])
	if at == len(path)-1 {
		changed, err := how(node, token)
		if errors.Is(err, errNothing) {
			err = nothingAt(path)
		}
		return changed, err
	}
	child, ok := member(node, token)
	if !ok {
		return nil, nothingAt(path[:at+1])
	}
	changed, err := changeIn(child, path, at+1, how)
	if err != nil {
		return nil, err
	}
	return replace(node, token, changed)
}

// unescape makes of a token of a JSON pointer what it stands for (RFC 6901).
var unescape = strings.NewReplacer("~1", "/", "~0", "~")

// errNothing is that the token leads to nothing.
var errNothing = errors.New("there is nothing")

func nothingAt(path []string) error {
	return fmt.Errorf("there is no %s", shown(strings.Join(path, "/")))
}

// member is what the token leads to in an object or an array.
func member(container any, token string) (any, bool) {
	switch container := container.(type) {
	case map[string]any:
		value, ok := container[token]
		return value, ok
	case []any:
		if i := index(token); i < len(container) {
			return container[i], true
		}
	}
	return nil, false
}

// index is the index that a token is, or one that no array has: RFC 6901 knows
// neither signs nor leading zeros.
func index(token string) int {
	i, err := strconv.Atoi(token)
	if err != nil || i < 0 || strconv.Itoa(i) != token {
		return math.MaxInt
	}
	return i
}

func remove(container any, token string) (any, error) {
	if _, ok := member(container, token); !ok {
		return nil, errNothing
	}
	if array, ok := container.([]any); ok {
		i := index(token)
		return slices.Delete(array, i, i+1), nil
	}
	delete(object(container), token)
	return container, nil
}

func replace(container any, token string, value any) (any, error) {
	if _, ok := member(container, token); !ok {
		return nil, errNothing
	}
	if array, ok := container.([]any); ok {
		array[index(token)] = value
		return array, nil
	}
	object(container)[token] = value
	return container, nil
}

func add(container any, token string, value any) (any, error) {
	switch container := container.(type) {
	case map[string]any:
		container[token] = value
		return container, nil
	case []any:
		if token == "-" {
			return append(container, value), nil
		}
		i := index(token)
		if i > len(container) {
			return nil, errors.New("the array has no such index")
		}
		return slices.Insert(container, i, value), nil
	}
	return nil, errors.New("what it is to be added to is neither an object nor an array")
}

// levels is how deep a value is nested: 0 for a number, 1 for an empty array.
func levels(value any) int {
	deepest := 0
	switch value := value.(type) {
	case map[string]any:
		for _, member := range value {
			deepest = max(deepest, levels(member))
		}
	case []any:
		for _, member := range value {
			deepest = max(deepest, levels(member))
		}
	default:
		return 0
	}
	return deepest + 1
}
