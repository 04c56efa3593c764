# Values of all kinds, as they come back.
package values

empty_set := set()

empty_object := {}

empty_array := []

nothing := null

yes := true

no := false

set_of_things := {3, "three", [1, 2], {"a": "b"}, null, false}

huge := 123456789012345678901234567890

tiny := 0.000000000000000000000000000001

exact := 1e2

minus := -0.1

unicode := "grüße, 世界, 🦀, \u2028 and <b>&"

escapes := "quote \" backslash \\ tab \t newline \n"

keys := {"a/b": 1, "x y": 2, "ü": 3, "": 4, "1": 5, "..": 6, "%2F": 7, "dot.ted": 8, "+": 9}

echo := input

partial[key] := value if some key, value in input.object

nested.deep.value := "found"

nested.deep.other := input.other

list := [{"name": "first"}, {"name": "second"}]

large := [sprintf("line %d of a large answer", [n]) | some n in numbers.range(1, 200)]

undefined if input.never == "never"

undefined_object := {"value": input.never}

number_keys := {1: "one", true: "yes", [1]: "array"}

with_mock := result if {
	result := data.values.echo with input as {"mocked": true}
}

else_chain := "one" if input.n == 1

else := "two" if input.n == 2

else := "many"
