# Rules to evaluate in part.
package filters

default allow := false

allow if {
	input.user == data.pets.owner
}

allow if {
	some role in data.opa.settings.users[input.user].roles
	role == data.pets.group
}

deny contains "no" if data.pets.secret

# METADATA
# scope: document
# compile:
#   unknowns:
#     - input.pets
#   mask_rule: data.filters.masks
include if {
	input.pets.name == "rex"
}

include if {
	input.pets.age > 3
	input.pets.owner == input.user
}

masks.pets.owner.replace.value := "***"

always := true

never := false

nope if input.pets.x.y.z == "too deep"

with_function if startswith(input.pets.name, input.prefix)

bound := x if x := input.pets.name
