# Rules that go wrong, each in its way.
package errors

complete := 1 if input.a

complete := 2 if input.b

object[key] := value if {
	some value in input.values
	key := "the same"
}

f(x) := 1 if x > 0

f(x) := 2 if x > 1

function := f(input.x)

divided := 1 / input.zero

parsed := to_number(input.text)

decoded := json.unmarshal(input.text)

matched := regex.match(input.pattern, "text")

size := units.parse(input.text)

below.conflict := 1 if input.a

below.conflict := 2 if input.b

below.fine := true
