package bundled

import data.opa.settings

allow if input.user in data.shared.data.users

admins contains user if {
	some user, properties in settings.users
	"admin" in properties.roles
}

wrong := 1 if input.a

wrong := 2 if input.b
