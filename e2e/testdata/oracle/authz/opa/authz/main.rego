# Who may ask OPA's REST API what. The reason of a refusal is all that the policy was told.
package system.authz

default allow := false

allow := true if input.identity == "root"

allow := true if input.path == ["health"]

allow := true if {
	input.method == "POST"
	input.path == ["v1", "data", "values", "echo"]
	input.body.input.please
}

allow := true if input.params.key[_] == "open"

allow := true if input.headers["X-Key"][_] == "open"

allow := {"allowed": false, "reason": json.marshal(input)} if input.identity == "told"

allow := {"allowed": true, "reason": "fine"} if input.identity == "object"

allow := {"reason": "nothing is said of allowed"} if input.identity == "half"

allow := {"allowed": "yes", "reason": 1} if input.identity == "odd"

allow := "yes" if input.identity == "text"

allow := [1 / 0] if input.identity == "undefined"

allow := 1 if input.identity == "conflict"

allow := 2 if input.identity == "conflict"
