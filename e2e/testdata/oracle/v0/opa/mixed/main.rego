# Rego v1 beside Rego v0.
package mixed

import rego.v1

allow if data.rules.allow

denials contains message if some message in data.rules.deny
