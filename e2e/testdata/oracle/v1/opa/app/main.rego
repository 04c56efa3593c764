# METADATA
# title: Who may do what
# scope: package
package app.rbac

import data.opa.settings

default allow := false

# An admin may do anything.
allow if is_admin

allow if {
	some permission in permissions
	permission.action == input.action
	permission.type == input.object
}

is_admin if {
	some role in settings.users[input.user].roles
	role == "admin"
	print("an admin:", input.user)
}

# What the roles of the user permit.
permissions contains permission if {
	some role in settings.users[input.user].roles
	some permission in settings.permissions[role]
}

by_role[role] contains user if {
	some user, properties in settings.users
	some role in properties.roles
}

permitted(user, action) if {
	some role in settings.users[user].roles
	some permission in settings.permissions[role]
	permission.action == action
}

readers := [user | some user, _ in settings.users; permitted(user, "read")]

reasons contains reason if {
	not allow
	trace("nobody said yes")
	reason := sprintf("%s may not %s %s", [input.user, input.action, input.object])
}
