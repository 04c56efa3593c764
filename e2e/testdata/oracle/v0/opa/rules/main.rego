# Rego as it was before v1.
package rules

import data.opa.settings

default allow = false

allow {
	settings.users[input.user].roles[_] == "admin"
}

deny[message] {
	not allow
	message := sprintf("%v is no admin", [input.user])
}

roles[user] = roles {
	roles := settings.users[user].roles
}

complete = 1 { input.a }

complete = 2 { input.b }

twice(x) = y {
	y := x * 2
}

doubled = twice(input.n)

include {
	input.pets.name == "rex"
}
